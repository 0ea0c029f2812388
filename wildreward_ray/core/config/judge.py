"""Settings of the judge: which model, where it runs, and how it is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.scale import JUDGE_LEVELS


class EngineSection(Section):
    """How a vLLM engine is started."""

    dtype: str = Field("auto", description="weight and activation type: auto, bfloat16, float16, float32")
    max_model_len: int = Field(2048, ge=64, description="longest prompt plus output, in tokens")
    tensor_parallel: int = Field(1, ge=1, description="GPUs one engine is spread over")
    gpu_memory_share: float = Field(0.9, gt=0, le=1, description="share of GPU memory an engine takes")
    cpu_kv_cache_gib: float = Field(1.0, gt=0, description="GiB of RAM for the KV cache where there is no GPU")
    cpu_threads: int | None = Field(None, ge=1, description="threads of a CPU engine; default: all cores of its node")
    block_size: int | None = Field(
        None, ge=8, description="tokens a KV-cache block; default: 32 on CPU, vLLM's own on GPU"
    )
    trust_remote_code: bool = Field(False, description="run model code that comes with the weights")
    quantization: str | None = Field(
        None, description="vLLM quantization method of the weights; default: as the weights say"
    )


class EndpointSection(Section):
    """An OpenAI-compatible server that judges."""

    base_url: str | None = Field(
        None, description="address of the server up to and including its version, e.g. http://host:8000/v1"
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="name of the environment variable that holds the key; without one, `none` is sent"
    )
    concurrency: int = Field(32, ge=1, description="requests a judge actor has in flight at a time")
    timeout_s: float = Field(120.0, gt=0, description="longest wait for the answer to one request, in seconds")
    retries: int = Field(
        6, ge=0, description="how often a request is sent again after 408, 409, 429, 5xx or a lost connection"
    )
    max_backoff_s: float = Field(
        30.0,
        gt=0,
        description="longest pause before a request is sent again, in seconds; a longer Retry-After is cut to it",
    )


class ReasoningSection(Section):
    """How the judge reasons before its verdict; used with `mode: reasoning`."""

    votes: int = Field(3, ge=1, description="answers asked for each interaction; their verdicts are counted as votes")
    # arXiv 2602.08829 samples its judge at 0.5.
    temperature: float = Field(0.5, ge=0, le=2, description="sampling temperature of the answers")
    max_tokens: int = Field(512, ge=8, description="longest answer, in tokens; one that is cut off has no verdict")
    retries: int = Field(
        1, ge=0, description="how often an answer without a verdict is asked for again, with a reminder"
    )
    seed: int | None = Field(
        0, ge=0, description="seed of the first answer, the next ones count on from it; null: random"
    )

    @model_validator(mode="after")
    def _differ(self) -> ReasoningSection:
        if self.temperature == 0 and self.votes > 1:
            raise ValueError(f"temperature 0 gives the same answer {self.votes} times: ask for 1 vote, or sample")
        return self


class JudgeSection(Section):
    """The LLM that reads the user's next message."""

    model: str = Field(
        "demo:smollm2",
        description="judge model: hub name, path, or demo:smollm2; for an endpoint the name the server knows it by",
    )
    backend: Literal["vllm", "endpoint"] = Field(
        "vllm", description="vllm: engines started here; endpoint: an OpenAI-compatible server that is already running"
    )
    mode: Literal["likelihood", "reasoning"] = Field(
        "likelihood",
        description="likelihood: probabilities of the verdict words, nothing is written; reasoning: written answers that end "
        "in a verdict, for instruction-tuned models",
    )
    prompt_style: Literal["completion", "chat"] = Field(
        "completion",
        description="completion: few-shot lines for small models; chat: a rubric for instruction-tuned ones; reasoning mode has "
        "a chat rubric of its own",
    )
    batch_size: int = Field(
        128, ge=1, description="conversations in a chunk: what is judged, written and, after a kill, redone at a time"
    )
    replicas: tuple[int, int] = Field((1, 1), description="fewest and most judge actors")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs a judge actor holds")
    num_gpus: float | None = Field(
        None, ge=0, description="Ray GPUs a judge actor holds; default: tensor_parallel on GPU"
    )
    prior: Literal["auto", "batch", "none"] = Field(
        "auto",
        description="batch: subtract each verdict's mean log-probability over the corpus; none: trust the judge; auto: batch "
        "in likelihood mode, none in reasoning mode",
    )
    expected_shares: tuple[float, float, float, float, float] | None = Field(
        None, description="expected share of levels 1..5 after the prior is taken out; default: equal"
    )
    engine: EngineSection = Field(default_factory=EngineSection)
    endpoint: EndpointSection = Field(default_factory=EndpointSection)
    reasoning: ReasoningSection = Field(default_factory=ReasoningSection)

    @property
    def corrects_prior(self) -> bool:
        """Whether the judge's preferences for verdicts are taken out."""
        return self.prior == "batch" or (self.prior == "auto" and self.mode == "likelihood")

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("the fewest replicas must be at least 1 and at most the most replicas")
        return value

    @field_validator("expected_shares")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (min(value) <= 0 or abs(sum(value) - 1) > 1e-6):
            raise ValueError(f"the shares of levels {JUDGE_LEVELS} must be positive and add up to 1")
        return value

    @field_validator("endpoint")
    @classmethod
    def _http(cls, value: EndpointSection) -> EndpointSection:
        if value.base_url is not None and not value.base_url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint.base_url = {value.base_url!r} is no http:// or https:// address")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> JudgeSection:
        if self.backend == "endpoint" and self.endpoint.base_url is None:
            raise ValueError("backend `endpoint` needs endpoint.base_url, the address of the server")
        return self
