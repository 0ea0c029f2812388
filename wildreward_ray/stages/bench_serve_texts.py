"""What `bench serve` asks for: groups of real replies to one real prompt, and a model of a real size to score them.

A group is a conversation up to a user's message, the reply it got, and replies that other conversations got: what a trainer
sends that samples several replies to a prompt, as far as the work of the service goes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from wildreward_ray.cluster.models import SMOLLM2, resolve_model
from wildreward_ray.core.config.bench import ServeBench
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import DEFAULT_TEMPLATE, Message
from wildreward_ray.reward.inputs import InputEncoder
from wildreward_ray.stages import ingest

# Tokens at the seam of context and reply may be other ones than those of both alone.
SLACK = 16
_LEVELS = 4
_WARM_UP_GROUPS = 8
_CHUNK = 64


@dataclass(frozen=True)
class Context:
    """A conversation up to a user's message, and the reply it got."""

    history: tuple[Message, ...]
    prompt: str
    reply: str


@dataclass(frozen=True)
class Texts:
    """Items of `/v1/score` and their token ids, in the order in which they are asked for: group after group.

    Attributes:
        items, inputs: what is measured.
        warm_up, warm_up_inputs: other texts, for before the clock starts.
        context_tokens: mean length of a group's context.
        reply_tokens: mean length of what a reply adds to it.
    """

    items: list[dict[str, Any]]
    inputs: list[list[int]]
    warm_up: list[dict[str, Any]]
    warm_up_inputs: list[list[int]]
    context_tokens: float
    reply_tokens: float


def make_model(folder: str, section: ServeBench) -> None:
    """Save a reward model of SmolLM2-135M's size with a random head: rewards mean nothing, and cost what real ones do."""
    from wildreward_ray.reward.config import RewardConfig
    from wildreward_ray.reward.model import load_base, save_checkpoint

    model, tokenizer = load_base(resolve_model(SMOLLM2, flag="--serve.model"), _LEVELS)
    longest = section.context_tokens + section.reply_tokens + SLACK
    save_checkpoint(
        model, tokenizer, RewardConfig(levels=_LEVELS, template=DEFAULT_TEMPLATE, max_length=longest), folder
    )


def read_texts(plan: ingest.Plan, encoder: InputEncoder, section: ServeBench, limit: int | None) -> Texts:
    """Groups of replies from chat logs; every conversation gives one prompt at the most.

    Args:
        limit: items that are measured, cut to whole groups; None: all the logs hold.

    Raises:
        UserError: the logs hold too few, or inputs can be longer than the model reads.
    """
    longest = section.context_tokens + section.reply_tokens + SLACK
    if longest > encoder.max_length:
        raise UserError(
            f"{section.context_tokens} tokens of context and {section.reply_tokens} of reply, with {SLACK} to spare, are more "
            f"than the model's {encoder.max_length}",
            flag="--serve.context-tokens",
            hint="lower",
        )
    size = section.group_size
    warm = max(_WARM_UP_GROUPS, size)
    groups = None if limit is None else max(1, limit // size)
    # A group borrows replies from as many other conversations as it has replies.
    least = max(size, groups or 0)
    found = list(islice(_contexts(plan, encoder, section), None if groups is None else warm + least))
    if len(found) < warm + least:
        raise UserError(
            f"{len(found)} conversations have a prompt and a reply that are short enough, and {warm + least} are needed: "
            f"{warm} to warm up and {least} to measure",
            flag="--input",
            hint="give longer logs, or lower --limit",
        )
    warm_up, measured = found[:warm], found[warm:]
    items = grouped(measured, size)[: None if groups is None else groups * size]
    others = grouped(warm_up, size)
    inputs, other_inputs = (encoder.encode_batch([_parts(i) for i in part]) for part in (items, others))
    shared = [len(encoder.encode(c.history, c.prompt, "")) for c in measured[:groups]]
    context = sum(shared) / len(shared)
    reply = sum(map(len, inputs)) / len(inputs) - context
    return Texts(items, inputs, others, other_inputs, context, reply)


def grouped(contexts: Sequence[Context], size: int) -> list[dict[str, Any]]:
    """`size` items for every context, next to one another: its own reply first, then those of others, drawn at random."""
    draw = random.Random(0)
    items = []
    for number, context in enumerate(contexts):
        others = [i if i < number else i + 1 for i in draw.sample(range(len(contexts) - 1), size - 1)]
        replies = [context.reply, *(contexts[i].reply for i in others)]
        history = [dict(message) for message in context.history]
        items += [{"history": history, "prompt": context.prompt, "response": reply} for reply in replies]
    return items


def _parts(item: dict[str, Any]) -> tuple[list[Message], str, str]:
    return item["history"], item["prompt"], item["response"]


def _contexts(plan: ingest.Plan, encoder: InputEncoder, section: ServeBench) -> Iterator[Context]:
    """The last turn of every conversation whose prompt and reply are short enough."""
    for _, table in ingest.read_chunks(plan.shards, size=_CHUNK, limit=None, done={}):
        for row in table.to_pylist():
            for turn in reversed(row["turns"] or []):
                messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
                prompt, reply = messages[turn - 1]["content"], messages[turn]["content"]
                if not reply.strip() or count_tokens(encoder, reply) > section.reply_tokens:
                    continue
                history = newest_history(encoder, messages[: turn - 1], prompt, section.context_tokens)
                if history is not None:
                    yield Context(tuple(history), prompt, reply)
                    break


def newest_history(
    encoder: InputEncoder, history: Sequence[Message], prompt: str, longest: int
) -> Sequence[Message] | None:
    """As many of the newest messages as fit into `longest` tokens with the prompt; None if the prompt alone does not."""
    kept: Sequence[Message] | None = None
    for first in range(len(history), -1, -1):
        if count_tokens(encoder, encoder.template.render(history[first:], prompt, "")) > longest:
            break
        kept = history[first:]
    return kept


def count_tokens(encoder: InputEncoder, text: str) -> int:
    """Tokens of a text, without special ones."""
    return len(encoder.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
