"""Settings of `wildreward serve` and `wildreward score`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from wildreward_ray.core.config.base import Section, number_or_range, ordered_range
from wildreward_ray.core.config.judge import EngineSection

EngineName = Literal["auto", "transformers", "vllm"]


class ScorerSection(Section):
    """How a reward model is loaded and run."""

    model: str = Field(
        description="reward model: directory with reward_config.json, or a released checkpoint with --template"
    )
    engine: EngineName = Field("auto", description="auto: vllm for decoders where it is installed, else transformers")
    template: str | None = Field(None, description="template file, for checkpoints without reward_config.json")
    levels: int | None = Field(
        None, ge=2, le=10, description="ordered levels, for checkpoints without reward_config.json"
    )
    calibrated: bool = Field(
        False,
        description="correct probabilities and scores by the model's calibration; false: 1 + sum of sigmoids as is",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of weights and activations")
    token_budget: int = Field(8192, ge=1, description="padded tokens a batch")
    trust_remote_code: bool = Field(False, description="run model code that comes with the checkpoint")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs an engine replica holds")
    cpu_threads: int | None = Field(None, ge=1, description="threads of a CPU engine; default: all cores of its node")
    vllm: EngineSection = Field(default_factory=EngineSection)


class ServeConfig(ScorerSection):
    """A reward model in, rewards over HTTP out."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for the whole network")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    model_name: str | None = Field(None, description="name that clients may ask for; default: the model as given")
    replicas: tuple[int, int] = Field(
        (1, 1), description="engine replicas: a number, or least and most (1..4) to follow the load"
    )
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs an engine replica holds")
    api_replicas: int = Field(1, ge=1, description="processes that read, check and tokenise requests")
    target_in_flight: int = Field(
        64, ge=1, description="requests in flight an engine replica is meant for; with more, a replica is added"
    )
    scale_up_delay_s: float = Field(10.0, ge=0, description="seconds of load before a replica is added")
    scale_down_delay_s: float = Field(300.0, ge=0, description="seconds of less load before a replica is taken away")
    routing: Literal["prefix", "balanced"] = Field(
        "prefix",
        description="prefix: replies to one prompt go to one replica, whose cache has it; balanced: any replica",
    )
    too_long: Literal["refuse", "cut"] = Field(
        "refuse", description="a reply or rendered text longer than the model reads: 422, or cut from its beginning"
    )
    max_items: int = Field(1024, ge=1, description="most items a request may hold")
    max_body_mb: float = Field(8.0, gt=0, description="largest request body in MB")
    max_queued: int = Field(
        4096, ge=1, description="items an API process may have waiting; more get 503 with Retry-After"
    )
    batch_wait_ms: float = Field(5.0, ge=0, description="how long a batch of the transformers engine waits to fill")
    request_timeout_s: float = Field(60.0, gt=0, description="longest a request may take before it gets 503")
    drain_s: float = Field(30.0, ge=0, description="longest a replica that is taken away may finish its requests")
    drift_window: int = Field(1000, ge=100, description="scores compared with as many first ones to measure drift")
    access_log: bool = Field(True, description="log a line a request, without any text of it")
    auth_token_env: str | None = Field(None, description="environment variable with the bearer token clients must send")

    @field_validator("replicas", mode="before")
    @classmethod
    def _one_number_or_a_range(cls, value: Any) -> Any:
        return number_or_range(value, "replicas")

    @field_validator("replicas")
    @classmethod
    def _at_least_one(cls, value: tuple[int, int]) -> tuple[int, int]:
        return ordered_range(value, "replica")

    @model_validator(mode="after")
    def _one_request_fits_the_queue(self) -> ServeConfig:
        if self.max_queued < self.max_items:
            raise ValueError(f"max_queued {self.max_queued} is less than max_items {self.max_items}")
        return self

    @property
    def name(self) -> str:
        """The name that the service goes by."""
        return self.model_name or self.model


class UpdateModelConfig(Section):
    """Replace the model of a running reward service without downtime."""

    model: str = Field(description="the reward model that takes over")
    model_name: str | None = Field(None, description="name that clients may ask for; default: the one served now")
    template: str | None = Field(None, description="template file, for checkpoints without reward_config.json")
    levels: int | None = Field(
        None, ge=2, le=10, description="ordered levels, for checkpoints without reward_config.json"
    )
    smoke: str | None = Field(
        None,
        description="JSONL of conversations the new model must score before it takes over; default: a built-in few",
    )
    timeout_s: float = Field(600.0, gt=0, description="longest the new model may take to load")


class ScoreConfig(ScorerSection):
    """Conversations in, scored conversations out."""

    input: tuple[str, ...] = Field(
        min_length=1, description="JSONL or Parquet with messages, or history/prompt/response"
    )
    output: str = Field(description="directory or URI the scores are written to")
    limit: int | None = Field(None, ge=1, description="score at most this many rows")
    batch_size: int = Field(256, ge=1, description="rows handed to an engine at a time")
    replicas: int = Field(1, ge=1, description="scoring actors")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs a scoring actor holds")
    overwrite: bool = Field(False, description="replace a whole set of scores that stands at the output")
