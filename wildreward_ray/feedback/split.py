"""Assigning rows to train or test so that nothing leaks: whole users stay on one side."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "test"]


def assign(key: str, *, test_share: float, salt: str) -> Split:
    """The side that `key` (a user, or a conversation where the log names no user) belongs to.

    A salted hash decides: the side never depends on what else is in the corpus, so it stays the same as the corpus grows.

    Args:
        test_share: expected share of keys on the test side, in [0, 1].
    """
    digest = hashlib.blake2b(f"{salt}\x00{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "test" if int.from_bytes(digest) / 2**64 < test_share else "train"
