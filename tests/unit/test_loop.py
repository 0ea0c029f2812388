"""The reward model's training loop: exact whatever the micro-batches and the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from wildreward_ray.core.config.train import OptimSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.reward.loop import StepRecord, Trainer, World, predict

K = 4


class FewRows:
    """Random rows whose first token tells the label."""

    def __init__(self, count: int, k: int = K, one_hot: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(1, k + 1, count)
        self._ids = [[10 + int(y), *rng.integers(20, 60, rng.integers(2, 12)).tolist()] for y in self.labels]
        self.lengths = np.array([len(i) for i in self._ids], dtype=np.int64)
        self.label_probs = np.eye(k, dtype=np.float32)[self.labels - 1] if one_hot else None

    def ids(self, row: int) -> Sequence[int]:
        return self._ids[row]


def tiny_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=K - 1,
        # Dropout draws differ between workers; without it everything else must be equal.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def optim(**changes: object) -> OptimSection:
    return OptimSection.model_validate({"learning_rate": 1e-3, "global_batch": 8, "token_budget": 40, **changes})


def train(
    rows: FewRows, settings: OptimSection, world: World, *, soft: bool = False, epochs: int = 2
) -> tuple[list[float], torch.Tensor]:
    model = tiny_model()
    losses: list[float] = []

    def note(record: StepRecord) -> None:
        losses.append(record.loss)

    Trainer(model, rows, k=K, pad_token_id=0, epochs=epochs, optim=settings, seed=0, soft=soft, world=world).run(note)
    return losses, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def _worker(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    losses, weights = train(FewRows(30), optim(), World(rank, size))
    torch.save((losses, weights), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_make_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    losses, weights = train(FewRows(30), optim(), World())
    mp.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    for rank in range(2):
        shared_losses, shared_weights = torch.load(tmp_path / f"rank{rank}.pt")
        assert shared_losses == pytest.approx(losses, abs=1e-4)
        assert torch.allclose(shared_weights, weights, atol=1e-4)


def test_the_token_budget_changes_neither_losses_nor_weights() -> None:
    losses, weights = train(FewRows(30), optim(token_budget=1000), World())
    small_losses, small_weights = train(FewRows(30), optim(token_budget=12), World())
    assert small_losses == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(small_weights, weights, atol=1e-4)


def test_soft_targets_that_are_certain_train_like_hard_labels() -> None:
    hard = train(FewRows(20), optim(), World())
    soft = train(FewRows(20, one_hot=True), optim(), World(), soft=True)
    assert soft[0] == pytest.approx(hard[0], abs=1e-5)
    assert torch.allclose(soft[1], hard[1], atol=1e-5)


def test_labels_that_the_input_tells_are_learnt() -> None:
    rows = FewRows(64)
    model = tiny_model()
    Trainer(model, rows, k=K, pad_token_id=0, epochs=25, optim=optim(learning_rate=3e-3), seed=0).run(lambda _: None)
    score = 1 + predict(model, rows, k=K, pad_token_id=0, token_budget=200).sum(axis=1)
    assert np.abs(score - rows.labels).mean() < 0.3


@pytest.mark.parametrize("labels", [np.array([], dtype=np.int64), np.array([2, 2, 2])])
def test_rows_that_teach_nothing_are_refused(labels: np.ndarray) -> None:
    rows = FewRows(len(labels))
    rows.labels = labels
    with pytest.raises(UserError, match="--dataset"):
        Trainer(tiny_model(), rows, k=K, pad_token_id=0, epochs=1, optim=optim(), seed=0)


def test_a_loss_that_is_not_finite_stops_with_the_flag() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    trainer = Trainer(model, FewRows(16), k=K, pad_token_id=0, epochs=1, optim=optim(), seed=0)
    with pytest.raises(UserError, match=r"--optim\.learning-rate"):
        trainer.run(lambda _: None)
