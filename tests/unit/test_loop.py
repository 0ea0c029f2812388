"""The reward model's training loop: exact whatever the micro-batches, the workers and their layout, and where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from wildreward_ray.cluster.checkpoints import CheckpointStore, CheckpointWriter, fetch
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.train import ObjectiveSection, OptimSection, ParallelSection
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.reward.loop import NotFiniteError, StepRecord, Trainer, predict
from wildreward_ray.reward.ordinal import p_gt, score
from wildreward_ray.reward.parallel import Layout, World, lay_out
from wildreward_ray.reward.training_state import restore, training_state, whole_weights

K = 4
CPU = torch.device("cpu")


class FewRows:
    """Random rows whose first token tells the label."""

    def __init__(self, count: int, k: int = K, one_hot: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(1, k + 1, count)
        self._ids = [[10 + int(y), *rng.integers(20, 60, rng.integers(2, 12)).tolist()] for y in self.labels]
        self.lengths = np.array([len(i) for i in self._ids], dtype=np.int64)
        self.label_probs = np.eye(k, dtype=np.float32)[self.labels - 1] if one_hot else None
        self.users: NDArray[np.object_] | None = None

    def ids(self, row: int) -> Sequence[int]:
        return self._ids[row]


def tiny_model(dropout: float = 0.1) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=K - 1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def optim(**changes: object) -> OptimSection:
    return OptimSection.model_validate({"learning_rate": 1e-3, "global_batch": 8, "token_budget": 40, **changes})


def trainer_of(
    rows: FewRows,
    settings: OptimSection | None = None,
    *,
    world: World | None = None,
    strategy: str = "ddp",
    dropout: float = 0.1,
    epochs: int = 2,
    parts: int = 2,
    model: PreTrainedModel | None = None,
    **objective: object,
) -> Trainer:
    layout = lay_out(
        model or tiny_model(dropout), ParallelSection.model_validate({"strategy": strategy}), device=CPU, world=world
    )
    return Trainer(
        layout,
        "bert",
        rows,
        k=K,
        pad_token_id=0,
        epochs=epochs,
        optim=settings or optim(),
        objective=ObjectiveSection.model_validate(objective),
        seed=0,
        parts=parts,
    )


def flat(layout: Layout) -> torch.Tensor:
    return torch.cat([w.reshape(-1) for _, w in sorted(whole_weights(layout.module).items())] or [torch.zeros(0)])


def fit(rows: FewRows, settings: OptimSection | None = None, **options: Any) -> tuple[list[float], torch.Tensor]:
    losses: list[float] = []
    trainer = trainer_of(rows, settings, **options)
    trainer.run(lambda record: losses.append(record.loss))
    return losses, flat(trainer.layout)


def _joined(rank: int, size: int, folder: str) -> World:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    return World(rank, size)


def _fit_as_worker(rank: int, size: int, folder: str, strategy: str) -> None:
    world = _joined(rank, size, folder)
    losses, weights = fit(FewRows(30), world=world, strategy=strategy)
    if rank == 0:
        torch.save((losses, weights), f"{folder}/rank0.pt")
    _leave()


def _leave() -> None:
    # Together: a worker that is gone already can take another one's last message with it.
    dist.barrier()
    dist.destroy_process_group()


def spawn(target: Any, size: int, *arguments: Any) -> None:
    mp.spawn(target, args=(size, *arguments), nprocs=size)  # type: ignore[no-untyped-call,attr-defined]


@pytest.mark.parametrize(("size", "strategy"), [(2, "fsdp2"), (3, "ddp")])
def test_workers_make_the_losses_and_weights_of_one_with_dropout_on(size: int, strategy: str, tmp_path: Path) -> None:
    """Micro-batches don't depend on the workers, nor what dropout draws for them; 3 workers don't divide them evenly."""
    losses, weights = fit(FewRows(30))
    spawn(_fit_as_worker, size, str(tmp_path), strategy)
    shared_losses, shared_weights = torch.load(tmp_path / "rank0.pt")
    assert shared_losses == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(shared_weights, weights, atol=1e-4)


def test_the_token_budget_changes_neither_losses_nor_weights() -> None:
    losses, weights = fit(FewRows(30), optim(token_budget=1000), dropout=0.0)
    small_losses, small_weights = fit(FewRows(30), optim(token_budget=12), dropout=0.0)
    assert small_losses == pytest.approx(losses, abs=1e-4)
    assert torch.allclose(small_weights, weights, atol=1e-4)


@pytest.mark.parametrize("loss", ["cumulative", "corn"])
def test_soft_targets_that_are_certain_train_like_hard_labels(loss: str) -> None:
    hard = fit(FewRows(20), loss=loss)
    soft = fit(FewRows(20, one_hot=True), soft_targets=True, loss=loss)
    assert soft[0] == pytest.approx(hard[0], abs=1e-6)
    assert torch.allclose(soft[1], hard[1], atol=1e-6)


@pytest.mark.parametrize("loss", ["cumulative", "corn"])
def test_labels_that_the_input_tells_are_learnt(loss: Literal["cumulative", "corn"]) -> None:
    rows = FewRows(64)
    trainer = trainer_of(rows, optim(learning_rate=3e-3), epochs=25, loss=loss, dropout=0.0)
    trainer.run(lambda _: None)
    logits = predict(trainer.layout, rows, k=K, pad_token_id=0, token_budget=200)
    scores = score(p_gt(logits, decoder=loss))
    assert np.abs(scores - rows.labels).mean() < 0.3


def test_weights_of_rows_change_what_is_learnt_and_a_batch_of_equal_ones_is_a_mean() -> None:
    plain, _ = fit(FewRows(30), dropout=0.0)
    balanced, _ = fit(FewRows(30), dropout=0.0, class_weights="balanced")
    assert balanced != pytest.approx(plain, abs=1e-4)


def stopped_after(step: int, trainer: Trainer, store: CheckpointStore, world: World) -> None:
    """Train up to a step, write a checkpoint, and go on for one more step as a run does that is killed later."""
    group = dist.new_group(backend="gloo") if world.size > 1 else None
    writer = CheckpointWriter(store, rank=world.rank, size=world.size, group=group, keep=1)

    class KilledError(Exception):
        pass

    def note(record: StepRecord) -> None:
        if record.step == step:
            writer.save(step, lambda: training_state(trainer.layout.module, trainer.optimizer), {"step": step})
        if record.step == step + 1:
            raise KilledError

    with pytest.raises(KilledError):
        trainer.run(note, done=store.steps()[-1] if store.steps() else 0)
    writer.wait()


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    losses, weights = fit(FewRows(30))
    store = CheckpointStore(locate(str(tmp_path)))
    stopped_after(3, trainer_of(FewRows(30)), store, World())
    assert store.steps() == [3]
    later: list[float] = []
    trainer = trainer_of(FewRows(30))
    restore(trainer.layout.module, trainer.optimizer, fetch(store.folder(3), tmp_path))
    trainer.run(lambda record: later.append(record.loss), done=3)
    assert later == pytest.approx(losses[3:], abs=1e-6)
    assert torch.allclose(flat(trainer.layout), weights, atol=1e-6)


def _leg(rank: int, size: int, folder: str, strategy: str, stop: int | None) -> None:
    """One leg of a run: go on from the latest checkpoint; stop at a step, or finish and keep losses and weights."""
    Path(folder, f"leg{size}{stop}").mkdir(exist_ok=True)
    world = _joined(rank, size, f"{folder}/leg{size}{stop}") if size > 1 else World()
    store = CheckpointStore(locate(f"{folder}/checkpoints"))
    trainer = trainer_of(FewRows(30), world=world, strategy=strategy)
    done = store.steps()[-1] if store.steps() else 0
    if done:
        restore(trainer.layout.module, trainer.optimizer, fetch(store.folder(done), Path(folder)))
    if stop is not None:
        stopped_after(stop, trainer, store, world)
    else:
        losses: list[float] = []
        trainer.run(lambda record: losses.append(record.loss), done=done)
        weights = flat(trainer.layout)
        if rank == 0:
            torch.save((losses, weights), f"{folder}/end.pt")
    if size > 1:
        _leave()


def test_two_workers_then_one_then_two_end_where_one_that_was_left_alone_does(tmp_path: Path) -> None:
    """Shards, a whole copy, shards again: a checkpoint knows neither layout nor number."""
    losses, weights = fit(FewRows(30))
    (tmp_path / "checkpoints").mkdir()
    spawn(_leg, 2, str(tmp_path), "fsdp2", 2)
    _leg(0, 1, str(tmp_path), "ddp", 5)
    spawn(_leg, 2, str(tmp_path), "fsdp2", None)
    last_losses, last_weights = torch.load(tmp_path / "end.pt")
    assert last_losses == pytest.approx(losses[5:], abs=1e-4)
    assert torch.allclose(last_weights, weights, atol=1e-4)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(locate(str(tmp_path)))
    stopped_after(3, trainer_of(FewRows(30)), store, World())
    other = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    other.num_labels = K - 1
    trainer = trainer_of(FewRows(30), model=BertForSequenceClassification(other))
    with pytest.raises(StorageError, match=r"step-00000003.*doesn't fit") as caught:
        restore(trainer.layout.module, trainer.optimizer, fetch(store.folder(3), tmp_path))
    assert caught.value.flag == "--resume-from"


@pytest.mark.parametrize("labels", [np.array([], dtype=np.int64), np.array([2, 2, 2])])
def test_rows_that_teach_nothing_are_refused(labels: np.ndarray) -> None:
    rows = FewRows(len(labels))
    rows.labels = labels
    with pytest.raises(UserError, match="--dataset"):
        trainer_of(rows)


def test_a_loss_that_is_not_finite_stops_with_the_flag_and_leaves_the_weights() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("inf"))
    before = model.classifier.weight.detach().clone()
    trainer = trainer_of(FewRows(16), model=model)
    with pytest.raises(NotFiniteError, match=r"--optim\.learning-rate"):
        trainer.run(lambda _: None)
    assert torch.equal(model.classifier.weight, before)
