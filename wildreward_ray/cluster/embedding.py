"""Sentence embeddings: mean-pooled, length 1, so that a dot product is the cosine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.core.errors import UserError

_MAX_TOKENS = 256


class Embedder:
    """A transformers encoder that embeds texts in batches.

    Args:
        model: hub name, path or demo model.
        flag: the flag to name when it can't be loaded.
    """

    def __init__(self, model: str, *, flag: str, batch_size: int = 64, threads: int | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if threads is not None:
            torch.set_num_threads(threads)
        path = resolve_model(model, flag=flag)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            self._model = AutoModel.from_pretrained(path, use_safetensors=True).to(self._device).eval()
        except (OSError, ValueError) as e:
            raise UserError(
                f"can't load the embedding model {model!r}: {' '.join(str(e).split())[:300]}", flag=flag
            ) from e
        self._batch_size = batch_size

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors: float32 [N, D]. Texts are sorted by length inside, so that a batch pads little."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(order), self._batch_size):
            chosen = [texts[i] for i in order[start : start + self._batch_size]]
            inputs = self._tokenizer(chosen, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            inputs = inputs.to(self._device)
            with torch.inference_mode():
                hidden = self._model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            parts.append(torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy())
        if not parts:
            return np.zeros((0, 0), dtype=np.float32)
        result = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        result[order] = np.concatenate(parts)
        return result
