"""TRL's side of `bench online-dpo`: its online DPO trainer on the same prompts, in a process of its own, timed step by step.

TRL samples two replies a prompt with transformers' `generate`, asks a function for their rewards, makes a pair of every prompt
and takes an optimizer step (https://huggingface.co/docs/trl/online_dpo_trainer). Gradient checkpointing, which TRL turns on of
itself, is off: with it TRL samples without a key-value cache, and memory is not what is measured.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wildreward_ray.core.errors import UserError, WildRewardError

if TYPE_CHECKING:
    from wildreward_ray.core.template import Message

_FLAG = "--online-dpo.parts"
_HINT = "install the `bench` extra, or leave `trl` out"


@dataclass(frozen=True)
class TrlRun:
    """What TRL is asked to do.

    Attributes:
        policy: hub name, path, or demo model.
        batches: the prompts of every step, each the messages that end with the user's.
        reward_url: base URL of a reward service.
        max_tokens: longest reply.
        max_length: longest prompt and reply together, in tokens; TRL cuts longer ones on the left.
        precision: type of activations while TRL learns; weights and optimizer are float32.
        threads: of torch.
    """

    policy: str
    batches: Sequence[Sequence[Sequence[Message]]]
    reward_url: str
    max_tokens: int
    max_length: int
    temperature: float
    learning_rate: float
    beta: float
    clip_norm: float
    precision: Literal["float32", "bfloat16"]
    seed: int
    threads: int


@dataclass(frozen=True)
class TrlResult:
    """What came of it.

    Attributes:
        version: of TRL.
        step_seconds: of every optimizer step, from the end of the one before to its own.
    """

    version: str
    step_seconds: list[float]


def check_trl() -> None:
    """Return if TRL is installed.

    Raises:
        UserError: it isn't.
    """
    if importlib.util.find_spec("trl") is None:
        raise UserError("TRL is not installed", flag=_FLAG, hint=_HINT)


def train(run: TrlRun) -> TrlResult:
    """Train with TRL. Call it in a fresh process: it sets what libraries read once, when they are loaded.

    Raises:
        UserError: TRL can't be imported.
        WildRewardError: it did not take the steps that it was asked for, or the reward service failed.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = str(run.threads)
    # A measurement reports to nobody; and TRL says of every import that this part of it may change.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    try:
        import trl
        from trl.experimental.online_dpo import OnlineDPOTrainer
    except ImportError as e:
        raise UserError(f"TRL can't be imported: {' '.join(str(e).split())[:300]}", flag=_FLAG, hint=_HINT) from e
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wildreward_ray.cluster.models import resolve_model
    from wildreward_ray.cluster.reward_client import RewardClient

    torch.set_num_threads(run.threads)
    path = resolve_model(run.policy, flag="--online-dpo.policy")
    policy = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    prompts = [{"prompt": [dict(m) for m in messages]} for batch in run.batches for messages in batch]
    clock = _clock()
    with tempfile.TemporaryDirectory() as folder, RewardClient(run.reward_url) as client:
        trainer = OnlineDPOTrainer(
            model=policy,
            reward_funcs=rewards_from(client.score),
            args=_settings(run, folder),
            train_dataset=Dataset.from_list(prompts),
            processing_class=AutoTokenizer.from_pretrained(path),
            callbacks=[clock],
        )
        trainer.train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    if len(seconds) != len(run.batches):
        raise WildRewardError(f"TRL {trl.__version__} took {len(seconds)} steps instead of {len(run.batches)}")
    return TrlResult(trl.__version__, seconds)


def rewards_from(score: Callable[[Sequence[dict[str, Any]]], Sequence[Any]]) -> Callable[..., list[float]]:
    """A reward function as TRL calls it, which asks `score` for one reward a conversation."""

    def reward(prompts: Sequence[Sequence[Message]], completions: Sequence[Sequence[Message]], **_: Any) -> list[float]:
        items = [
            {
                "history": [dict(m) for m in messages[:-1]],
                "prompt": messages[-1]["content"],
                "response": reply[0]["content"],
            }
            for messages, reply in zip(prompts, completions, strict=True)
        ]
        return [float(found.score) for found in score(items)]

    return reward


def _settings(run: TrlRun, folder: str) -> Any:
    from trl.experimental.online_dpo import OnlineDPOConfig

    return OnlineDPOConfig(
        output_dir=folder,
        max_steps=len(run.batches),
        per_device_train_batch_size=len(run.batches[0]),
        train_sampling_strategy="sequential",
        max_new_tokens=run.max_tokens,
        max_length=run.max_length,
        temperature=run.temperature,
        beta=[run.beta],
        learning_rate=run.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=run.clip_norm,
        bf16=run.precision == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=run.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _clock() -> Any:
    """A callback that notes in `ends` when training began and when each optimizer step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]  # the base class is untyped
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    return Clock()
