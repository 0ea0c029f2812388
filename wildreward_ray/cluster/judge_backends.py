"""What a judge is to the stages, whichever way it is run: fields in, verdicts out, and a count of what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

Task = Literal["feedback", "refusal"]


@dataclass(slots=True)
class Verdict:
    """What the judge found in one interaction.

    Attributes:
        logprobs: natural log-probabilities of the classes (5 of feedback, 2 or 3 of refusal); None where none could be had.
        failure: why not: `no_verdict_token` (no verdict among the likely tokens), `unparseable_verdict` (no answer ended in one).
        answers: what the judge wrote, in reasoning mode.
        masked: spans of the fields that the judge was not shown, because they imitate a verdict or instruct it.
    """

    logprobs: list[float] | None
    failure: str | None = None
    answers: list[str] = field(default_factory=list)
    masked: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote. `whole` is false where it was cut off."""

    text: str
    whole: bool = True


@dataclass(slots=True)
class Usage:
    """What a judge's verdicts took.

    Attributes:
        prompt_tokens: tokens read, those from the cache included.
        cached_tokens: tokens that came from a prefix cache.
        output_tokens: tokens written.
        requests: answers asked for and got, each vote and each asking again counted.
        retried: requests sent again because the server failed or was busy.
        reasked: answers asked for again because they had no verdict.
        unparseable: votes that had no verdict to the end.
        masked: spans of conversation text that were taken out because they imitate a verdict or instruct the judge.
        censored: verdict words that weren't among the tokens a server listed, so that only an upper bound is known.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    retried: int = 0
    reasked: int = 0
    unparseable: int = 0
    masked: int = 0
    censored: int = 0

    def __iadd__(self, other: Usage) -> Usage:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        return self


class Judge(Protocol):
    """A model that gives verdicts."""

    usage: Usage

    def verdicts(self, task: Task, fields: Sequence[Mapping[str, str]]) -> list[Verdict]:
        """One verdict for each mapping of field names (`prompt`, `reply`, `feedback`) to texts, in order.

        Raises:
            UserError: the judge refuses what it is asked, for a reason that settings can mend.
            JudgeUnavailableError: the judge can't be reached or failed for good. No verdicts are given then.
        """
        ...

    def prompt_text(self, task: Task) -> str:
        """The prompt as text, `{fields}` standing for the case to judge."""
        ...
