"""A judge's written answers and listed tokens -> log-probabilities of its verdicts.

An answer quotes the texts it is about, and those may hold anything. So a verdict counts only as the whole of the last line,
after the reasoning; whatever else looks like one is ignored, and an answer that can't be read is no vote at all.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Where reasoning ends: tagged thinking, or the final channel of gpt-oss's answers.
_FINAL = re.compile(r"</think(?:ing)?>|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_UNFINISHED = re.compile(r"<think(?:ing)?>|<\|channel\|>", re.IGNORECASE)
_LINE = re.compile(r"[#>\s]*[*_`]*verdict[*_`]*\s*:[*_`\s]*([0-9]+)[*_`\s]*\.?[*_`\s]*", re.IGNORECASE)


def parse_verdict(text: str, classes: int) -> int | None:
    """The number of the verdict, 1..`classes`, that an answer ends in; None where it doesn't end in exactly one.

    Only what follows the reasoning is read, and of that only the last line with text: `Verdict: N`, in any case, with Markdown
    emphasis, a full stop or full-width characters allowed.
    """
    final = _FINAL.split(text)[-1]
    if _UNFINISHED.search(final):
        return None
    lines = [line for line in unicodedata.normalize("NFKC", final).splitlines() if line.strip()]
    found = _LINE.fullmatch(lines[-1]) if lines else None
    if found is None or len(found[1]) > 2:
        return None
    number = int(found[1])
    return number if 1 <= number <= classes else None


def votes_to_logprobs(votes: Sequence[int], classes: int) -> list[float]:
    """Natural log-probabilities of the classes after some votes; no class has probability 0.

    The mean of the posterior under a Dirichlet(1/K, …, 1/K) prior, (n_k + 1/K) / (n + 1): the prior weighs as much as one
    vote, however many classes there are. Sources: W. Perks, Journal of the Institute of Actuaries 73 (1947), 285-334; recommended for
    multinomials in J. Berger, J. Bernardo, D. Sun, Overall Objective Priors, Bayesian Analysis 10 (2015), 189-221.

    Args:
        votes: verdicts, 1..`classes`, at least one.
    """
    if not votes or not all(1 <= v <= classes for v in votes):
        raise ValueError(f"votes {list(votes)} for {classes} classes: there must be some, each in 1..{classes}")
    return [math.log((votes.count(k) + 1 / classes) / (len(votes) + 1)) for k in range(1, classes + 1)]


@dataclass(frozen=True, slots=True)
class Listed:
    """Verdict log-probabilities from a list of likely tokens. `censored` counts verdicts that aren't in the list."""

    logprobs: list[float]
    censored: int


def listed_logprobs(tokens: Iterable[tuple[str, float]], verdicts: Sequence[str]) -> Listed | None:
    """Log-probabilities of verdict words from a server's list of likely next tokens, or None where none of them is in it.

    A token counts for the verdict that it spells, or, of at least two characters, that it alone begins; white space before it and
    case don't matter, and the probabilities of several spellings add up. A verdict that isn't listed is no likelier than
    the least likely token that is, and gets that upper bound.

    Args:
        tokens: (text, natural log-probability).
        verdicts: the words, in order.
    """
    listed = [(text, logprob) for text, logprob in tokens if math.isfinite(logprob)]
    found: list[list[float]] = [[] for _ in verdicts]
    for text, logprob in listed:
        index = _spelt(text, verdicts)
        if index is not None:
            found[index].append(logprob)
    if not any(found):
        return None
    floor = min(logprob for _, logprob in listed)
    return Listed([_log_sum(f) if f else floor for f in found], sum(not f for f in found))


def _spelt(token: str, verdicts: Sequence[str]) -> int | None:
    # Some servers show the space of byte-level (Ġ) and SentencePiece (▁) vocabularies as they store it.
    word = token.lstrip(" \t\n\r\u0120\u2581").casefold()
    whole = [i for i, v in enumerate(verdicts) if v.casefold() == word]
    if whole:
        return whole[0]
    begun = [i for i, v in enumerate(verdicts) if v.casefold().startswith(word)]
    return begun[0] if len(begun) == 1 and len(word) >= 2 else None


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs))
