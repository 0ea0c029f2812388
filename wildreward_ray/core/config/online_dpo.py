"""Settings of `wildreward online-dpo`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.judge import EngineSection
from wildreward_ray.core.config.train import LoraSection, ParallelSection, TrackingSection

# What may differ when a run goes on: it changes where and how fast it runs, or how far, and not what is learnt from.
OPERATIONAL = frozenset(
    {
        "output",
        "overwrite",
        "steps",
        "reward_url",
        "reward.timeout_s",
        "reward.retries",
        "reward.concurrency",
        "reward.token_env",
        "reward.max_unscored",
        "eval.second_reward_url",
        "eval.second_token_env",
        "rollout.replicas",
        "rollout.max_restarts",
        "rollout.num_cpus",
        "rollout.num_gpus",
        "learner.workers",
        "learner.micro_pairs",
        "learner.num_cpus",
        "learner.num_gpus",
        "learner.cpu_threads",
        "learner.parallel.strategy",
        "learner.parallel.compile",
        "learner.parallel.activation_checkpointing",
        "service.replicas",
        "service.num_cpus",
        "service.num_gpus",
        "placement.mode",
        "placement.timeout_s",
        "weights",
        "checkpoint.every",
        "checkpoint.keep",
        "tracking.kinds",
        "tracking.experiment",
    }
)


class RolloutSection(Section):
    """Sampling from the policy."""

    samples: int = Field(8, ge=2, description="replies sampled for each prompt")
    max_tokens: int = Field(512, ge=1, description="longest reply in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus share")
    reasoning_end: str | None = Field(
        "</think>",
        description="what ends a reply's reasoning: the reward model reads only what follows it; null: the whole reply",
    )
    replicas: int = Field(1, ge=1, description="rollout actors, each with an engine of its own")
    max_restarts: int = Field(
        3, ge=-1, description="lost rollout actors that are replaced before the run stops; -1: any number"
    )
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs a rollout actor holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs a rollout actor holds; tensor parallel needs as many")
    engine: EngineSection = Field(default_factory=EngineSection)


class LearnerSection(Section):
    """The policy's update."""

    learning_rate: float = Field(5e-7, gt=0, description="learning rate")
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference")
    loss: Literal["sigmoid", "ipo"] = Field("sigmoid", description="sigmoid (DPO) or ipo")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of pairs in the wrong order (sigmoid loss)"
    )
    length_normalized: bool = Field(
        False, description="compare log-probabilities per token instead of summed over the reply"
    )
    nll_weight: float = Field(
        0.0, ge=0, description="weight of the chosen reply's negative log-likelihood per token, added to the loss"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    micro_pairs: int = Field(4, ge=1, description="pairs in one forward and backward pass of a worker")
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises linearly")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of activations; weights and optimizer stay float32"
    )
    workers: int = Field(1, ge=1, description="learner actors that share the pairs of a step")
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs a learner actor holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs a learner actor holds")
    cpu_threads: int | None = Field(None, ge=1, description="threads of a CPU learner; default: all cores of its node")


class PlacementSection(Section):
    """Where the actors run."""

    mode: Literal["separate", "colocated"] = Field(
        "separate",
        description="separate: actors have devices of their own; colocated: a rollout actor and a learner take turns on a GPU",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="longest wait for the cluster to provide what the actors hold, in seconds"
    )


class PairSection(Section):
    """Which samples become a preference pair."""

    min_margin: float = Field(0.0, ge=0, description="least reward gap between the best and the worst sample")
    min_accuracy: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="least probability, by the reward model's own level probabilities, that the best sample is the better one",
    )
    eos: Literal["keep", "penalise", "exclude"] = Field(
        "keep", description="what becomes of samples that max_tokens cut off"
    )
    eos_penalty: float = Field(1.0, gt=0, description="reward taken from a sample without an end, with `penalise`")
    max_similarity: float = Field(
        0.95, gt=0, le=1, description="best and worst that share more than this of their words are no pair"
    )
    length_penalty: float = Field(
        0.0, ge=0, description="reward taken for every 100 tokens of a sample, against rewards that grow with length"
    )


class RewardClientSection(Section):
    """How rewards are asked for."""

    protocol: Literal["native", "get_reward", "classify", "rm", "score_evaluation", "predict"] = Field(
        "native",
        description="what the service speaks: native (/v1/score), get_reward (WildReward, OpenRLHF), classify (verl, vLLM), "
        "rm (slime), score_evaluation (LLaMA-Factory), predict (TEI)",
    )
    path: str | None = Field(None, description="path below the service's URL; default: the protocol's own")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one reply of the service")
    retries: int = Field(6, ge=0, description="retries of a request that may succeed later")
    concurrency: int = Field(8, ge=1, description="requests in flight")
    token_env: str | None = Field(None, description="environment variable with the service's bearer token")
    max_unscored: float = Field(
        0.5, ge=0, le=1, description="share of a step's prompts that may stay without rewards before the run stops"
    )


class OwnServiceSection(Section):
    """The reward service that `reward_model` starts for the length of the run."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="auto: vllm for decoders where it is installed, else transformers"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of weights and activations")
    replicas: int = Field(1, ge=1, description="engine replicas")
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs an engine replica holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs an engine replica holds")


class EvalSection(Section):
    """Comparing the policy with its start on held-out prompts."""

    prompts: int = Field(8, ge=0, description="prompts held out; 0: none")
    every: int = Field(
        0, ge=0, description="steps between evaluations, beside those before the first and after the last"
    )
    second_reward_url: str | None = Field(
        None,
        description="another reward service (native protocol) that judges evaluations only, to notice a policy that games the first",
    )
    second_token_env: str | None = Field(
        None, description="environment variable with the second service's bearer token"
    )


class AlarmSection(Section):
    """What a run warns of, or stops at."""

    max_kl: float | None = Field(
        None, gt=0, description="limit of the KL divergence from the reference, in nats a reply, on held-out prompts"
    )
    kl_action: Literal["warn", "stop", "raise_beta"] = Field(
        "stop", description="beyond max_kl: warn, stop with a whole policy, or pull harder to the reference"
    )
    beta_factor: float = Field(2.0, gt=1, description="factor on beta each time `raise_beta` acts")
    max_length_ratio: float | None = Field(
        2.0, gt=1, description="warn where held-out replies are longer or shorter than at the start by this factor"
    )


class RunCheckpointSection(Section):
    """Saving the state of the run, so that it can go on."""

    every: int = Field(50, ge=1, description="steps between checkpoints; samples in flight are finished first")
    keep: int = Field(1, ge=1, description="latest checkpoints that are kept")


class OnlineDpoConfig(Section):
    """Prompts and a reward in, better policy out."""

    policy: str = Field(description="policy to improve: hub name, path, or demo:smollm2")
    reward_url: str | None = Field(None, description="base URL of a running reward service")
    reward_model: str | None = Field(None, description="reward model to serve for the length of the run")
    prompts: str = Field(description="JSONL, Parquet or extracted dataset with `prompt` or `messages`")
    output: str = Field(description="directory the policy and the run's records are written to")
    steps: int = Field(100, ge=1, description="optimizer steps")
    prompts_per_step: int = Field(64, ge=1, description="prompts sampled at each step")
    staleness: int = Field(
        1,
        ge=0,
        le=8,
        description="steps that the sampling weights may lag behind; 0: strictly on-policy, sampling waits for learning",
    )
    limit: int | None = Field(None, ge=1, description="use at most this many prompts")
    system_prompt: str | None = Field(None, description="system message put before every prompt that has none")
    max_prompt_tokens: int = Field(1024, ge=8, description="longer prompts are left out and counted")
    weights: Literal["auto", "nccl", "ipc", "reload"] = Field(
        "auto",
        description="how weights reach the engines: nccl or ipc (GPU), reload (object store); auto: ipc if colocated, nccl on GPUs",
    )
    seed: int = Field(0, description="seed of prompt order and sampling")
    trust_remote_code: bool = Field(False, description="run model code that comes with the policy")
    overwrite: bool = Field(False, description="replace a whole run that stands at the output, or another run's work")
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    placement: PlacementSection = Field(default_factory=PlacementSection)
    pairs: PairSection = Field(default_factory=PairSection)
    reward: RewardClientSection = Field(default_factory=RewardClientSection)
    service: OwnServiceSection = Field(default_factory=OwnServiceSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    alarms: AlarmSection = Field(default_factory=AlarmSection)
    checkpoint: RunCheckpointSection = Field(default_factory=RunCheckpointSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _one_reward(self) -> OnlineDpoConfig:
        if (self.reward_url is None) == (self.reward_model is None):
            raise ValueError("exactly one of --reward-url and --reward-model is needed")
        if self.pairs.min_accuracy is not None and self.reward.protocol != "native":
            raise ValueError("pairs.min_accuracy needs level probabilities, which only reward.protocol native gives")
        if self.placement.mode == "colocated":
            if self.staleness:
                raise ValueError("colocated actors take turns: placement.mode colocated needs staleness 0")
            if self.rollout.replicas != self.learner.workers:
                raise ValueError("placement.mode colocated needs as many rollout.replicas as learner.workers")
        return self
