"""The judge's prompts for one interaction, as token ids or as messages.

In likelihood mode the judge writes nothing: the prompt ends where a verdict word would come, and the log-probability of each
verdict word's first token is the verdict. One prefill a prompt, no decoding, and no text to parse. In reasoning mode it
writes, and `verdict` reads its last line.

Conversation text is hostile. What imitates the prompt or instructs the judge is taken out (`disarm`); the rest is put on one
line, its quotes are changed so that it can't close the quotation it stands in, and it is tokenised apart from the prompt with
special tokens switched off, so that `<|im_end|>` in a message is plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.disarm import disarm as disarmed
from wildreward_ray.feedback.disarm import without_edges
from wildreward_ray.feedback.judge_prompts import (
    PROMPT_VERSION,
    REFUSAL_VERDICTS,
    REMINDER,
    SPECS,
    PromptSpec,
    PromptStyle,
    Task,
)
from wildreward_ray.feedback.language import is_cjk

__all__ = [
    "PROMPT_VERSION",
    "REFUSAL_VERDICTS",
    "SPECS",
    "JudgePrompt",
    "PromptSpec",
    "PromptStyle",
    "Task",
    "TextPrompt",
    "describe",
    "style_of",
]

# More than any tokenizer's longest usual token: a clipped text still fills its budget.
_CHARACTERS_PER_TOKEN = 16
# Fewer than most texts have: without a tokenizer the budget must hold, not be filled.
_SAFE_CHARACTERS_PER_TOKEN = 3
# What is shown of an answer without a verdict when it is asked for again: its end, where the verdict should have been.
_SHOWN_ANSWER = 200


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that prompts need."""

    def encode(self, text: str, *, add_special_tokens: bool = ..., split_special_tokens: bool = ...) -> list[int]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


class JudgePrompt:
    """A `PromptSpec` bound to a tokenizer: builds token ids and knows the ids of its verdicts.

    Args:
        disarm: whether spans that imitate the prompt or instruct the judge are taken out of the fields.

    Attributes:
        text: the prompt as text, `{fields}` standing for the case to judge.
        prefix_ids: the tokens before it, the same for every case.
        verdict_ids: first token of each verdict word; in reasoning style none, as verdicts are read from text there.
        masked: spans taken out of fields so far.

    Raises:
        UserError: two verdict words begin with the same token in this vocabulary.
    """

    def __init__(self, spec: PromptSpec, style: PromptStyle, tokenizer: Tokenizer, *, disarm: bool = True) -> None:
        self.spec = spec
        self.masked = 0
        self._tokenizer = tokenizer
        self._disarm = disarm
        prefix, suffix = self._frame(style)
        self.text = f"{prefix}{{fields}}{suffix}"
        self.prefix_ids = self._prefix_ids(prefix, style)
        self._suffix_ids = tokenizer.encode(suffix, add_special_tokens=False)
        space = " " if style == "completion" else ""
        words = () if style == "reasoning" else spec.verdicts
        self.verdict_ids = [tokenizer.encode(space + v, add_special_tokens=False)[0] for v in words]
        if len(set(self.verdict_ids)) < len(self.verdict_ids):
            raise UserError(
                f"verdicts {spec.verdicts} share a first token in this model's vocabulary and can't be told apart",
                flag="--judge.prompt-style",
            )

    @property
    def longest(self) -> int:
        """Tokens of a prompt whose fields all fill their budgets."""
        return len(self.token_ids({name: "" for _, name, _ in self.spec.fields})) + sum(b for *_, b in self.spec.fields)

    def token_ids(self, fields: Mapping[str, str]) -> list[int]:
        """The prompt for one interaction. Long fields are cut to head and tail; the fixed parts are never cut."""
        ids = list(self.prefix_ids)
        for i, (shown, name, budget) in enumerate(self.spec.fields):
            opening = f'{shown}: "' if i == 0 else f'"\n{shown}: "'
            ids += self._tokenizer.encode(opening, add_special_tokens=False)
            ids += head_and_tail(self._data(self._safe(clip(fields[name], budget))), budget)
        return ids + self._suffix_ids

    def asked_again(self, prompt: Sequence[int], answer: str) -> list[int]:
        """A prompt of `token_ids`, the judge's answer to it that has no verdict, and the reminder to give one."""
        marker = "\x02answer\x03"
        chat = [{"role": "user", "content": "."}, {"role": "assistant", "content": marker}]
        rendered = _render(self._tokenizer, [*chat, {"role": "user", "content": REMINDER}])
        after = self._tokenizer.encode(rendered.split(marker)[1], add_special_tokens=False)
        return [*prompt, *self._data(answer[-_SHOWN_ANSWER:]), *after]

    def _safe(self, text: str) -> str:
        text, masked = disarmed(text) if self._disarm else (text, 0)
        self.masked += masked
        return one_line(without_edges(text) if masked else text)

    def _data(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _prefix_ids(self, prefix: str, style: PromptStyle) -> list[int]:
        """The static tokens. A chat template writes its own BOS; a bare text gets the one that the tokenizer adds."""
        bare = self._tokenizer.encode(prefix, add_special_tokens=False)
        if style != "completion":
            return bare
        marked = self._tokenizer.encode(prefix, add_special_tokens=True)
        # Only what comes before the text: an EOS after it would end the prompt in its middle.
        added = len(marked) - len(bare)
        return next((marked[: i + len(bare)] for i in range(added + 1) if marked[i : i + len(bare)] == bare), bare)

    def _frame(self, style: PromptStyle) -> tuple[str, str]:
        ending = f'"\n{self.spec.question}'
        if style == "completion":
            return _few_shot(self.spec), ending
        marker = "\x02fields\x03"
        prefix, suffix = _render(self._tokenizer, _messages(self.spec, marker + ending)).split(marker)
        return prefix, suffix


class TextPrompt:
    """A `PromptSpec` for a server that tokenises itself: builds text or messages. Field budgets are kept in characters.

    Args:
        disarm: whether spans that imitate the prompt or instruct the judge are taken out of the fields.

    Attributes:
        masked: spans taken out of fields so far.
    """

    def __init__(self, spec: PromptSpec, *, disarm: bool = True) -> None:
        self.spec = spec
        self.masked = 0
        self._disarm = disarm

    def text(self, fields: Mapping[str, str]) -> str:
        """The completion prompt for one interaction."""
        return _few_shot(self.spec) + self.spec.shot(self._safe(fields))

    def messages(self, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """The chat for one interaction, its last message the user's."""
        return _messages(self.spec, self.spec.shot(self._safe(fields)))

    def outline(self, style: PromptStyle) -> str:
        """The prompt as text, `{fields}` standing for the case to judge."""
        case = f'{{fields}}"\n{self.spec.question}'
        if style == "completion":
            return _few_shot(self.spec) + case
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in _messages(self.spec, case))

    def asked_again(self, messages: Sequence[dict[str, str]], answer: str) -> list[dict[str, str]]:
        """A chat of `messages`, the judge's answer to it that has no verdict, and the reminder to give one."""
        # Some servers refuse an empty message.
        shown = answer[-_SHOWN_ANSWER:] or "…"
        return [*messages, {"role": "assistant", "content": shown}, {"role": "user", "content": REMINDER}]

    def _safe(self, fields: Mapping[str, str]) -> dict[str, str]:
        safe = {}
        for _, name, budget in self.spec.fields:
            text = clip_characters(fields[name], budget)
            text, masked = disarmed(text) if self._disarm else (text, 0)
            self.masked += masked
            safe[name] = one_line(without_edges(text) if masked else text)
        return safe


def style_of(section: JudgeSection) -> PromptStyle:
    """The prompts that a judge of these settings is asked with."""
    return "reasoning" if section.mode == "reasoning" else section.prompt_style


def describe(section: JudgeSection) -> dict[str, Any]:
    """The judge's prompts as data, for a manifest: for each task its texts, examples, fields and verdict words."""
    asked = style_of(section)
    return {
        task: {
            "version": PROMPT_VERSION,
            "style": style,
            "instructions": spec.instructions,
            "examples": [list(e) for e in spec.examples],
            "fields": [list(f) for f in spec.fields],
            "question": spec.question,
            "verdicts": spec.verdicts,
            **({"reminder": REMINDER} if style == "reasoning" else {}),
        }
        for (task, style), spec in SPECS.items()
        if style == asked
    }


def _few_shot(spec: PromptSpec) -> str:
    shots = "".join(f"{spec.shot(f)} {spec.verdicts[v]}\n\n" for f, v in spec.examples)
    return f"{spec.instructions}\n\n{shots}"


def _messages(spec: PromptSpec, case: str) -> list[dict[str, str]]:
    chat = [{"role": "system", "content": spec.instructions}]
    for fields, verdict in spec.examples:
        chat.append({"role": "user", "content": spec.shot(fields)})
        chat.append({"role": "assistant", "content": spec.verdicts[verdict]})
    return [*chat, {"role": "user", "content": case}]


def _render(tokenizer: Tokenizer, chat: list[dict[str, str]]) -> str:
    """The chat as text; some templates know no system role, and get the instructions with the first message."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        if chat[0]["role"] != "system":
            raise
        system, first, *rest = chat
        merged = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        return tokenizer.apply_chat_template([merged, *rest], tokenize=False, add_generation_prompt=True)


def clip(text: str, budget: int) -> str:
    """The start and end of a text that is far longer than `budget` tokens, so that megabytes aren't tokenised for nothing."""
    reach = budget * _CHARACTERS_PER_TOKEN
    return text if len(text) <= 2 * reach else f"{text[:reach]} {text[-reach:]}"


def clip_characters(text: str, budget: int) -> str:
    """The first two thirds and the end of about `budget` tokens of a text, at 3 characters a token, 1 in Chinese and the like."""
    near = clip(text, budget)
    reach = budget if is_cjk(near) else budget * _SAFE_CHARACTERS_PER_TOKEN
    if len(text) <= reach:
        return text
    head = reach * 2 // 3
    return f"{text[:head]} {text[len(text) - (reach - head) :]}"


def one_line(text: str) -> str:
    """Text as it may stand between double quotes on one line of a prompt."""
    return " ".join(text.split()).replace('"', "'")


def head_and_tail(ids: Sequence[int], budget: int) -> list[int]:
    """At most `budget` tokens: the first two thirds from the start, the rest from the end."""
    if len(ids) <= budget:
        return list(ids)
    head = budget * 2 // 3
    return [*ids[:head], *ids[len(ids) - (budget - head) :]]
