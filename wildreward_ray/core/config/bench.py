"""Settings of `wildreward bench`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, Field, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import Format
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.config.train import OptimSection


class TrainBench(Section):
    """What is trained for `bench train`."""

    base: str = Field("demo:minilm", description="base model: hub name, path, or demo:minilm")
    max_length: int = Field(512, ge=16, description="longest input in tokens")
    optim: OptimSection = Field(
        default_factory=lambda: OptimSection(global_batch=64, token_budget=4096), description="batches"
    )
    checkpoint_every: int = Field(3, ge=1, description="optimizer steps between checkpoints")
    padded_batches: int = Field(
        6, ge=2, description="micro-batches that are padded to the maximum to see what it costs"
    )


def _words_or_commas(value: Any) -> Any:
    """Words apart or with commas between them, as a list."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)):
        return value
    return [part for word in words for part in (word.split(",") if isinstance(word, str) else [word])]


PartT = TypeVar("PartT")
Parts = Annotated[tuple[PartT, ...], BeforeValidator(_words_or_commas)]

ServePart = Literal["offline", "service", "plain", "http", "memory", "routing"]


class ServeBench(Section):
    """What is served, asked and compared for `bench serve`."""

    parts: Parts[ServePart] = Field(
        get_args(ServePart),
        min_length=1,
        description="what is measured, as words or with commas: offline, service, plain, http, memory, routing; default: all",
    )
    model: str | None = Field(
        None,
        description="reward model with a reward_config.json; default: one of SmolLM2-135M's size with a random head",
    )
    engine: Literal["vllm", "transformers"] = Field("vllm", description="engine of the service and of the ceiling")
    group_size: int = Field(8, ge=2, description="replies to one prompt, asked for next to one another")
    context_tokens: int = Field(
        768, ge=16, description="longest prompt with its history, in tokens; older history is left out"
    )
    reply_tokens: int = Field(192, ge=4, description="longest reply, in tokens; longer ones are passed over")
    in_flight: int = Field(64, ge=1, description="requests in flight")
    cpu_threads: int | None = Field(
        None, ge=1, description="threads of an engine and of the plain server; default: all"
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="GiB of RAM for a vLLM engine's cache where there is no GPU")
    plain_seconds: float = Field(30.0, gt=0, description="how long requests are sent to the plain server")
    http_seconds: float = Field(20.0, gt=0, description="how long requests are sent to each server without a model")
    memory_requests: int = Field(
        100_000, ge=0, description="requests over which memory is watched; 0: memory is left out"
    )
    routing_items: int = Field(160, ge=1, description="items sent to two replicas under each routing")


OnlineDpoPart = Literal["overlap", "generation", "trl"]


class OnlineDpoBench(Section):
    """What is sampled, learnt and compared for `bench online-dpo`."""

    parts: Parts[OnlineDpoPart] = Field(
        get_args(OnlineDpoPart),
        min_length=1,
        description="what is measured, as words or with commas: overlap (a step over its slowest part), generation (sampling "
        "over the bare engine), trl (prompts a second over TRL's trainer); default: all",
    )
    policy: str = Field("demo:smollm2", description="policy: hub name, path, or demo:smollm2")
    steps: int = Field(6, ge=4, description="optimizer steps of every run; the first two and the last are not counted")
    prompts_per_step: int = Field(4, ge=1, description="prompts sampled at each step; none comes twice")
    prompt_chars: int = Field(400, ge=1, description="longest prompt, in characters; longer ones are passed over")
    samples: int = Field(2, ge=2, description="replies sampled for each prompt; TRL knows 2 only")
    max_tokens: int = Field(128, ge=1, description="longest reply in tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    learning_rate: float = Field(5e-7, gt=0, description="learning rate")
    seed: int = Field(0, description="seed of prompt order and sampling")
    gpu: bool = Field(
        False,
        description="a GPU for the engine and another one for the learner; without, each has half of the cores",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of activations of this learner and of TRL's; weights and optimizers stay float32"
    )

    @model_validator(mode="after")
    def _comparable(self) -> OnlineDpoBench:
        if "trl" in self.parts and self.samples != 2:
            raise ValueError("TRL samples 2 replies a prompt: leave `trl` out of the parts, or samples at 2")
        if "trl" in self.parts and self.gpu:
            raise ValueError(
                "the comparison with TRL is one of a machine's cores: leave `trl` out of the parts, or gpu"
            )
        return self


OneStage = Literal["evaluate", "extract", "ingest", "judge", "online-dpo", "serve", "train"]
TableStage = Literal["extract", "train", "serve", "online-dpo", "evaluate"]


class BenchConfig(Section):
    """A stage's throughput against the engine's own, in one run."""

    stage: Literal[OneStage, "all", "compare"] = Field(
        "extract",
        description="evaluate: scoring a benchmark over the bare engine; "
        "extract: the judge's throughput in the pipeline over the bare engine's; ingest: everything but the judge; "
        "judge: how often hostile text moves its label, and how its modes agree; "
        "online-dpo: a step over its slowest part, sampling over the bare engine, prompts a second over TRL's trainer; "
        "serve: the reward service over its bare engine, over a plain server, its HTTP path, memory and routing; "
        "train: tokens a second over a bare PyTorch loop's, padding, two workers, and what checkpoints cost; "
        "all: several of these, each in a process of its own, as one table of ratios; "
        "compare: two files that --output wrote, the newer over the older",
    )
    stages: Parts[TableStage] = Field(
        ("extract", "train", "serve", "online-dpo"),
        min_length=1,
        description="what `all` runs, as words or with commas: extract, train, serve, online-dpo, evaluate; default: the first four",
    )
    files: tuple[str, ...] | None = Field(None, description="what `compare` reads: the older file and the newer one")
    tolerance: float = Field(
        0.1, ge=0, lt=1, description="share of its old value that a figure may get worse by before `compare` marks it"
    )
    strict: bool = Field(False, description="fail if `compare` marks anything")
    input: tuple[str, ...] | None = Field(None, description="chat logs that are read; default: the shipped sample")
    format: Format = Field("auto", description="shape of the logs")
    limit: int | None = Field(500, ge=32, description="interactions measured; null: all")
    refine_replicas: int = Field(2, ge=1, description="actors that refine, for `ingest`")
    output: str | None = Field(None, description="file the figures are also written to, as JSON")
    judge: JudgeSection = Field(default_factory=JudgeSection)
    online_dpo: OnlineDpoBench = Field(default_factory=OnlineDpoBench)
    serve: ServeBench = Field(default_factory=ServeBench)
    train: TrainBench = Field(default_factory=TrainBench)
