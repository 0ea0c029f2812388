"""Settings of `wildreward train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wildreward_ray.core.config.base import Section


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
    soft_targets: bool = Field(False, description="train on the judge's probabilities instead of its most likely level")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every level has the same total weight"
    )
    limit: int | None = Field(None, ge=1, description="use at most this many training rows")
    test_share: float = Field(
        0.1, gt=0, lt=1, description="held-out share where the dataset is JSONL without a test part"
    )
    eval_every: int = Field(0, ge=0, description="optimizer steps between evaluations; 0: at the end of every epoch")
    seed: int = Field(0, description="seed of head initialisation, row order and dropout")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of activations; weights and optimizer stay float32"
    )
    trust_remote_code: bool = Field(False, description="run model code that comes with the base model")
    overwrite: bool = Field(False, description="replace a whole reward model that stands at the output")
    workers: int = Field(1, ge=1, description="Ray Train workers")
    num_cpus: float = Field(1.0, gt=0, description="Ray CPUs a worker holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs a worker holds")
    cpu_threads: int | None = Field(
        None, ge=1, description="threads of a CPU worker; default: the node's cores shared out"
    )
    optim: OptimSection = Field(default_factory=OptimSection)
