"""Settings of `wildreward online-dpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.judge import EngineSection


class RolloutSection(Section):
    """Sampling from the policy."""

    samples: int = Field(8, ge=2, description="replies sampled for each prompt")
    max_tokens: int = Field(512, ge=1, description="longest reply in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus share")
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs the rollout actor holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs the rollout actor holds")
    engine: EngineSection = Field(default_factory=EngineSection)


class LearnerSection(Section):
    """The policy's update."""

    learning_rate: float = Field(5e-7, gt=0, description="learning rate")
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference")
    loss: Literal["sigmoid", "ipo"] = Field("sigmoid", description="sigmoid (DPO) or ipo")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of pairs in the wrong order (sigmoid loss)"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    micro_pairs: int = Field(4, ge=1, description="pairs in one forward and backward pass")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises linearly")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of activations; weights and optimizer stay float32"
    )
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs the learner holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs the learner holds")
    cpu_threads: int | None = Field(None, ge=1, description="threads of a CPU learner; default: all cores of its node")


class PairSection(Section):
    """Which samples become a preference pair."""

    min_margin: float = Field(0.0, ge=0, description="least reward gap between the best and the worst sample")
    require_eos: bool = Field(False, description="leave out samples that were cut off by max_tokens")


class RewardClientSection(Section):
    """How rewards are asked for."""

    timeout_s: float = Field(60.0, gt=0, description="longest wait for one reply of the service")
    retries: int = Field(6, ge=0, description="retries of a request that may succeed later")
    concurrency: int = Field(8, ge=1, description="requests in flight")
    token_env: str | None = Field(None, description="environment variable with the service's bearer token")


class OnlineDpoConfig(Section):
    """Prompts and a reward in, better policy out."""

    policy: str = Field(description="policy to improve: hub name, path, or demo:smollm2")
    reward_url: str | None = Field(None, description="base URL of a running reward service")
    reward_model: str | None = Field(None, description="reward model to serve for the length of the run")
    prompts: str = Field(description="JSONL, Parquet or extracted dataset with `prompt` or `messages`")
    output: str = Field(description="directory the policy and the run's records are written to")
    steps: int = Field(100, ge=1, description="optimizer steps")
    prompts_per_step: int = Field(64, ge=1, description="prompts sampled at each step")
    limit: int | None = Field(None, ge=1, description="use at most this many prompts")
    system_prompt: str | None = Field(None, description="system message put before every prompt that has none")
    eval_prompts: int = Field(8, ge=0, description="prompts held out to compare the policy before and after")
    max_prompt_tokens: int = Field(1024, ge=8, description="longer prompts are left out and counted")
    seed: int = Field(0, description="seed of prompt order and sampling")
    trust_remote_code: bool = Field(False, description="run model code that comes with the policy")
    overwrite: bool = Field(False, description="replace a whole run that stands at the output")
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    pairs: PairSection = Field(default_factory=PairSection)
    reward: RewardClientSection = Field(default_factory=RewardClientSection)

    @model_validator(mode="after")
    def _one_reward(self) -> OnlineDpoConfig:
        if (self.reward_url is None) == (self.reward_model is None):
            raise ValueError("exactly one of --reward-url and --reward-model is needed")
        return self
