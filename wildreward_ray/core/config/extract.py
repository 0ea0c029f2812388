"""Settings of `wildreward extract`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.scale import JUDGE_LEVELS

Format = Literal["auto", "wildchat", "sharegpt"]


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


class JudgeSection(Section):
    """The LLM that reads the user's next message."""

    model: str = Field("demo:smollm2", description="judge model: hub name, path, or demo:smollm2")
    prompt_style: Literal["completion", "chat"] = Field(
        "completion",
        description="completion: few-shot lines for small models; chat: a rubric for instruction-tuned ones",
    )
    batch_size: int = Field(64, ge=1, description="conversations handed to an engine at a time")
    replicas: tuple[int, int] = Field((1, 1), description="fewest and most judge actors")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs a judge actor holds")
    num_gpus: float | None = Field(
        None, ge=0, description="Ray GPUs a judge actor holds; default: tensor_parallel on GPU"
    )
    prior: Literal["batch", "none"] = Field(
        "batch",
        description="batch: subtract each verdict's mean log-probability over the corpus; none: trust the judge",
    )
    expected_shares: tuple[float, float, float, float, float] | None = Field(
        None, description="expected share of levels 1..5 after the prior is taken out; default: equal"
    )
    engine: EngineSection = Field(default_factory=EngineSection)

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


class HindsightSection(Section):
    """Implicit feedback mining."""

    enabled: bool = Field(True, description="relabel neutral turns from a positive turn soon after on the same topic")
    window: int = Field(2, ge=1, description="how many turns later the positive turn may come")
    threshold: float = Field(0.6, ge=-1, le=1, description="cosine of the two requests from which they share a topic")
    model: str = Field("demo:minilm", description="embedding model: hub name, path, or demo:minilm")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs an embedding actor holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs an embedding actor holds")
    replicas: tuple[int, int] = Field((1, 1), description="fewest and most embedding actors")
    batch_size: int = Field(256, ge=1, description="conversations refined at a time")


class RefusalSection(Section):
    """Refusal validation."""

    enabled: bool = Field(True, description="judge short refusals again and put their level right")
    min_confidence: float = Field(
        0.6,
        ge=0.5,
        lt=1,
        description="probability from which a second verdict counts; below it the level stays as it is",
    )
    prior_share: float = Field(
        0.125, ge=0, le=1, description="share of ordinary turns that are asked too, to learn the second verdict's prior"
    )


class QualitySection(Section):
    """Which interactions are fit for training."""

    rules: tuple[str, ...] = Field(
        (
            "email",
            "phone",
            "image_request",
            "media_request",
            "search_request",
            "identity_request",
            "missing_file",
            "prompt_too_short",
            "response_too_short",
            "history_too_long",
        ),
        description="filters in use, in the order they are asked",
    )
    min_prompt: int = Field(5, ge=0, description="shortest prompt, in words (characters in Chinese)")
    min_response: int = Field(10, ge=0, description="shortest reply, in words (characters in Chinese)")
    max_history: int = Field(20, ge=0, description="most messages before the prompt")
    min_confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="least share of the label's side, negative or positive, in the judge's probability of both; 0: keep all",
    )

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = cls.model_fields["rules"].default
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is no filter; known: {', '.join(known)}")
        return value


class SplitSection(Section):
    """Which side of the split a user is on."""

    test_share: float = Field(0.2, ge=0, lt=1, description="expected share of users held out for testing")
    salt: str = Field("wildreward", description="changes which users are held out")


class ExtractConfig(Section):
    """Chat logs in, labelled dataset out."""

    input: tuple[str, ...] = Field(min_length=1, description="files or directories of chat logs, as paths or URIs")
    format: Format = Field("auto", description="shape of the logs; auto: told from each file's name and content")
    output: str = Field(description="directory or URI the dataset is written to")
    limit: int | None = Field(
        None, ge=1, description="use at most this many interactions (replies with a next user message)"
    )
    overwrite: bool = Field(False, description="replace a whole dataset that stands at the output")
    levels: int = Field(4, description="ordered training levels that judge levels are folded into (2..5)")
    judge: JudgeSection = Field(default_factory=JudgeSection)
    hindsight: HindsightSection = Field(default_factory=HindsightSection)
    refusal: RefusalSection = Field(default_factory=RefusalSection)
    quality: QualitySection = Field(default_factory=QualitySection)
    split: SplitSection = Field(default_factory=SplitSection)

    @model_validator(mode="after")
    def _foldable(self) -> ExtractConfig:
        if self.levels not in (2, 3, 4, 5):
            raise ValueError(f"{self.levels} levels: the judge's five levels fold into 2, 3, 4 or 5 training levels")
        return self
