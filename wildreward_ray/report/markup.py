"""Markup that can't be broken by what it shows: every string is escaped unless it is `Html` already.

The pages show conversations of strangers, and those contain scripts, half tags and control characters. So pages and
pictures are built with `el` only, never by pasting strings, and come out as well-formed XML as well.
"""

from __future__ import annotations

import html
import re

_VOID = frozenset({"meta", "br"})
# What XML 1.0 allows. Control characters and lone surrogates would make a picture unreadable or a file unwritable.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Html(str):
    """Markup made by `el`, `join` or `raw`: safe to put into a page as it is."""

    __slots__ = ()


Child = Html | str | int | None
Attribute = str | int | float | None


def text(value: str) -> Html:
    """Any text, escaped; characters that XML doesn't know become U+FFFD."""
    return Html(html.escape(_NOT_XML.sub("\ufffd", value)))


def raw(value: str) -> Html:
    """Text of our own that is markup already, such as the stylesheet. Never for text from a run."""
    return Html(value)


def join(*parts: Child) -> Html:
    """Parts one after another: `Html` as it is, everything else escaped, None left out."""
    return Html("".join(part if isinstance(part, Html) else text(str(part)) for part in parts if part is not None))


def el(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        tag: its name.
        children: its content, see `join`.
        attributes: `class_` stands for class and `stroke_width` for stroke-width; those that are None are left out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join(*children)}</{tag}>")


def _attribute(value: str | int | float) -> str:
    # Two decimals of a pixel are more than anybody sees, and keep pictures small.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
