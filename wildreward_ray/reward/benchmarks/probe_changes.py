"""The changes that probes make: to a reply, so that it gets no better, or to the messages before the prompt.

Each picks its texts by the source of chance that it is given, and returns None where it doesn't apply. That is also where it
has been applied before, so no change is made twice.
"""

from __future__ import annotations

import re
from random import Random

from wildreward_ray.core.template import Message
from wildreward_ray.reward.benchmarks.items import Item
from wildreward_ray.reward.benchmarks.probe_texts import EXCHANGES, FLATTERY, PADDING, REFUSALS
from wildreward_ray.reward.benchmarks.text_features import Language, has_open_fence, is_code, language, markdown

History = tuple[Message, ...]

_SENTENCE_END = re.compile(
    r"(?:[.!?][\"'”’)\]]*[ \t]+(?=[\"'“‘(\[]?[^\sa-z]))|(?:[。！？][”’」』）]*(?=[^\s”’」』）]))"
)
# Words whose full stop ends no sentence, initials, and the numbers of a list that stands in one line.
_ABBREVIATED = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|No|Fig|Eq|approx|cf)|\be\.g|\bi\.e|(?:^|[\s:(])\d{1,2})\.$"
)
_LONGEST_ABBREVIATED = 8
# Lines that only mean something together, in LaTeX or as a quotation.
_BLOCK = re.compile(r"\$\$|\\\[|\\begin\{|^[ \t]*>", re.MULTILINE)
_STARTS_BLOCK = re.compile(r"[ \t]*(?:#{1,6} |[-*+•>] |\||\d{1,3}[.)] |`{3}|~{3})")
_PRAISE = re.compile(r"\b(?:great|good|excellent|wonderful|fantastic) (?:question|point)\b", re.IGNORECASE)
_PRAISE_BEFORE = 60


def padded(item: Item, reply: str, rng: Random) -> str | None:
    """The reply and two sentences that say nothing, in its language. None for code and other languages."""
    spoken = language(reply)
    if spoken is None or is_code(reply) or has_open_fence(reply) or reply.endswith(PADDING[spoken]):
        return None
    text = reply.rstrip()
    return text + _gap(spoken, paragraph="\n" in text) + rng.choice(PADDING[spoken])


def flattering(item: Item, reply: str, rng: Random) -> str | None:
    """A compliment and the reply, in its language. None for code, other languages and a reply that praises the question."""
    spoken = language(reply)
    if spoken is None or is_code(reply) or reply.startswith(FLATTERY[spoken]) or _PRAISE.search(reply[:_PRAISE_BEFORE]):
        return None
    return rng.choice(FLATTERY[spoken]) + _gap(spoken, paragraph=bool(_STARTS_BLOCK.match(reply))) + reply.lstrip("\n")


def _gap(spoken: Language, *, paragraph: bool) -> str:
    return "\n\n" if paragraph else " " if spoken == "en" else ""


def refusing(item: Item, reply: str, rng: Random) -> str | None:
    """A refusal, in the language of the prompt. None for other languages."""
    spoken = _spoken(item)
    return None if spoken is None or reply in REFUSALS[spoken] else rng.choice(REFUSALS[spoken])


def marked_up(item: Item, reply: str, rng: Random) -> str | None:
    """The first sentence in bold, the others as bullets. None for one sentence, and where there is markdown, code or a block."""
    if markdown(reply) or is_code(reply) or "**" in reply or _BLOCK.search(reply):
        return None
    first, *rest = _sentences(reply) or [""]
    return "\n".join([f"**{first}**", "", *(f"- {sentence}" for sentence in rest)]) if rest else None


def _sentences(text: str) -> list[str]:
    """Sentences of a text; a new line begins a new one."""
    found = []
    for line in text.splitlines():
        start = 0
        for end in _SENTENCE_END.finditer(line):
            before = line[max(0, end.start() - _LONGEST_ABBREVIATED) : end.end()].rstrip()
            if not _ABBREVIATED.search(before):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _spoken(item: Item) -> Language | None:
    """Language of the prompt, or else of the first response that shows one: prompts can be too short to tell."""
    return next((spoken for spoken in map(language, (item.prompt, *item.responses)) if spoken), None)


def with_exchanges(item: Item, rng: Random, *, count: int, first: bool) -> History | None:
    """The history with exchanges put before all of it but system messages, or after it.

    None for other languages than English and Chinese, where they have been put, and where before and after are the same.
    """
    spoken = _spoken(item)
    system = next((n for n, message in enumerate(item.history) if message["role"] != "system"), len(item.history))
    nothing_between = first and count == 1 and system == len(item.history)
    if spoken is None or nothing_between:
        return None
    own = {text for exchange in EXCHANGES[spoken] for text in exchange}
    if any(message["content"] in own for message in item.history):
        return None
    added = tuple(
        {"role": role, "content": text}
        for exchange in rng.sample(EXCHANGES[spoken], count)
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    )
    at = system if first else len(item.history)
    return (*item.history[:at], *added, *item.history[at:])
