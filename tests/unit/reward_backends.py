"""Reward backends for tests of the HTTP application: a real tiny model, and answers made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.core.service import Input, ModelCard, RequestRecord, Reward, Scored, ServiceError
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.model import save_checkpoint
from wildreward_ray.stages.scoring import Scorer, load_scorer
from wildreward_ray.stages.serve_http import RewardHttp

CARD = ModelCard(
    id="tiny",
    source="/models/tiny",
    version="v1",
    engine="transformers",
    levels=4,
    max_length=512,
    dtype="float32",
    calibrated=False,
    created=1_700_000_000,
)
GOOD = Reward(2.5, [0.25, 0.25, 0.25, 0.25], [0.75, 0.5, 0.25])
Answer = Callable[[Sequence[Input]], Any]


class HandMade:
    """A backend whose answers a test makes: `answer` gives rewards or raises; `seconds` pass before it does."""

    def __init__(self, answer: Answer | None = None, *, seconds: float = 0.0, **settings: Any) -> None:
        self.config = ServeConfig(model="/models/tiny", model_name="tiny", **settings)
        self.asked: list[Sequence[Input]] = []
        self.cancelled = 0
        self._answer, self._seconds = answer, seconds

    def card(self) -> ModelCard:
        return CARD

    async def score(self, inputs: Sequence[Input]) -> Scored:
        self.asked.append(inputs)
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        rewards = [GOOD] * len(inputs) if self._answer is None else self._answer(inputs)
        return Scored(rewards, CARD, 7 * len(inputs))

    async def check(self) -> None:
        if self._answer is not None:
            self._answer(())


class OfModel(HandMade):
    """A backend with a real model behind it, which it runs where it is asked."""

    def __init__(self, scorer: Scorer, **settings: Any) -> None:
        super().__init__(None, **settings)
        self.scorer = scorer

    async def score(self, inputs: Sequence[Input]) -> Scored:
        encoder = self.scorer.encoder
        ids = [encoder.encode_text(one) if isinstance(one, str) else encoder.encode(*one) for one in inputs]
        if [] in ids:
            raise ServiceError(422, "no_tokens", "the text is empty to the model's tokenizer", item=ids.index([]))
        rewards = []
        for one in self.scorer.score_each(ids):
            if isinstance(one, RewardUnavailableError):
                raise one
            rewards.append(Reward(float(one.score[0]), one.level_probs[0].tolist(), one.p_gt[0].tolist()))
        return Scored(rewards, CARD, sum(map(len, ids)))


def tiny_scorer(folder: Path) -> Scorer:
    """A random decoder of four levels over bytes: any text has tokens, and other texts have other rewards."""
    letters = ["</s>", *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CARD.max_length,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        num_labels=CARD.levels - 1,
        problem_type="multi_label_classification",
    )
    reward = RewardConfig(levels=CARD.levels, template=DEFAULT_TEMPLATE, max_length=CARD.max_length)
    save_checkpoint(LlamaForSequenceClassification(config), tokenizer, reward, str(folder))
    return load_scorer(ServeConfig(model=str(folder), engine="transformers", cpu_threads=1))


class Watch:
    """A request observer that keeps everything."""

    def __init__(self) -> None:
        self.began_count = 0
        self.records: list[RequestRecord] = []

    def began(self) -> None:
        self.began_count += 1

    def ended(self, record: RequestRecord) -> None:
        self.records.append(record)


def ask(
    app: RewardHttp,
    method: str,
    path: str,
    *,
    body: Any = b"",
    json: Any = None,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """One request to the application, in this process."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            if json is not None:
                return await client.request(method, path, json=json, headers=headers)
            return await client.request(method, path, content=body, headers=headers)

    return asyncio.run(send())
