"""The frame of a page and the blocks a section is made of: tiles, tables, figures, texts of strangers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources

from wildreward_ray.report.markup import Child, Html, el, join, raw
from wildreward_ray.report.values import ABSENT, string

# Longer texts are folded; far longer ones are cut, or one pasted book would outweigh the page.
_FOLD_CHARACTERS, _FOLD_LINES = 320, 7
_CUT_CHARACTERS = 20_000
# Longest value of a table that is kept on one line.
_LINE = 22


def page(title: str, *body: Child, style: str = "", script: str = "") -> Html:
    """A whole document that loads nothing.

    Everything in it is escaped. The content policy is a second lock: of all scripts only `script` can run, because the
    policy names its hash (https://www.w3.org/TR/CSP3/#external-hash), and without one none can.

    Args:
        title: of the document.
        body: what it shows.
        style: CSS of this kind of page, after the common one.
        script: JavaScript of our own, run when the document is there.

    Raises:
        ValueError: the script holds a character sequence that would end or hide its element.
    """
    if any(mark in script.lower() for mark in ("</script", "<script", "<!--")):
        raise ValueError("a script in a page must hold neither '</script', '<script' nor '<!--'")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("title", title),
        el("style", raw(own_file("page.css") + style)),
    )
    whole = el("body", el("main", *body), el("script", raw(script)) if script else None)
    return join(raw("<!DOCTYPE html>\n"), el("html", head, whole, lang="en"), raw("\n"))


def own_file(name: str) -> str:
    """The text of a stylesheet or script of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def section(anchor: str, title: str, *body: Child) -> Html:
    """A numbered section of the page."""
    return el("section", el("h2", title), *body, id=anchor)


def not_run(what: str) -> Html:
    """What stands where a part of the loop left no result."""
    return el("p", f"{what}: not run.", class_="absent")


def note(*parts: Child) -> Html:
    """A paragraph that explains."""
    return el("p", *parts, class_="note")


def tile(name: str, value: str, explanation: str) -> Html:
    """A headline number."""
    return el(
        "div",
        el("div", name, class_="tile-name"),
        el("div", value, class_="tile-value"),
        el("div", explanation, class_="tile-note"),
        class_="tile",
    )


def tiles(entries: Iterable[Html]) -> Html:
    """Headline numbers in a row that wraps."""
    return el("div", *entries, class_="tiles")


def figure(title: str, picture: Html | None, *caption: Child) -> Html:
    """A picture with the sentence that says how to read it; without a picture it says that there is nothing to show."""
    shown = picture if picture is not None else el("p", ABSENT, class_="absent")
    return el("figure", el("h3", title), shown, el("figcaption", *caption) if caption else None)


def grid(*blocks: Child) -> Html:
    """Blocks side by side where there is room, one below the other on a phone."""
    return el("div", *blocks, class_="grid")


def table(header: Sequence[str], rows: Iterable[Sequence[Child]], *, numeric: Sequence[int] = ()) -> Html:
    """A table; the columns in `numeric` are aligned to the right."""

    def cells(tag: str, values: Sequence[Child]) -> Html:
        return el("tr", *(el(tag, v, class_="number" if i in numeric else None) for i, v in enumerate(values)))

    body = el("tbody", *(cells("td", row) for row in rows))
    return el("div", el("table", el("thead", cells("th", header)), body), class_="scroll")


def facts(*rows: tuple[str, str, str], subject: str = "Number") -> Html:
    """A table of (name, value, sentence that tells what the value is). Numbers stay on one line, paths may wrap."""
    written = [
        (name, el("span", value, class_="long") if len(value) > _LINE else value, meaning)
        for name, value, meaning in rows
    ]
    return table([subject, "Value", "What it is"], written, numeric=(1,))


def passage(title: str, value: object) -> Html:
    """Text from a conversation, as it was written, folded where it is long."""
    whole = string(value)
    cut = whole[:_CUT_CHARACTERS]
    if len(whole) > len(cut):
        cut += f"\n… [{len(whole) - len(cut):,} more characters are not shown]"
    start = "\n".join(cut[:_FOLD_CHARACTERS].split("\n")[:_FOLD_LINES])
    heading = el("div", title, class_="passage-title")
    if len(start) >= len(cut):
        return el("div", heading, el("div", cut, class_="said", dir="auto"), class_="passage")
    more = el("span", f"all {len(whole):,} characters", class_="more")
    summary = el("summary", el("span", start + "…", class_="said preview", dir="auto"), more)
    return el("div", heading, el("details", summary, el("div", cut, class_="said", dir="auto")), class_="passage")


def badge(value: str, kind: str = "plain") -> Html:
    """A short marked word; `kind` is plain, good or warn."""
    return el("span", value, class_=f"badge {kind}")
