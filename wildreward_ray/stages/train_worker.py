"""What one Ray Train worker does: set up, find where to go on, train, save, evaluate, export."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wildreward_ray.cluster.checkpoints import CheckpointStore, CheckpointWriter, fetch, read_info
from wildreward_ray.cluster.models import resolve_model
from wildreward_ray.cluster.storage import Location, first_line
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.reward.adapters import add_adapters
from wildreward_ray.reward.loop import NotFiniteError, StepRecord, Trainer, predict
from wildreward_ray.reward.metrics import ordinal_metrics
from wildreward_ray.reward.model import load_base
from wildreward_ray.reward.parallel import World, lay_out
from wildreward_ray.reward.training_state import restore, training_state
from wildreward_ray.stages.token_rows import TokenRows, build
from wildreward_ray.stages.train_export import Finished, export
from wildreward_ray.stages.train_job import Job, best_step, frozen_bf16, resume_folder


class _StoppedError(Exception):
    """The run was told to stop; the checkpoint of this step is whole."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def work(loop_config: dict[str, Any]) -> None:
    """A Ray Train worker from its start to its end; Ray Train starts it again after a loss, and it goes on where it was."""
    import ray.train

    job: Job = loop_config["job"]
    try:
        with shared_rows(job) as (train, test):
            _Worker(job, train, test).run()
    except Exception as e:
        if isinstance(e, UserError) and not isinstance(e, StorageError):
            # All workers find the same fault; starting them again would only find it again.
            ray.get(job.mailbox.fail.remote(e))
            return
        # Ray Train starts the workers again and keeps the reason to itself.
        rank = ray.train.get_context().get_world_rank()
        ray.get(job.mailbox.post.remote("lost", {"rank": rank, "reason": first_line(e) or type(e).__name__}))
        raise


@contextmanager
def shared_rows(job: Job) -> Iterator[tuple[TokenRows, TokenRows]]:
    """Training and held-out rows, mapped from one file a node; the files vanish with the last worker that maps them."""
    import ray.train

    context = ray.train.get_context()
    folder = Path(tempfile.gettempdir()) / f"wildreward-rows-{job.run_id}"
    first = context.get_local_rank() == 0
    try:
        if first:
            folder.mkdir(exist_ok=True)
            for name, source in (("train", job.train), ("test", job.test)):
                build(source, folder / f"{name}.arrow")
        _barrier()
        rows = TokenRows(folder / "train.arrow", job.config.limit), TokenRows(folder / "test.arrow")
        _barrier()
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
    yield rows


class _Worker:
    """One worker's share of a run."""

    def __init__(self, job: Job, train: TokenRows, test: TokenRows) -> None:
        import ray.train

        context = ray.train.get_context()
        self.job, self.config, self.test = job, job.config, test
        self.world = World(context.get_world_rank(), context.get_world_size())
        threads = max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
        torch.set_num_threads(self.config.cpu_threads or threads)
        self.k = job.reward.levels
        self.store = CheckpointStore(job.checkpoints)
        group = dist.new_group(backend="gloo") if self.world.size > 1 else None
        self.writer = CheckpointWriter(
            self.store, rank=self.world.rank, size=self.world.size, group=group, keep=self.config.checkpoint.keep
        )
        self.curve: list[dict[str, Any]] = []
        self.evals: list[dict[str, Any]] = []
        self._warned: list[str] = []
        # What the driver's mailbox will say to a letter: whether the run is to stop.
        self._answer: Any = None
        # When each step of this start ended, and its tokens.
        self._pace: list[tuple[float, int]] = []
        found = self._latest()
        self.parts = int(found[1]["parts"]) if found else self.config.workers[1]
        self.trainer, self.tokenizer = self._trainer(train)
        self.every = self.config.eval.every or self.trainer.steps_per_epoch
        self.done = self._go_on(*found) if found else 0

    def run(self) -> None:
        """Train to the end and write the model."""
        start = {"done": self.done, "total": self.trainer.total_steps, "workers": self.world.size}
        self._post("start", start)
        try:
            self.trainer.run(self._step, done=self.done)
        except NotFiniteError as e:
            raise self._with_last_good(e) from e
        except _StoppedError as e:
            self._post("left", {"step": e.step, "total": self.trainer.total_steps})
            return
        self.writer.wait()
        chosen = self._choose()
        logits = self._predict()
        finished = Finished(
            trainer=self.trainer,
            test=self.test,
            logits=logits,
            curve=self.curve,
            evals=self.evals,
            chosen_step=chosen,
            stalls=self.writer.stalls,
            pace=self._pace,
        )
        export(self.config, self.job.reward, self.job.model, self.tokenizer, finished)

    def _trainer(self, train: TokenRows) -> tuple[Trainer, Any]:
        config = self.config
        model, tokenizer = load_base(
            resolve_model(config.base, flag="--base"),
            self.k,
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
            dtype="bfloat16" if frozen_bf16(config) else "float32",
            attn_implementation=None if config.parallel.attention == "auto" else config.parallel.attention,
        )
        body = model.base_model_prefix
        torch.manual_seed(config.seed)  # adapters are drawn at random, on all workers alike
        module = add_adapters(model, config.lora) if config.lora.rank else model
        layout = lay_out(
            module,
            config.parallel,
            device=torch.device("cuda" if config.num_gpus else "cpu"),
            bf16=config.precision == "bfloat16",
            world=self.world,
        )
        trainer = Trainer(
            layout,
            body,
            train,
            k=self.k,
            pad_token_id=tokenizer.pad_token_id,
            epochs=config.epochs,
            optim=config.optim,
            objective=config.objective,
            seed=config.seed,
            parts=self.parts,
        )
        return trainer, tokenizer

    def _latest(self) -> tuple[Location, dict[str, Any]] | None:
        """The checkpoint to go on from, as rank 0 finds it, and what stands beside it."""
        found: list[Any] = [None]
        if self.world.rank == 0:
            steps = self.store.steps()
            if steps:
                found = [(self.store.folder(steps[-1]), self.store.info(steps[-1]))]
            elif self.config.resume_from:
                folder = resume_folder(self.config.resume_from, self.job.fingerprint)
                found = [(folder, {**read_info(folder), "foreign": True})]
        if self.world.size > 1:
            dist.broadcast_object_list(found)
        latest: tuple[Location, dict[str, Any]] | None = found[0]
        return latest

    def _go_on(self, folder: Location, info: dict[str, Any]) -> int:
        """Load a checkpoint. Returns the number of steps behind it."""
        self._load(folder)
        self.curve, self.evals = info.get("curve", []), info.get("evals", [])
        if info.get("foreign"):
            # Another run's best may have been kept elsewhere.
            self.evals = []
        return int(info["step"])

    def _step(self, record: StepRecord) -> None:
        """Called on every worker after every step: evaluation and checkpoints are done by all together."""
        self._pace.append((time.monotonic(), record.tokens))
        entry = asdict(record)
        self.curve.append(entry)
        self._post("step", {**entry, "total": self.trainer.total_steps})
        last = record.step == self.trainer.total_steps
        best = (record.step % self.every == 0 or last) and self._evaluate(record.step)
        leaving, stopping = self._leaving(), self._stopping()
        if last or best or leaving or stopping or record.step % self.config.checkpoint.every == 0:
            self._save(record.step, best=best)
            if leaving or stopping:
                self.writer.wait()
        if stopping:
            raise _StoppedError(record.step)

    def _save(self, step: int, *, best: bool) -> None:
        info: dict[str, Any] = {}
        if self.world.rank == 0:
            info = {
                "step": step,
                "best": best,
                "parts": self.parts,
                "workers": self.world.size,
                "strategy": self.config.parallel.strategy,
                "fingerprint": self.job.fingerprint,
                "curve": self.curve,
                "evals": self.evals,
            }
        layout = self.trainer.layout
        self.writer.save(step, lambda: training_state(layout.module, self.trainer.optimizer), info)

    def _evaluate(self, step: int) -> bool:
        """Measure the held-out rows. Returns whether they chose this step's weights so far."""
        if not len(self.test.labels):
            return False
        p_gt = self.job.reward.p_gt(self._predict())
        entry = {"step": step, **ordinal_metrics(p_gt, self.test.labels, self.k)}
        self.evals.append(entry)
        self._post("eval", entry)
        return best_step(self.evals, self.config.checkpoint.best) == step

    def _predict(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return predict(
            self.trainer.layout,
            self.test,
            k=self.k,
            pad_token_id=int(self.tokenizer.pad_token_id),
            token_budget=self.config.optim.token_budget,
        )

    def _leaving(self) -> bool:
        """Whether a node that takes part has just been given notice that it will be taken away."""
        import ray.train

        notice = ray.train.get_preemption_info()
        nodes = [] if notice is None else notice.preempted_node_ids
        if set(nodes) <= set(self._warned):
            return False
        self._warned = nodes
        return True

    def _stopping(self) -> bool:
        """Whether the driver was told to stop. It may have reached rank 0 alone, and all leave after the same step."""
        import ray

        told = 0.0
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            told, self._answer = float(ray.get(self._answer)), None
        return float(self.world.sum(torch.tensor(told, device=self.trainer.layout.device))) > 0

    def _choose(self) -> int:
        """Go back to the best weights where that is asked for. Returns the step whose weights are to be written."""
        best = best_step(self.evals, self.config.checkpoint.best)
        last = self.trainer.total_steps
        if best is None or best == last:
            return last
        self._load(self.store.folder(best))
        return best

    def _load(self, folder: Location) -> None:
        """Load weights and moments on all workers, from one copy a node."""
        import ray.train

        scratch = Path(tempfile.gettempdir()) / f"wildreward-checkpoint-{self.job.run_id}"
        first = ray.train.get_context().get_local_rank() == 0
        try:
            if first:
                fetch(folder, scratch)
            _barrier()
            restore(self.trainer.layout.module, self.trainer.optimizer, folder.path if folder.is_local else scratch)
            _barrier()
        finally:
            if first:
                shutil.rmtree(scratch, ignore_errors=True)

    def _with_last_good(self, error: NotFiniteError) -> UserError:
        self.writer.wait()
        steps = self.store.steps()
        if not steps and not self.config.resume_from:
            return UserError(f"{error.problem}, before the first checkpoint", flag=error.flag, hint=error.hint)
        good = self.store.folder(steps[-1]).uri if steps else self.config.resume_from
        return UserError(
            f"{error.problem}; the last good checkpoint is {good}",
            flag=error.flag,
            hint="go on from it into another --output with --resume-from, and lower",
        )

    def _post(self, kind: str, letter: dict[str, Any]) -> None:
        if self.world.rank == 0:
            answer = self.job.mailbox.post.remote(kind, letter)
            # The one before may not be there yet: asked for too late, none would ever be.
            self._answer = answer if self._answer is None else self._answer


def _barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
