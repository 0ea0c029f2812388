"""The history column: made for a whole part at once, since a row's history repeats most of the one before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wildreward_ray.cluster.schema import MESSAGES


class Histories:
    """The history column, made of slices of conversations without a Python object a message and row."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._base = 0
        self._indices: list[npt.NDArray[np.int64]] = []
        self._offsets = [0]

    def add(self, messages: list[dict[str, Any]]) -> None:
        """The conversation that the next slices are of."""
        self._base = len(self._messages)
        self._messages += messages

    def take(self, first: int, last: int) -> None:
        """The next row's history: messages `first`..`last` - 1 of the conversation."""
        self._indices.append(np.arange(self._base + first, self._base + last))
        self._offsets.append(self._offsets[-1] + max(0, last - first))

    def array(self) -> pa.Array:
        """The column: `MESSAGES` of every row."""
        values = pa.array(self._messages, MESSAGES.value_type)
        indices = np.concatenate(self._indices) if self._indices else np.zeros(0, dtype=np.int64)
        return pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), values.take(pa.array(indices)))
