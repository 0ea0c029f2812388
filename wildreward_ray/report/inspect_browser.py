"""The interactions a page holds to browse: as JSON that no text in it can break out of, and the controls beside it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wildreward_ray.core.scale import JUDGE_LEVELS, LEVEL_NAMES
from wildreward_ray.report.inspect_groups import NOT_RECORDED
from wildreward_ray.report.inspect_stats import MAX_ENTROPY
from wildreward_ray.report.markup import Attribute, Child, Html, el, raw
from wildreward_ray.report.page import table
from wildreward_ray.report.values import count, words

# Characters of a text that the page holds; of a history, the latest ones.
MAX_TEXT = 4_000
# What the page reads of a sampled row.
COLUMNS = (
    "interaction_id", "turn", "language", "model", "timestamp", "toxic", "redacted", "history", "prompt", "response",
    "feedback", "judge_level", "judge_probs", "level", "level_probs", "entropy", "origin", "evidence_id", "similarity",
    "refusal_verdict", "topic_switch", "label", "drop_reason", "split", "judged_by", "masked", "pii",
)  # fmt: skip
_PLAIN = {
    "interaction_id": "id", "language": "language", "model": "model", "timestamp": "time", "judge_level": "judge",
    "level": "level", "origin": "origin", "evidence_id": "evidence", "refusal_verdict": "verdict", "label": "label",
    "judged_by": "by",
}  # fmt: skip
_FLAGS = {"masked": "masked", "toxic": "toxic", "redacted": "redacted", "topic_switch": "topic switch"}
# Control characters, lone surrogates and non-characters: shown as U+FFFD, as everywhere on a page.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Inside a script element only "<" can end the data; the others would matter in other contexts.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_SORTS = {
    "": "as drawn",
    "entropy-": "least sure first",
    "entropy": "surest first",
    "length-": "longest response first",
    "length": "shortest response first",
    "turn": "earliest turn first",
    "turn-": "latest turn first",
}


def entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page holds of a feedback row: texts cut to `MAX_TEXT`, and only what the row has."""
    out: dict[str, Any] = {short: row.get(name) for name, short in _PLAIN.items()}
    turn, similarity, entropy = row.get("turn"), row.get("similarity"), row.get("entropy")
    out["turn"] = None if turn is None else turn + 1
    out["similarity"] = _rounded(similarity)
    out["probs"], out["judge_probs"] = _probs(row.get("level_probs")), _probs(row.get("judge_probs"))
    out["entropy"] = _rounded(entropy) if entropy is not None else _entropy(row.get("judge_probs"))
    out["outcome"] = _outcome(row)
    out["flags"] = [shown for name, shown in _FLAGS.items() if row.get(name)] + [
        f"pii: {kind}" for kind in dict.fromkeys(row.get("pii") or ())
    ]
    cut: dict[str, int] = {}
    for name in ("prompt", "response", "feedback"):
        text = row.get(name)
        if text is not None:
            out[name] = text[:MAX_TEXT]
            cut[name] = len(text) - len(out[name])
    response = row.get("response")
    out["length"] = None if response is None else len(response)
    out["history"], cut["history"] = _history(row.get("history"))
    out["cut"] = {name: n for name, n in cut.items() if n}
    return {name: value for name, value in out.items() if value not in (None, [], {})}


def embed(entries: Sequence[Mapping[str, Any]]) -> Html:
    """The data block that the page's script reads."""
    names = {str(level): LEVEL_NAMES[level] for level in JUDGE_LEVELS}
    data = json.dumps(
        _clean({"names": names, "rows": entries}), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return el("script", raw(data.translate(_ESCAPES)), type="application/json", id="interactions")


def browser(entries: Sequence[Mapping[str, Any]]) -> Html:
    """The controls, filled with the values that occur, and the place where the script draws. Hidden until it runs."""
    level = [(str(i), f"{i} {LEVEL_NAMES[i]}") for i in JUDGE_LEVELS]
    outcomes = Counter(str(e.get("outcome", NOT_RECORDED)) for e in entries)
    dropped = [(name, words(name)) for name in sorted(outcomes) if name.startswith("dropped:")]
    sides = [(name, name) for name in sorted(outcomes) if not name.startswith("dropped:")]
    groups = ([("kept", "kept")] if sides else []) + ([("dropped", "dropped, for any reason")] if dropped else [])
    flags = sorted({flag.split(":")[0] for e in entries for flag in e.get("flags", ())})
    form = el(
        "form",
        _field("Search", _input(type="search", name="q", placeholder="words in any text, or an id"), "wide-field"),
        _select("level", "Final level", level),
        _select("judge", "Judge's level", level),
        _select("origin", "Origin", _values(entries, "origin")),
        _select("language", "Language", _values(entries, "language")),
        _select("outcome", "Split or drop reason", [*groups, *sides, *dropped]),
        _select("by", "Judged by", _values(entries, "by")),
        _select("flag", "Flag", [("any", "any flag"), *((flag, flag) for flag in flags)] if flags else []),
        _entropy_slider("emin", "Entropy from", 0.0),
        _entropy_slider("emax", "Entropy to", math.ceil(MAX_ENTROPY * 100) / 100),
        _field("Sort", el("select", *(el("option", shown, value=key) for key, shown in _SORTS.items()), name="sort")),
        el("button", "Clear", type="reset"),
        id="filters",
    )
    pager = el(
        "div",
        el("button", "Previous", type="button", id="previous"),
        el("span", id="status", role="status"),
        el("button", "Next", type="button", id="next"),
        class_="pager",
    )
    keys = el(
        "p",
        "Keys: j and k go to the next and the previous interaction (arrows do, too, inside the list), / searches, Escape "
        "leaves the search. The address holds the filters, so a view can be sent to somebody who has this file.",
        class_="note keys",
    )
    return el("div", form, keys, pager, el("div", id="list", tabindex=-1), id="browser", hidden="hidden")


def strata_table(strata: Iterable[tuple[str, int, int, int]]) -> Html:
    """How many rows of every origin and level there are, and how many were drawn."""
    rows = [
        [words(origin), f"{level} {LEVEL_NAMES[level]}" if level else "none", count(rows), count(taken)]
        for origin, level, rows, taken in strata
    ]
    return el(
        "details",
        el("summary", el("span", "what was drawn from each group", class_="more flush")),
        table(["Origin", "Final level", "Rows", "Drawn"], rows, numeric=(2, 3)),
    )


def _outcome(row: Mapping[str, Any]) -> str | None:
    if row.get("drop_reason") is not None:
        return f"dropped:{row['drop_reason']}"
    if row.get("split") is not None:
        return str(row["split"])
    return "kept" if "drop_reason" in row else None


def _history(messages: Sequence[Mapping[str, Any]] | None) -> tuple[list[list[str]], int]:
    """(role, text) of the latest messages within `MAX_TEXT`, and how many characters are missing."""
    left, shown, missing = MAX_TEXT, list[list[str]](), 0
    for message in reversed(messages or ()):
        text = message["content"] or ""
        if left > 0:
            # Of the earliest message that still fits in part, the end is nearer to the request.
            shown.append([message["role"] or "", text[-left:]])
        missing += max(0, len(text) - max(left, 0))
        left -= len(text)
    return shown[::-1], missing


def _probs(values: Sequence[float] | None) -> list[float] | None:
    if not values or any(v is None or not math.isfinite(v) for v in values):
        return None
    return [round(v, 4) for v in values]


def _entropy(values: Sequence[float] | None) -> float | None:
    probs = _probs(values)
    return None if probs is None else _rounded(-sum(p * math.log(p) for p in probs if p > 0))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {name: _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _values(entries: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, str]]:
    """The values of a field that occur, commonest first, with how often."""
    found = Counter(_UNPRINTABLE.sub("\ufffd", str(e.get(name, NOT_RECORDED))) for e in entries)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [(value, f"{value} ({n:,})") for value, n in ordered]


def _select(name: str, title: str, options: Sequence[tuple[str, str]]) -> Html | None:
    """A choice among `options`; none at all where there is nothing to choose from."""
    if not options:
        return None
    written = [el("option", "any", value=""), *(el("option", shown, value=value) for value, shown in options)]
    return _field(title, el("select", *written, name=name))


def _entropy_slider(name: str, title: str, value: float) -> Html:
    high = math.ceil(MAX_ENTROPY * 100) / 100
    slider = _input(type="range", name=name, min=0, max=high, step=0.01, value=value)
    return _field(title, slider, output=el("output", f"{value:.2f}"))


def _input(**attributes: Attribute) -> Html:
    # An input has no end tag in HTML.
    return raw(el("input", **attributes).removesuffix("></input>") + "/>")


def _field(title: str, control: Html, class_: str | None = None, output: Child = None) -> Html:
    return el("label", el("span", title, " " if output else None, output, class_="field-name"), control, class_=class_)
