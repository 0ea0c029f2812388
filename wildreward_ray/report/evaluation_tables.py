"""The metrics of evaluations as tables, in Markdown, LaTeX and HTML, and how their numbers and their gaps are put in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wildreward_ray.report.markup import Html, el, join
from wildreward_ray.report.page import table
from wildreward_ray.report.values import ABSENT, count, counts, items, mapping, number, percent, rows, string, words

ACCURACY = "accuracy"
LEVELS = ("easy", "normal", "hard")
UNDEFINED = "not defined"
_CORRELATIONS = frozenset({"spearman", "pearson", "kendall"})
_INTERVALS = "95 % bootstrap intervals in brackets"
# A name and a password in an address are nobody's business who reads the report.
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "†": r"$^{\dagger}$",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


class Measured(NamedTuple):
    """A value and the ends of its 95 % interval; None where it isn't defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def measured(entry: Any, value: str = "value", low: str = "low", high: str = "high") -> Measured:
    """What stands in a mapping under these keys; not finite or absent is None."""
    found = mapping(entry)
    return Measured(number(found.get(value)), number(found.get(low)), number(found.get(high)))


def metrics_of(results: Mapping[str, Any]) -> dict[str, Measured]:
    """Every metric of an evaluation, in the order in which it is to be shown."""
    return {str(key): measured(entry) for key, entry in mapping(results.get("metrics")).items()}


def incomplete(results: Mapping[str, Any]) -> list[str]:
    """Why the numbers are not the benchmark's own; empty if they are."""
    missing, limit, complete = items(results.get("missing")), results.get("limit"), results.get("complete")
    said = [f"missing: {', '.join(map(string, missing))}"] if missing else []
    if limit is not None:
        said.append(f"--limit {string(limit)}: {count(results.get('items'))} prompts were measured")
    if complete is not True and not said:
        said.append(
            "it is marked as incomplete, and why is not recorded"
            if complete is False
            else "it is not recorded whether the whole benchmark was measured"
        )
    return said


def model_name(results: Mapping[str, Any]) -> str:
    """What the evaluated model is called, without a password that its address may hold."""
    return without_password(string(results.get("name")))


def without_password(text: str) -> str:
    """A text whose addresses lack the name and the password of who may ask there."""
    return _USERINFO.sub("…@", text)


def metric_name(key: str) -> str:
    """`chat/hard` as `chat: hard`."""
    return words(key.replace("/", ": "))


def write_metric(key: str, value: float | None, *, unit: bool = True) -> str:
    """A share in percent (`76.5 %`), a correlation as it is (`0.412`), `not defined` for None."""
    if value is None:
        return UNDEFINED
    if is_correlation(key):
        return f"{value:.3f}"
    return percent(value) if unit else f"{100 * value:.1f}"


def is_correlation(key: str) -> bool:
    """Whether a metric lies in -1..1, and not in 0..1 as all others do."""
    return key.rpartition("/")[2] in _CORRELATIONS


# Markdown and LaTeX


def markdown_table(results_list: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of one evaluation, a row each, or of several, a model a row; a table for every benchmark.

    With several models only metrics without a slash are columns: those of a part, such as `chat/easy`, would make a table
    of dozens of columns, and stand in the table of a single model.

    Args:
        results_list: contents of results.json.
    """
    blocks: list[str] = []
    for title, found in _by_benchmark(results_list).items():
        heads, body, notes = _content(found)
        # What follows a row's name is numbers, which need no escape.
        cells = [[_markdown(head) for head in heads], *([_markdown(name), *values] for name, *values in body)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
        written = ["| " + " | ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) + " |" for x in lines]
        blocks += [f"**{_markdown(title)}**, {_INTERVALS}.", "\n".join(written), *map(_markdown, notes)]
    return "\n\n".join(blocks) + "\n"


def latex_table(results_list: Sequence[Mapping[str, Any]]) -> str:
    """The same as `markdown_table` for LaTeX, with the rules of the package booktabs.

    Args:
        results_list: contents of results.json.
    """
    blocks = [r"% \usepackage{booktabs}, \usepackage[T1]{fontenc}"]
    for title, found in _by_benchmark(results_list).items():
        heads, body, notes = _content(found)
        head = " & ".join(map(_latex, heads)) + r" \\"
        lines = [" & ".join([_latex(name), *values]) + r" \\" for name, *values in body]
        blocks += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex(title)}, {_latex(_INTERVALS)}.}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"    \toprule",
            f"    {head}",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\smallskip{{\footnotesize {_latex(note)}}}" for note in notes),
            r"\end{table}",
        ]
    return "\n".join(blocks) + "\n"


def _by_benchmark(results_list: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for results in results_list:
        found.setdefault(string(results.get("title") or results.get("benchmark")), []).append(results)
    return found


def _content(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Heading, rows and notes, not escaped yet."""
    marked = [model_name(r) + ("†" if incomplete(r) else "") for r in found]
    notes = [
        f"† {model_name(r)} is incomplete, so its numbers are not the benchmark's own: {'; '.join(reasons)}."
        for r in found
        if (reasons := incomplete(r))
    ]
    known = [metrics_of(r) for r in found]
    if len(found) == 1:
        return ["metric", marked[0]], [[_heading(key), _cell(key, m)] for key, m in known[0].items()], notes
    keys = [key for key in dict.fromkeys(key for metrics in known for key in metrics) if "/" not in key]
    body = [
        [name, *(_cell(key, metrics[key]) if key in metrics else "not measured" for key in keys)]
        for name, metrics in zip(marked, known, strict=True)
    ]
    return ["model", *map(_heading, keys)], body, notes


def _heading(key: str) -> str:
    return metric_name(key) + ("" if is_correlation(key) else ", %")


def _cell(key: str, m: Measured) -> str:
    if m.value is None or m.ends is None:
        return write_metric(key, m.value, unit=False)
    return (
        f"{write_metric(key, m.value, unit=False)} [{', '.join(write_metric(key, end, unit=False) for end in m.ends)}]"
    )


def _line(text: str) -> str:
    # What breaks a line, or turns the order of letters, has no place in a table's source.
    return " ".join(_CONTROL.sub(" ", text).split())


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", _line(text)).replace("<", "&lt;").replace(">", "&gt;")


def _latex(text: str) -> str:
    written = "".join(_LATEX.get(c, c) for c in _line(text))
    # After a line break a bracket or a star would be taken for its argument.
    return "{}" + written if written.startswith(("[", "*")) else written


# HTML


def metrics_block(results: Mapping[str, Any]) -> Html:
    """All metrics with their intervals: what has easy, normal and hard pairs as a table of these, the rest as a list."""
    metrics, sizes = metrics_of(results), counts(results.get("groups"))
    if not metrics:
        return el("p", "Metrics: not recorded.", class_="absent")
    parts: list[Html] = []
    placed: set[str] = set()
    if any(level in metrics for level in LEVELS):
        single = [key for key in metrics if key not in (ACCURACY, *LEVELS) and not key.endswith(_level_ends())]
        whole = [key.rpartition("/")[0] for key in metrics if key.endswith(_level_ends())]
        lines: list[list[Html | str]] = []
        for name in ["", *dict.fromkeys([*single, *whole])]:
            keys = [name or ACCURACY, *(f"{name}/{level}" if name else level for level in LEVELS)]
            # A metric without levels of its own stands in the list below.
            if any(key in metrics for key in keys[1:]):
                placed.update(keys)
                cells = [metric_cell(key, metrics[key]) if key in metrics else UNDEFINED for key in keys]
                lines.append([words(name) if name else el("b", "whole benchmark"), *cells])
        parts.append(region(["Part", ACCURACY, *LEVELS], lines, "Metrics by part and difficulty"))
    rest = [key for key in metrics if key not in placed]
    if rest:
        listed = [
            [metric_name(key), metric_cell(key, metrics[key]), _prompts(key, sizes, results.get("items"))]
            for key in rest
        ]
        parts.append(region(["Metric", "Value [95 %]", "Prompts"], listed, "Metrics"))
    return join(*parts)


def metric_cell(key: str, m: Measured) -> Html:
    """A metric and, below it, its interval; what isn't defined says why."""
    if m.value is None:
        return el("span", f"{UNDEFINED}: nothing that was measured tells of it", class_="absent")
    if m.ends is None:
        return join(write_metric(key, m.value), el("div", "no interval: too few resamples define it", class_="soft"))
    ends = ", ".join(write_metric(key, end, unit=False) for end in m.ends)
    return join(write_metric(key, m.value), el("div", f"[{ends}]", class_="soft"))


def reference_block(results: Mapping[str, Any]) -> Html:
    """This model's row above the published ones, which are the authors' and were not measured here."""
    published = rows(results.get("reference"))
    keys = list(dict.fromkeys(key for row in published for key in counts(row.get("metrics"))))
    if not keys:
        return el("p", "There are no published figures for this benchmark to read these beside.", class_="absent")
    metrics, mark = metrics_of(results), "†" if incomplete(results) else ""
    own = [metric_cell(key, metrics[key]) if key in metrics else UNDEFINED for key in keys]
    lines: list[list[Html | str]] = [
        [el("b", without_password(string(results.get("name"))) + mark), *own, "measured here"]
    ]
    for row in published:
        theirs = counts(row.get("metrics"))
        cells = [write_metric(key, theirs[key]) if key in theirs else ABSENT for key in keys]
        lines.append([string(row.get("model")), *cells, "authors' figure"])
    source = string(results.get("reference_source"))
    return join(
        region(["Model", *map(metric_name, keys), "Whose number"], lines, "Published figures"),
        el("p", f"Source of the authors' figures: {source}. They come without intervals.", class_="note"),
        el("p", "† incomplete: not to be compared with the published figures.", class_="note") if mark else None,
    )


def region(
    header: Sequence[str], lines: Iterable[Sequence[Html | str]], name: str, *, numeric: Sequence[int] | None = None
) -> Html:
    """A table that may scroll sideways, reachable by keyboard; all columns but the first are numbers if `numeric` is None."""
    inside = table(header, lines, numeric=range(1, len(header)) if numeric is None else numeric)
    return el("div", inside, class_="region", tabindex=0, role="region", aria_label=name)


def _level_ends() -> tuple[str, ...]:
    return tuple(f"/{level}" for level in LEVELS)


def _prompts(key: str, sizes: Mapping[str, float], whole: Any) -> str:
    if key == ACCURACY:
        return count(whole)
    size = sizes.get(key, sizes.get(key.rpartition("/")[2]))
    return "of several groups" if size is None else count(size)
