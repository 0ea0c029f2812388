"""Turning (history, prompt, response) into the token ids that a foreign reward model reads.

Invariants:

- ids depend on the item alone, never on the batch it came in;
- with a chat template they are those of `tokenizer.apply_chat_template`. A tokenizer that puts BOS before every text does so here
  too where the template writes none, and it is there once where both do;
- an input that is too long loses its oldest history messages, whole, then the beginning of what is before the response, then
  the beginning of the response, never its end;
- two segments are told apart by the separator alone: one that stands in a text is left out, as are the tokenizer's other tokens
  around segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import Message, RewardTemplate
from wildreward_ray.reward.inputs import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNCUT = {"truncation": False, "padding": False}
_PROBE = ("probe-prompt-5f1c", "probe-response-9ab2")


@dataclass(frozen=True)
class _Frame:
    """Ids that stand around the segments of an input; one segment is a second one after an empty first one."""

    before: list[int]
    between: list[int]
    after: list[int]

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class ForeignEncoder:
    """Renders and tokenises inputs of a foreign reward model.

    Args:
        tokenizer: the model's tokenizer.
        max_length: longest input in tokens, special tokens included.
        template: used in place of the tokenizer's chat template, with the tokenizer's special tokens around the text.
        ignored_end: an id that an input must not end with, as the model reads over it: its own padding token.
        with_types: the model tells segments apart by token types.

    Attributes:
        form: `template`, `chat template` or `two segments`, in this order of preference.
        max_length: as given.

    Raises:
        UserError: the chat template drops the prompt or the response; there is none and the tokenizer puts nothing between
            two segments; `max_length` leaves no room beside the special tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        template: RewardTemplate | None = None,
        ignored_end: int | None = None,
        with_types: bool = False,
    ) -> None:
        self.tokenizer, self.max_length, self.template = tokenizer, max_length, template
        chat = bool(tokenizer.chat_template)
        self.form = "template" if template is not None else "chat template" if chat else "two segments"
        self._frame = self._find_frame()
        self._types = with_types and self.form == "two segments"
        self._ignored_end = ignored_end
        self.room = max_length - self._frame.size
        if self.room < 1:
            raise UserError(
                f"a length of {max_length} tokens leaves no room: there are {self._frame.size} special tokens",
                flag="--max-length",
            )

    def encode_batch(self, items: Sequence[Item]) -> list[list[int]]:
        """Token ids, at most `max_length` each, of many (history, prompt, response).

        Raises:
            UserError: the tokenizer's chat template refuses a conversation.
        """
        segments = self._segments(items)
        return [
            self._join(*(both if self._fits(both) else self._shorten(item, both)))
            for item, both in zip(items, segments, strict=True)
        ]

    def token_types(self, ids: Sequence[int]) -> list[int] | None:
        """0 for every token of an input up to the separator, 1 behind it; None where the model wants none."""
        if not self._types:
            return None
        between = self._frame.between
        start = next(i for i in range(len(ids)) if list(ids[i : i + len(between)]) == between)
        first = start + len(between)
        return [0] * first + [1] * (len(ids) - first)

    def _segments(self, items: Sequence[Item]) -> list[tuple[list[int], list[int]]]:
        """Ids of both segments, uncut and without what stands around them."""
        if self.form == "two segments":
            special = {*self._frame.before, *self._frame.between, *self._frame.after}
            before = self._tokens([_before(history, prompt) for history, prompt, _ in items])
            responses = self._tokens([response for _, _, response in items])
            clean = [[[i for i in ids if i not in special] for ids in column] for column in (before, responses)]
            return list(zip(*clean, strict=True))
        return [([], self._bare(ids)) for ids in self._tokens([self._render(*item) for item in items])]

    def _render(self, history: Sequence[Message], prompt: str, response: str) -> str:
        if self.template is not None:
            return self.template.render(history, prompt, response)
        from jinja2 import TemplateError

        messages = [dict(one) for one in history]
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
        except (TemplateError, ValueError) as e:
            roles = ", ".join(str(one["role"]) for one in messages)
            raise UserError(
                f"the tokenizer's chat template refuses a conversation of {roles}: {e}",
                flag="--template",
                hint="give a template of your own",
            ) from e

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # Saved tokenizers often carry truncation and padding settings of their own; both must be off here.
        found: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **_UNCUT,
        )["input_ids"]
        return found

    def _bare(self, ids: list[int]) -> list[int]:
        """`ids` without the special tokens that `_join` will put back."""
        before, after = self._frame.before, self._frame.after
        if before and ids[: len(before)] == before:
            ids = ids[len(before) :]
        if after and ids[-len(after) :] == after:
            ids = ids[: -len(after)]
        return ids

    def _fits(self, segments: tuple[list[int], list[int]]) -> bool:
        return len(segments[0]) + len(segments[1]) <= self.room

    def _shorten(self, item: Item, segments: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        """The segments with as much of the history as fits, or without history, to be cut by `_join`."""
        history, prompt, response = item
        for dropped in range(1, len(history) + 1):
            try:
                segments = self._segments([(history[dropped:], prompt, response)])[0]
            except UserError:
                # Some chat templates refuse what does not begin with a user message: one more message has to go.
                continue
            if self._fits(segments):
                break
        return segments

    def _join(self, first: list[int], second: list[int]) -> list[int]:
        second = second[-self.room :]
        first = first[max(0, len(first) + len(second) - self.room) :]
        ids = [*self._frame.before, *first, *self._frame.between, *second, *self._frame.after]
        while len(ids) > 1 and ids[-1] == self._ignored_end:
            ids.pop()
        return ids

    def _find_frame(self) -> _Frame:
        if self.form == "two segments":
            frame = _frame_of(self.tokenizer, "a", "b")
            if not frame.between:
                raise UserError(
                    "the tokenizer has no chat template, and puts nothing between a prompt and a response",
                    flag="--template",
                    hint="give the template that the model was trained with",
                )
            return frame
        text = self._render([], *_PROBE)
        lost = [part for part, probe in zip(("prompt", "response"), _PROBE, strict=True) if probe not in text]
        if lost:
            raise UserError(f"the tokenizer's chat template drops the {' and the '.join(lost)}", flag="--template")
        frame = _frame_of(self.tokenizer, "a")
        if self.form == "template":
            return frame
        # A chat template writes all there is but, for some tokenizers, BOS.
        bos = self.tokenizer.bos_token_id
        return _Frame([bos] if bos is not None and frame.before[:1] == [bos] else [], [], [])


def _before(history: Sequence[Message], prompt: str) -> str:
    """All before the response as one text, a paragraph a message. Two-segment models are trained on the bare prompt."""
    return "\n\n".join([*(message["content"] for message in history), prompt])


def _frame_of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> _Frame:
    """What the tokenizer puts around one text or two of its own accord.

    Raises:
        UserError: it changes texts when it adds special tokens to them, or writes token types in a way of its own.
    """
    full = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True, **_UNCUT)
    ids, special, types = (list(full[name]) for name in ("input_ids", "special_tokens_mask", "token_type_ids"))
    gaps: list[list[int]] = []
    place = 0
    for text in texts:
        own = list(tokenizer(text, add_special_tokens=False, **_UNCUT)["input_ids"])
        start = next((i for i in range(place, len(ids)) if not special[i] and ids[i : i + len(own)] == own), len(ids))
        gaps.append(ids[place:start])
        place = start + len(own)
    gaps.append(ids[place:])
    as_pair = [0] * (place - len(own)) + [1] * (len(ids) - place + len(own))
    if sum(map(len, gaps)) != sum(special) or (len(texts) == 2 and any(types) and types != as_pair):
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} changes a text when it adds special tokens to it, "
            "so an input can't be cut safely",
            flag="--model",
        )
    return _Frame(gaps[0], gaps[1] if len(texts) == 2 else [], gaps[-1])
