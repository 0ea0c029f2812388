"""Labelled rows -> token ids. A row that can't be used goes along with its reason and without ids, to be counted later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.inputs import InputEncoder

if TYPE_CHECKING:
    import ray.data

# One row a labelled row. `reason` is null for usable rows; the others have no ids, length 0 and label 0, and `source` (a
# file), `position` (byte offset of the line in it) and `detail` for the quarantine.
TOKENS = pa.schema(
    [
        ("row_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("label", pa.int8()),
        ("label_probs", pa.list_(pa.float32())),
        ("user_id", pa.string()),
        ("language", pa.string()),
        ("origin", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_COMPUTED = ("input_ids", "length")
# Of reading and writing, so that they find room beside a tokenising actor on a node of one CPU.
TASK_CPUS = 0.25
_SPLIT = "split"


class TokeniseBatch:
    """A Ray Data function: rows with history, prompt, response and label -> `TOKENS` rows, in the same order.

    Rows with a `reason` aren't tokenised. Columns of `TOKENS` that the rows don't have are null.

    Args:
        tokenizer: name of the base model.
        k: number of levels; a label outside 1..k is an error, never clamped.
        counter: a progress counter, or None.
    """

    def __init__(
        self,
        tokenizer: str,
        template: str,
        max_length: int,
        k: int,
        trust_remote_code: bool,
        counter: Any | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        path = resolve_model(tokenizer, flag="--base")
        loaded = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        self._encoder = InputEncoder(loaded, RewardTemplate(template), max_length)
        self._k, self._counter = k, counter

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        usable = [row for row in rows if row.get("reason") is None]
        for row in usable:
            check_label(row["row_id"], row["label"], self._k)
        encoded = iter(
            self._encoder.encode_batch([(row["history"] or [], row["prompt"], row["response"]) for row in usable])
        )
        out = [_token_row(row, next(encoded) if row.get("reason") is None else []) for row in rows]
        if self._counter is not None:
            self._counter.add.remote(len(rows))
        return pa.Table.from_pylist(out, schema=TOKENS).append_column(_SPLIT, table[_SPLIT])


def check_label(row_id: str, label: Any, k: int) -> int:
    """Return `label` if it is a whole number in 1..k.

    Raises:
        UserError: it isn't; names the row, the label and `--levels`.
    """
    if not isinstance(label, int) or not 1 <= label <= k:
        raise UserError(f"row {row_id!r} has label {label!r}: labels lie in 1..{k}", flag="--levels")
    return label


def _token_row(row: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    passed = {name: row.get(name) for name in TOKENS.names if name not in _COMPUTED}
    return {**passed, "input_ids": ids, "length": len(ids)}


def write_tokens(
    splits: Mapping[str, ray.data.Dataset],
    target: Location,
    config: TrainConfig,
    *,
    template: str,
    max_length: int,
    k: int,
    counter: Any,
) -> None:
    """Write the `TOKENS` rows of every split as Parquet to its `split_folder`, all in one streaming pass.

    Args:
        counter: a progress counter of rows.

    Raises:
        UserError: a label outside 1..k, or a template or tokenizer that can't be used.
    """
    import ray.data

    tagged = [
        rows.map_batches(partial(_tag, split), batch_format="pyarrow", num_cpus=TASK_CPUS)
        for split, rows in splits.items()
    ]
    tokens = (
        tagged[0]
        .union(*tagged[1:])
        .map_batches(
            TokeniseBatch,
            fn_constructor_args=(config.base, template, max_length, k, config.trust_remote_code, counter),
            batch_size=256,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
            num_cpus=0.5,
        )
    )
    for split in splits:
        folder = split_folder(target, split)
        folder.fs.create_dir(folder.path, recursive=True)
    tokens.write_parquet(
        target.path,
        filesystem=target.fs,
        try_create_dir=False,
        partition_cols=[_SPLIT],
        ray_remote_args={"num_cpus": TASK_CPUS},
    )
    for split in splits:
        if not split_folder(target, split).names():
            split_folder(target, split).child("empty.parquet").write_table(TOKENS.empty_table())


def split_folder(tokens: Location, split: str) -> Location:
    """Where `write_tokens` puts the rows of a split."""
    return tokens.child(f"{_SPLIT}={split}")


def _tag(split: str, table: pa.Table) -> pa.Table:
    return table.append_column(_SPLIT, pa.array([split] * table.num_rows, pa.string()))
