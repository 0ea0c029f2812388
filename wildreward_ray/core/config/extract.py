"""Settings of `wildreward extract`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.judge import JudgeSection

# What `feedback.pii` can find.
PII_ENTITIES = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN")

# Settings of where and how fast the work is done. A run may be resumed with other values of these.
_JUDGE_OPERATIONAL = (
    "replicas",
    "num_cpus",
    "num_gpus",
    "engine.tensor_parallel",
    "engine.gpu_memory_share",
    "engine.cpu_kv_cache_gib",
    "engine.cpu_threads",
    "engine.block_size",
    "endpoint.base_url",
    "endpoint.api_key_env",
    "endpoint.concurrency",
    "endpoint.timeout_s",
    "endpoint.retries",
    "endpoint.max_backoff_s",
)
OPERATIONAL = frozenset(
    (
        "overwrite",
        *(f"judge.{name}" for name in _JUDGE_OPERATIONAL),
        *(f"cascade.judge.{name}" for name in _JUDGE_OPERATIONAL),
        "hindsight.num_cpus",
        "hindsight.num_gpus",
        "hindsight.replicas",
    )
)

Format = Literal["auto", "wildchat", "lmsys", "sharegpt", "openai", "openai-logs"]


class HindsightSection(Section):
    """Implicit feedback mining."""

    enabled: bool = Field(True, description="relabel neutral turns from a positive turn soon after on the same topic")
    window: int = Field(2, ge=1, description="how many turns later the positive turn may come")
    threshold: float = Field(0.6, ge=-1, le=1, description="cosine of the two requests from which they share a topic")
    model: str = Field("demo:minilm", description="embedding model: hub name, path, or demo:minilm")
    num_cpus: float = Field(1.0, ge=0, description="Ray CPUs a refining actor holds")
    num_gpus: float = Field(0.0, ge=0, description="Ray GPUs a refining actor holds")
    replicas: tuple[int, int] = Field((1, 1), description="fewest and most actors that embed and refine")


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


class SecondJudgeSection(JudgeSection):
    """The second judge; a large model needs neither examples for small ones nor a correction."""

    prompt_style: Literal["completion", "chat"] = Field(
        "chat", description="completion: few-shot lines for small models; chat: a rubric for instruction-tuned ones"
    )
    prior: Literal["auto", "batch", "none"] = Field("none", description="as of the first judge, over what it is asked")


class CascadeSection(Section):
    """A second, larger judge for what the first one is unsure of."""

    enabled: bool = Field(
        False, description="ask the second judge about interactions whose entropy is above the threshold"
    )
    entropy: float = Field(
        1.0,
        ge=0,
        description="entropy of the first judge's five probabilities, in nats (at most 1.61), from which the second is asked",
    )
    audit_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of the other interactions it is asked about too, to measure how often the two agree there",
    )
    judge: SecondJudgeSection = Field(default_factory=SecondJudgeSection)

    @field_validator("judge")
    @classmethod
    def _chunks(cls, value: SecondJudgeSection) -> SecondJudgeSection:
        if value.batch_size != JudgeSection.model_fields["batch_size"].default:
            raise ValueError("the second judge takes the first one's chunks: judge.batch_size sets their size")
        return value


class QualitySection(Section):
    """Which interactions are fit for training."""

    rules: tuple[str, ...] = Field(
        (
            "language",
            "toxic",
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
    languages: tuple[str, ...] = Field(
        ("English", "Chinese"), description="languages the `language` filter keeps; none named: every one"
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
    pii: Literal["drop", "redact", "keep"] = Field(
        "drop",
        description="personal data. redact: replace it in all texts; drop: drop as well the rows whose request, reply or "
        "feedback holds any; keep: leave texts as they are",
    )
    pii_entities: tuple[str, ...] = Field(
        ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE"), description="kinds of personal data looked for"
    )
    duplicates: Literal["drop", "leaks", "keep"] = Field(
        "drop",
        description="near-duplicate prompts. drop: keep one of each group; leaks: drop only those of train that are in test as "
        "well; keep: leave them, the split then leaks",
    )
    max_per_user: int | None = Field(
        None, ge=1, description="most rows one user may have in the dataset; default: no limit"
    )

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = cls.model_fields["rules"].default
        for name in value:
            if name not in known:
                raise ValueError(f"{name!r} is no filter; known: {', '.join(known)}")
        return value

    @field_validator("pii_entities")
    @classmethod
    def _findable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PII_ENTITIES:
                raise ValueError(
                    f"{name!r} is no kind of personal data that is looked for; known: {', '.join(PII_ENTITIES)}"
                )
        return value


class SplitSection(Section):
    """Which side of the split a user is on."""

    test_share: float = Field(0.2, ge=0, lt=1, description="expected share of users held out for testing")
    salt: str = Field("wildreward", description="changes which users are held out")


class ExtractConfig(Section):
    """Chat logs in, labelled dataset out."""

    input: tuple[str, ...] = Field(min_length=1, description="files or directories of chat logs, as paths or URIs")
    format: Format = Field("auto", description="shape of the logs; auto: told from each file's content")
    strict: bool = Field(False, description="stop at a file that can't be read instead of putting it into quarantine")
    output: str = Field(description="directory or URI the dataset is written to")
    limit: int | None = Field(
        None, ge=1, description="use at most this many interactions (replies with a next user message)"
    )
    overwrite: bool = Field(
        False,
        description="replace a dataset, whole or unfinished, that stands at the output and was made with other settings",
    )
    levels: int = Field(4, description="ordered training levels that judge levels are folded into (2..5)")
    judge: JudgeSection = Field(default_factory=JudgeSection)
    cascade: CascadeSection = Field(default_factory=CascadeSection)
    hindsight: HindsightSection = Field(default_factory=HindsightSection)
    refusal: RefusalSection = Field(default_factory=RefusalSection)
    quality: QualitySection = Field(default_factory=QualitySection)
    split: SplitSection = Field(default_factory=SplitSection)

    @model_validator(mode="after")
    def _foldable(self) -> ExtractConfig:
        if self.levels not in (2, 3, 4, 5):
            raise ValueError(f"{self.levels} levels: the judge's five levels fold into 2, 3, 4 or 5 training levels")
        return self
