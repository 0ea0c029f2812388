"""Scoring token ids with transformers: the reference that every other engine must agree with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.batching import token_batches
from wildreward_ray.reward.model import RewardCheckpoint


class TransformersScorer:
    """Runs a reward model over encoded inputs.

    Args:
        checkpoint: the model, which moves to `device`.
        device: a torch device, or `auto` for CUDA where there is one and the CPU otherwise.
        token_budget: padded tokens of one forward pass.

    Raises:
        UserError: the device does not exist here.
    """

    def __init__(self, checkpoint: RewardCheckpoint, *, device: str = "auto", token_budget: int = 8192) -> None:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        try:
            self.device = torch.device(name)
            self.model = checkpoint.model.to(self.device).eval()
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"device {name!r} can't be used: {str(e).splitlines()[0]}", flag="--device") from e
        self.pad_token_id = int(checkpoint.tokenizer.pad_token_id)
        self.token_budget = token_budget
        self.thresholds = checkpoint.config.levels - 1

    def logits(self, inputs: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of every input, in input order.

        Args:
            inputs: token ids as `InputEncoder` makes them.

        Returns:
            [N, k-1] float32. Not checked for NaN here: `ordinal.p_gt` does, and raises.
        """
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        if len(lengths) and int(lengths.min()) == 0:
            raise ValueError(f"input {int(lengths.argmin())} has no tokens")
        result = np.full((len(inputs), self.thresholds), np.nan, dtype=np.float32)
        for rows in token_batches(np.arange(len(inputs), dtype=np.int64), lengths, self.token_budget):
            result[rows] = self._forward([inputs[row] for row in rows])
        return result

    @torch.inference_mode()
    def _forward(self, batch: list[Sequence[int]]) -> NDArray[np.float32]:
        input_ids, attention_mask = pad_right(batch, self.pad_token_id)
        output = self.model(input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device))
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits


def pad_right(batch: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as (input_ids, attention_mask), both [B, T] int64 with T the longest row, padded on the right."""
    width = max(len(ids) for ids in batch)
    input_ids = torch.full((len(batch), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask
