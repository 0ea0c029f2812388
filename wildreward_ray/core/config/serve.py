"""Settings of `wildreward serve` and `wildreward score`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wildreward_ray.core.config.base import Section
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
    replicas: int = Field(1, ge=1, description="engine replicas")
    num_cpus: float = Field(0.5, ge=0, description="Ray CPUs an engine replica holds")
    max_items: int = Field(1024, ge=1, description="most items a request may hold")
    max_body_mb: float = Field(8.0, gt=0, description="largest request body in MB")
    batch_wait_ms: float = Field(5.0, ge=0, description="how long a batch waits for requests to join it")
    max_batch_items: int = Field(256, ge=1, description="most items in a batch")
    max_queued: int = Field(4096, ge=1, description="requests that may wait; more get 503 with Retry-After")
    request_timeout_s: float = Field(60.0, gt=0, description="longest a request may take before it gets 503")
    auth_token_env: str | None = Field(None, description="environment variable with the bearer token clients must send")


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
