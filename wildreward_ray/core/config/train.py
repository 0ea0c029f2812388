"""Settings of `wildreward train`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from wildreward_ray.core.config.base import Section, number_or_range, ordered_range

# Metrics of the held-out rows that can choose a checkpoint, and whether more is better.
SELECTABLE = {
    "mae": False,
    "rmse": False,
    "ece": False,
    "nll": False,
    "accuracy": True,
    "quadratic_kappa": True,
    "spearman": True,
    "auc": True,
}
# Settings of where and how fast a run trains. They don't change what is learnt, so they may differ when it is resumed.
OPERATIONAL = frozenset(
    {
        "output",
        "overwrite",
        "workers",
        "num_cpus",
        "num_gpus",
        "cpu_threads",
        "tracking.kinds",
        "tracking.experiment",
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.keep_at_end",
        "max_failures",
        "resize_interval_s",
        "parallel.strategy",
        "parallel.compile",
        "parallel.activation_checkpointing",
        # A run that ran out of memory goes on with less; only what dropout draws changes.
        "optim.token_budget",
    }
)


class ObjectiveSection(Section):
    """What is learnt from a row, and how much a row counts."""

    loss: Literal["cumulative", "corn"] = Field(
        "cumulative",
        description="cumulative: logit j is that of P(level > j), as the paper has it; corn: of P(level > j) given level > j-1",
    )
    soft_targets: bool = Field(False, description="train on the judge's probabilities instead of its most likely level")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a row's target that is spread over all levels"
    )
    monotonicity: float = Field(
        0.0, ge=0, description="weight of a penalty on P(level > j+1) exceeding P(level > j); cumulative loss only"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every level has the same total weight"
    )
    user_weights: Literal["none", "sqrt", "equal"] = Field(
        "none", description="total weight of a user of n rows: n for none, the square root of n for sqrt, one for equal"
    )
    confidence_weights: bool = Field(
        False, description="a row counts as much as the judge was sure: one minus its normalised entropy"
    )

    @model_validator(mode="after")
    def _penalty_has_something_to_penalise(self) -> ObjectiveSection:
        if self.monotonicity and self.loss == "corn":
            raise ValueError("corn's probabilities are monotone by construction: leave objective.monotonicity at 0")
        return self


class OptimSection(Section):
    """Optimisation. Batches are counted in instances over all workers."""

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    head_learning_rate: float | None = Field(
        None, gt=0, description="peak rate of the new head; default: learning_rate"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay, not on biases and norms")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of steps in which the rate rises linearly")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="how the rate falls after warm-up")
    global_batch: int = Field(512, ge=1, description="instances an optimizer step, over all workers")
    token_budget: int = Field(8192, ge=1, description="padded tokens a micro-batch")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")


class ParallelSection(Section):
    """How the model is laid out over workers and devices."""

    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp: every worker holds the model; fsdp2: weights, gradients and optimizer are sharded"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations of the layers again in the backward pass instead of storing them"
    )
    compile: bool = Field(False, description="torch.compile the model, with dynamic shapes")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        "auto", description="attention implementation; auto: what transformers chooses"
    )


class LoraSection(Section):
    """Low-rank adapters; they are merged into the weights of the model that is written."""

    rank: int = Field(0, ge=0, description="rank of the adapters; 0: train all weights")
    alpha: float = Field(32.0, gt=0, description="scale of the adapters, divided by the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters")
    targets: tuple[str, ...] | None = Field(
        None, description="names of the linear layers that get adapters; default: all but the head"
    )


class CheckpointSection(Section):
    """Saving the state of training, so that it can go on elsewhere."""

    every: int = Field(50, ge=1, description="optimizer steps between checkpoints, beside one at the end")
    keep: int = Field(2, ge=1, description="latest checkpoints that are kept, beside the best")
    best: Literal["none", "mae", "rmse", "ece", "nll", "accuracy", "quadratic_kappa", "spearman", "auc"] = Field(
        "none", description="held-out metric by which the weights that are written are chosen; none: the last ones"
    )
    keep_at_end: bool = Field(False, description="leave the checkpoints beside the finished model")


class EvalSection(Section):
    """What is measured on the held-out rows."""

    every: int = Field(0, ge=0, description="optimizer steps between evaluations; 0: at the end of every epoch")
    bootstrap: int = Field(1000, ge=0, description="resamples for the confidence intervals; 0: none")
    calibration: Literal["none", "temperature", "platt"] = Field(
        "temperature", description="correction of the logits fitted on the held-out rows; platt: one for each threshold"
    )
    min_group: int = Field(20, ge=1, description="fewest rows for which a language or an origin gets its own metrics")


class TrackingSection(Section):
    """Where the curves go beside curve.jsonl."""

    kinds: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        ("tensorboard",), description="trackers; MLflow and W&B read their own environment variables"
    )
    experiment: str = Field("wildreward", description="experiment (MLflow) or project (W&B) that runs are listed under")


class TrainConfig(Section):
    """Labelled dataset in, ordinal reward model out."""

    dataset: str = Field(description="output of `wildreward extract`, or WildFB-format JSONL (file or directory)")
    base: str = Field("demo:minilm", description="base model: hub name, path, or demo:minilm")
    output: str = Field(description="directory the reward model is written to")
    levels: int | None = Field(
        None, ge=2, le=10, description="ordered levels K; default: as the dataset says, 4 for JSONL"
    )
    epochs: int = Field(1, ge=1, description="passes over the training rows")
    max_length: int | None = Field(
        None,
        ge=16,
        description="longest input in tokens, the oldest history is dropped first; default: 4096 or what the base reads",
    )
    template: str | None = Field(None, description="file with a Jinja template of the reward input; default: built in")
    limit: int | None = Field(None, ge=1, description="use at most this many training rows")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="held-out share where the dataset is JSONL without a test part"
    )
    seed: int = Field(0, description="seed of head initialisation, row order and dropout")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of activations; weights and optimizer stay float32"
    )
    trust_remote_code: bool = Field(False, description="run model code that comes with the base model")
    resume_from: str | None = Field(
        None,
        description="checkpoint directory of another run to go on from; its data, model and kind of loss must be the same",
    )
    overwrite: bool = Field(False, description="replace a whole reward model that stands at the output")
    workers: tuple[int, int] = Field(
        (1, 1), description="Ray Train workers: a number, or least and most (2..8) to grow and shrink with the cluster"
    )
    num_cpus: float = Field(1.0, gt=0, description="Ray CPUs a worker holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs a worker holds")
    cpu_threads: int | None = Field(
        None, ge=1, description="threads of a CPU worker; default: the node's cores shared out"
    )
    max_failures: int = Field(
        3, ge=-1, description="lost workers that are replaced before the run stops; -1: any number"
    )
    resize_interval_s: float = Field(60.0, gt=0, description="seconds between looks at whether more workers can be had")
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @field_validator("workers", mode="before")
    @classmethod
    def _one_number_or_a_range(cls, value: Any) -> Any:
        return number_or_range(value, "workers")

    @field_validator("workers")
    @classmethod
    def _at_least_one_worker(cls, value: tuple[int, int]) -> tuple[int, int]:
        return ordered_range(value, "worker")
