"""Labelled rows -> token ids on disk, read back by row number without holding them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location
from wildreward_ray.core.config.train import TrainConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward.inputs import InputEncoder

if TYPE_CHECKING:
    import ray.data

TOKENS = pa.schema(
    [
        ("row_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("label", pa.int8()),
        ("label_probs", pa.list_(pa.float32())),
    ]
)


class TokeniseBatch:
    """A Ray Data function: rows with history, prompt, response and label -> `TOKENS` rows.

    Args:
        tokenizer: name of the base model.
        k: number of levels; a label outside 1..k is an error, never clamped.
    """

    def __init__(self, tokenizer: str, template: str, max_length: int, k: int, trust_remote_code: bool) -> None:
        from transformers import AutoTokenizer

        path = resolve_model(tokenizer, flag="--base")
        loaded = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        self._encoder = InputEncoder(loaded, RewardTemplate(template), max_length)
        self._k = k

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            label = row["label"]
            if not isinstance(label, int) or not 1 <= label <= self._k:
                raise UserError(
                    f"row {row['row_id']!r} has label {label!r}: labels lie in 1..{self._k}", flag="--levels"
                )
        ids = self._encoder.encode_batch([(row["history"] or [], row["prompt"], row["response"]) for row in rows])
        out = [
            {
                "row_id": row["row_id"],
                "input_ids": tokens,
                "length": len(tokens),
                "label": row["label"],
                "label_probs": row.get("label_probs"),
            }
            for row, tokens in zip(rows, ids, strict=True)
        ]
        return pa.Table.from_pylist(out, schema=TOKENS)


def tokenise(
    dataset: ray.data.Dataset, config: TrainConfig, *, template: str, max_length: int, k: int
) -> ray.data.Dataset:
    """A streaming dataset of `TOKENS` rows."""
    import ray.data

    return dataset.map_batches(
        TokeniseBatch,
        fn_constructor_args=(config.base, template, max_length, k, config.trust_remote_code),
        batch_size=256,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        num_cpus=0.5,
    )


class TokenRows:
    """Token rows in a memory-mapped Arrow file; satisfies `reward.loop.Rows`.

    Rows are numbered in the order of their ids, so the numbering doesn't depend on how they were written.

    Args:
        source: directory of `TOKENS` Parquet files.
        scratch: where the Arrow file is put on this node.
        limit: keep only so many rows, the first by id.
    """

    def __init__(self, source: Location, scratch: Path, limit: int | None = None) -> None:
        file = scratch / "tokens.arrow"
        dataset = pads.dataset(source.path, filesystem=source.fs, schema=TOKENS)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, TOKENS) as writer:
            for batch in dataset.to_batches(batch_size=4096):
                if batch.num_rows:
                    writer.write_batch(batch)
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        order = np.argsort(np.array(self._table["row_id"].to_pylist(), dtype=object), kind="stable")[:limit]
        self._order: npt.NDArray[np.int64] = order.astype(np.int64)
        self.over_limit = self._table.num_rows - len(order)
        self._chunks = self._table["input_ids"].chunks
        self._starts = np.cumsum([0, *(len(c) for c in self._chunks)])
        self.lengths: npt.NDArray[np.int64] = self._column("length").astype(np.int64)
        self.labels: npt.NDArray[np.int64] = self._column("label").astype(np.int64)
        self.label_probs = self._probs()

    def ids(self, row: int) -> Sequence[int]:
        """Token ids of one row."""
        position = int(self._order[row])
        chunk = int(np.searchsorted(self._starts, position, side="right")) - 1
        ids: Sequence[int] = self._chunks[chunk][position - int(self._starts[chunk])].values.to_numpy().tolist()
        return ids

    def _column(self, name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = self._table[name].to_numpy()[self._order]
        return values

    def _probs(self) -> npt.NDArray[np.float32] | None:
        column = self._table["label_probs"]
        if column.null_count or len(column) == 0:
            return None
        values = np.stack([np.asarray(v, dtype=np.float32) for v in column.to_pylist()])
        return values[self._order]


def wildfb_rows(records: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """WildFB records (`id, history, text, messages, user_feedback, label`) as rows that `TokeniseBatch` reads.

    Raises:
        UserError: a record without a field that is needed, or messages that aren't a request and a reply.
    """
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"record {number} is a {type(record).__name__}: objects are needed", flag="--dataset")
        messages, label = record.get("messages"), record.get("label")
        if not isinstance(messages, list) or len(messages) < 2 or label is None:
            raise UserError(
                f"record {record.get('id', number)!r} lacks `messages` (a request and a reply) or `label`",
                flag="--dataset",
            )
        if not all(isinstance(m, dict) and "content" in m for m in messages):
            raise UserError(f"record {record.get('id', number)!r} has a message without `content`", flag="--dataset")
        prompt, response = messages[-2], messages[-1]
        if prompt.get("role") != "user" or response.get("role") != "assistant":
            raise UserError(
                f"record {record.get('id', number)!r} has messages of roles {prompt.get('role')!r}, {response.get('role')!r}: "
                "a user and an assistant message are needed",
                flag="--dataset",
            )
        history = record.get("history") or []
        if isinstance(history, str):
            raise UserError(
                f"record {record.get('id', number)!r} has a text as `history`: a list of messages is needed",
                flag="--dataset",
            )
        yield {
            "row_id": str(record.get("id", number)),
            "history": [
                {"role": str(m.get("role", "user")), "content": str(m.get("content", ""))}
                for m in [*history, *messages[:-2]]
            ],
            "prompt": str(prompt["content"]),
            "response": str(response["content"]),
            "label": label,
        }
