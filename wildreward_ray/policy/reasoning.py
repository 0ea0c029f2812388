"""Where a reply's reasoning ends and its answer begins."""

from __future__ import annotations

import re

from wildreward_ray.core.errors import UserError

_CLOSING = re.compile(r"</(.+)>|\[/(.+)\]")


def answer(text: str, end: str | None) -> str | None:
    """What the reward model is to read of a reply: all of it, or what follows its reasoning.

    The reward model learnt from replies as users saw them, and users of a reasoning model see the answer alone. Scored
    with its reasoning, a reply earns for length and for drafts that its answer takes back.

    A reply may quote the tag while it reasons, so the last `end` counts. An opening tag counts at the beginning only: a
    reply that names the tag in its prose is an answer. Where the prompt itself opens the reasoning, as some chat
    templates do, the reply doesn't show it: cut before `end`, it would read as an answer. Whoever knows the prompt puts
    the opening tag (`opening`) before such a reply.

    Args:
        text: a whole reply, decoded, from the opening tag on where the prompt has it.
        end: what closes reasoning, e.g. `</think>`; None where replies don't reason. `</x>` is taken to be opened by
            `<x>` and `[/x]` by `[x]`; for any other end no opening is known.

    Returns:
        The whole text where `end` is None or the text neither holds `end` nor begins, white space aside, with its
        opening tag; what follows the last `end`, without white space on its left (which may leave nothing); None where
        reasoning was opened and never closed, so that there is no answer.

    Raises:
        UserError: `end` is empty or blank.
    """
    if end is None:
        return text
    if not end.strip():
        raise UserError(
            f"{end!r} can't end a reply's reasoning: it is blank",
            flag="--rollout.reasoning-end",
            hint="set it to null for replies without reasoning",
        )
    _, found, after = text.rpartition(end)
    if found:
        return after.lstrip()
    tag = opening(end)
    if tag is not None and text.lstrip().startswith(tag):
        return None
    return text


def opening(end: str) -> str | None:
    """The tag that `end` closes, or None where it isn't a closing tag."""
    closing = _CLOSING.fullmatch(end)
    if closing is None:
        return None
    angled, squared = closing.groups()
    return f"<{angled}>" if angled is not None else f"[{squared}]"
