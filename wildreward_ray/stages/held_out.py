"""Predictions of trained models on the rows they were not trained on, as train leaves them beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wildreward_ray.cluster.storage import Location, first_line
from wildreward_ray.core.errors import StorageError, WildRewardError
from wildreward_ray.reward.metrics import ordinal_metrics

_COLUMNS = ["row_id", "label", "p_gt", "origin"]


@dataclass(frozen=True)
class Predictions:
    """What one model predicts for N held-out rows, in order of their ids.

    Attributes:
        uri: of the file, for messages.
        levels: number of labels K.
        row_ids: [N] text.
        labels: [N] in 1..K.
        p_gt: [N, K-1] P(label > j), before calibration.
        origins: [N] text, where each label comes from.
    """

    uri: str
    levels: int
    row_ids: NDArray[np.object_]
    labels: NDArray[np.int64]
    p_gt: NDArray[np.float64]
    origins: NDArray[np.object_]

    def metrics(self, origin: str) -> dict[str, Any]:
        """`ordinal_metrics` of the rows of one origin."""
        return ordinal_metrics(self.of(origin), self.labels[self.origins == origin], self.levels)

    def of(self, origin: str) -> NDArray[np.float64]:
        """[N', K-1] probabilities of the rows of one origin."""
        found: NDArray[np.float64] = self.p_gt[self.origins == origin]
        return found


def read_predictions(file: Location, levels: int) -> Predictions:
    """Read the predictions of one model.

    Args:
        levels: number of labels K.

    Raises:
        StorageError: there is no such file, or it can't be read.
        WildRewardError: a row has another number of probabilities than K-1.
    """
    try:
        table = file.read_table(_COLUMNS).sort_by("row_id")
    except (OSError, pa.ArrowInvalid, KeyError) as e:
        raise StorageError(f"can't read {file.uri!r}: {first_line(e)}") from e
    rows = table["p_gt"].to_pylist()
    wrong = next((i for i, row in enumerate(rows) if row is None or len(row) != levels - 1), None)
    if wrong is not None:
        raise WildRewardError(
            f"row {table['row_id'][wrong].as_py()!r} of {file.uri!r} has p_gt = {rows[wrong]}: {levels} levels have {levels - 1}"
        )
    return Predictions(
        file.uri,
        levels,
        np.array(table["row_id"].to_pylist(), dtype=object),
        np.array(table["label"].to_pylist(), dtype=np.int64),
        np.array(rows, dtype=np.float64).reshape(len(rows), levels - 1),
        np.array(table["origin"].to_pylist(), dtype=object),
    )


def same_rows(found: Sequence[Predictions]) -> None:
    """Raise `WildRewardError` unless all models were evaluated on the same rows with the same labels."""
    first = found[0]
    for other in found[1:]:
        if not (np.array_equal(first.row_ids, other.row_ids) and np.array_equal(first.labels, other.labels)):
            raise WildRewardError(
                f"{other.uri!r} ({len(other.labels)} rows) holds other rows or labels than {first.uri!r} "
                f"({len(first.labels)} rows): they can't be compared"
            )
