"""Turning (history, prompt, response) into the token ids a reward model reads.

Invariants, the same for training, serving and scoring:

- ids depend on the item alone, never on the batch it came in;
- an input that is too long loses its oldest history messages, whole, and only then tokens from the left, so the end of
  the response is always there;
- the special tokens the tokenizer puts around a text are there once, also when the template already wrote them
  (otherwise BOS comes twice: https://github.com/huggingface/trl/issues/3853);
- ids never end with the padding token. Decoder models in transformers read the rightmost token that isn't padding, vLLM
  reads the last one. Where padding is EOS, an input ending in EOS would get two different rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import Message, RewardTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = tuple[Sequence[Message], str, str]


class InputEncoder:
    """Renders and tokenises reward-model inputs.

    Args:
        tokenizer: the model's tokenizer.
        template: the template stored in the checkpoint.
        max_length: longest input in tokens, special tokens included.

    Attributes:
        room: longest input in tokens without special tokens.

    Raises:
        UserError: `max_length` leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: RewardTemplate, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self._prefix, self._suffix = _special_tokens_around(tokenizer)
        self.room = max_length - len(self._prefix) - len(self._suffix)
        if self.room < 1:
            raise UserError(
                f"a length of {max_length} tokens leaves no room: "
                f"the tokenizer adds {len(self._prefix) + len(self._suffix)} special tokens",
                flag="--max-length",
            )

    def encode(self, history: Sequence[Message], prompt: str, response: str) -> list[int]:
        """Token ids, at most `max_length`, of `response` as the reply to `prompt` after `history`."""
        return self.encode_batch([(history, prompt, response)])[0]

    def encode_batch(self, items: Sequence[Item]) -> list[list[int]]:
        """`encode` for many (history, prompt, response), tokenised in one call where nothing has to be cut."""
        bodies = self._bodies([self.template.render(*item) for item in items])
        return [
            self._wrap(body if len(body) <= self.room else self._shorten(item, body))
            for item, body in zip(items, bodies, strict=True)
        ]

    def encode_text(self, rendered: str) -> list[int]:
        """Token ids of a text that was rendered elsewhere, cut from the left to `max_length`."""
        return self._wrap(self._bodies([rendered])[0])

    def essential_tokens(self, one: Item | str) -> int:
        """Tokens of what must not be cut if the reward is to be that of the whole reply: the response, or a rendered text."""
        return len(self._bodies([one if isinstance(one, str) else one[2]])[0])

    def may_be_cut(self, one: Item | str, ids: Sequence[int]) -> bool:
        """Whether `ids` may have lost something of `one`: they fill the model's input, or did before padding went from their end."""
        text = one if isinstance(one, str) else one[2]
        return len(ids) >= self.max_length - 1 or text.endswith(str(self.tokenizer.pad_token))

    def _bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, uncut and without the surrounding special tokens."""
        if not texts:
            return []
        # Saved tokenizers often carry truncation and padding settings of their own; both must be off here.
        encoded: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [self._bare(ids) for ids in encoded]

    def _bare(self, ids: list[int]) -> list[int]:
        """`ids` without the special tokens that `_wrap` will put back."""
        start, end = len(self._prefix), len(self._suffix)
        if start and ids[:start] == self._prefix:
            ids = ids[start:]
        if end and ids[-end:] == self._suffix:
            ids = ids[:-end]
        return ids

    def _wrap(self, body: list[int]) -> list[int]:
        ids = self._prefix + body[-self.room :] + self._suffix
        pad = self.tokenizer.pad_token_id
        while len(ids) > 1 and ids[-1] == pad:
            ids.pop()
        return ids

    def _shorten(self, item: Item, body: list[int]) -> list[int]:
        """The body that drops the fewest oldest messages and fits, or the one without history, to be cut by `_wrap`."""
        history, prompt, response = item
        count = len(history)
        if count == 0:
            return body
        bare = self._bodies([self.template.render([], prompt, response)])[0]
        if len(bare) > self.room:
            return bare
        # Every message is measured once. What the template writes around messages is shared out evenly, which makes the
        # first guess nearly always right; the true length then decides, so a template that writes unevenly costs
        # O(log n) renderings and is never wrong.
        costs = [len(ids) for ids in self._bodies([message["content"] for message in history])]
        around = (len(body) - len(bare) - sum(costs)) / count
        newest_first = accumulate(cost + around for cost in reversed(costs))
        guess = count - sum(len(bare) + total <= self.room for total in newest_first)

        too_few, enough, best = 0, count, bare
        probes = 0
        while enough - too_few > 1:
            dropped = min(max(guess, too_few + 1), enough - 1)
            candidate = self._bodies([self.template.render(history[dropped:], prompt, response)])[0]
            fits = len(candidate) <= self.room
            if fits:
                enough, best = dropped, candidate
            else:
                too_few = dropped
            probes += 1
            # Two probes confirm a right guess from both sides; a wrong one is bisected.
            guess = dropped + (-1 if fits else 1) if probes < 2 else (too_few + enough) // 2
        return best


def _special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text of its own accord."""
    off = {"truncation": False, "padding": False}
    full = tokenizer("a", return_special_tokens_mask=True, **off)
    ids, special = list(full["input_ids"]), list(full["special_tokens_mask"])
    start = next((i for i, flag in enumerate(special) if not flag), len(ids))
    end = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
    prefix, suffix = ids[:start], ids[len(ids) - end :]
    if prefix + list(tokenizer("a", add_special_tokens=False, **off)["input_ids"]) + suffix != ids:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} changes a text when it adds special tokens to it, "
            "so an input can't be cut safely",
            flag="--base",
        )
    return prefix, suffix
