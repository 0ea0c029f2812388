"""The page that puts evaluations of one benchmark side by side: metrics, differences and how sure they are, pairs fixed and broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_blocks import RM_BENCH, absent, alone
from wildreward_ray.report.evaluation_errors import error_card
from wildreward_ray.report.evaluation_figures import (
    PAPER_MARGINS,
    PAPER_NAME,
    Bins,
    Curve,
    Effect,
    bins_of,
    forest,
    margin_curves,
    margin_points,
    reliability,
)
from wildreward_ray.report.evaluation_making import flat
from wildreward_ray.report.evaluation_page import incomplete_box, style
from wildreward_ray.report.evaluation_tables import (
    ACCURACY,
    UNDEFINED,
    Measured,
    is_correlation,
    measured,
    metric_cell,
    metric_name,
    metrics_of,
    model_name,
    region,
    write_metric,
)
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import facts, figure, grid, note, page, section
from wildreward_ray.report.values import count, items, mapping, moment, number, percent, rows, string

ALPHA = 0.05
MAX_PAIRS = 20
SURE, SURER = "*", "**"


class Change(NamedTuple):
    """A metric's difference from the baseline.

    Attributes:
        a, b: the metric of the baseline, and of the other model.
        difference: `b - a` and its 95 % interval.
        p: two-sided, of this metric alone.
        holm: the same, adjusted for all differences of the page.
    """

    a: float | None
    b: float | None
    difference: Measured
    p: float | None
    holm: float | None

    @property
    def mark(self) -> str:
        """`*`: p < 0.05 and an interval without 0; `**`: so after the adjustment as well; else nothing."""
        ends = self.difference.ends
        if self.p is None or self.p >= ALPHA or ends is None or ends[0] <= 0 <= ends[1]:
            return ""
        return SURER if self.holm is not None and self.holm < ALPHA else SURE


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted so that any false discovery among all of them has at most the chance that they are compared with.

    Step-down: the i-th smallest of m is multiplied by m - i + 1, and is never below a smaller one's. It asks nothing of how
    the tests depend on each other (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian
    Journal of Statistics 6). None is no test, stays None and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def changes(differences: Sequence[Mapping[str, Any]]) -> list[dict[str, Change]]:
    """Every model's differences by metric, adjusted together: all of them are looked at on one page."""
    flat = [(i, str(key), mapping(entry)) for i, of in enumerate(differences) for key, entry in of.items()]
    ps = [number(entry.get("p")) for _, _, entry in flat]
    found: list[dict[str, Change]] = [{} for _ in differences]
    for (i, key, entry), p, adjusted in zip(flat, ps, holm(ps), strict=True):
        difference = measured(entry, "difference")
        found[i][key] = Change(number(entry.get("a")), number(entry.get("b")), difference, p, adjusted)
    return found


def compare_page(comparison: Mapping[str, Any]) -> str:
    """Evaluations side by side as one HTML text that loads nothing from anywhere. Whatever is missing is said to be missing.

    Args:
        comparison: `results` (contents of results.json, the baseline first), `differences` (for every other one, in order,
            metric -> `a` of the baseline, `b`, `difference` = b - a, `low`, `high`, `p`) and `errors`: `fixed` (pairs the
            baseline has wrong and the other right) and `broken` (the reverse), entries as in a results.json's `errors` with
            `scores`: [right, wrong] of every model in the order of `results`, instead of `right_score` and `wrong_score`.
    """
    found = rows(comparison.get("results"))
    names = distinct([model_name(results) for results in found])
    moved = changes([mapping(entry) for entry in items(comparison.get("differences"))])
    title = (
        f"{string(found[0].get('title') or found[0].get('benchmark'))}: evaluations compared"
        if found
        else "Evaluations"
    )
    parts: list[tuple[str, str, Sequence[Child]]] = [
        ("metrics", "Metrics", _metrics(found, names)),
        ("differences", "Differences from the baseline", _differences(names, moved)),
        ("margins", "Margins and reliability", _pictures(found, names)),
        ("pairs", "Pairs fixed and broken", _pairs(mapping(comparison.get("errors")), names)),
        ("sources", "What was compared", _sources(found, names)),
    ]
    lead = (
        f"{', '.join(names[1:])} against {names[0]}, the baseline."
        if len(names) > 1
        else "There is nothing to compare."
    )
    return str(
        page(
            title,
            el("h1", title),
            el("p", "WildReward on Ray", class_="made"),
            el("p", lead, class_="lead"),
            _unlike(found, names),
            incomplete_box(found),
            *(section(anchor, f"{i}. {name}", *body) for i, (anchor, name, body) in enumerate(parts, 1)),
            style=style(),
        )
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that stand there several times."""
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _unlike(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Html | None:
    """A box that says so where the evaluations are not of the same thing."""
    said = []
    for key, what in (
        ("benchmark", "benchmark"),
        ("items", "prompts"),
        ("responses", "responses"),
        ("groups", "groups"),
    ):
        values = [results.get(key) for results in found]
        if any(value != values[0] for value in values):
            shown = [f"{name} {what}" for name, what in zip(names, map(_short, values), strict=True)]
            said.append(el("li", f"{what}: {', '.join(shown)}"))
    if not said:
        return None
    text = "These evaluations did not measure the same, so that their differences say little."
    return el("section", el("h2", "Not alike"), el("p", text), el("ul", *said), class_="alarms raised", id="unlike")


def _short(value: Any) -> str:
    return count(len(value)) if isinstance(value, Mapping) else string(value) if number(value) is None else count(value)


def _metrics(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Child]:
    known = [metrics_of(results) for results in found]
    keys = list(dict.fromkeys(key for metrics in known for key in metrics))
    if not keys:
        return [absent("Metrics", "not recorded")]
    lines = [
        [metric_name(key), *(metric_cell(key, m[key]) if key in m else UNDEFINED + ": not measured" for m in known)]
        for key in keys
    ]
    text = (
        "Every model's metrics with their own 95 % intervals. Two intervals may overlap though the models clearly differ, "
        "since both saw the same prompts: differences are judged in the next section."
    )
    return [note(text), region(["Metric", *names], lines, "Metrics by model")]


def _differences(names: Sequence[str], moved: Sequence[Mapping[str, Change]]) -> list[Child]:
    others = [(name, of) for name, of in zip(names[1:], moved, strict=False) if of]
    if not others:
        return [absent("Differences", "not recorded")]
    tests = sum(c.p is not None for of in moved for c in of.values())
    text = (
        f"The other model minus the baseline, prompt by prompt. {SURE}: p < {ALPHA} and a 95 % interval without 0. {count(tests)} "
        f"differences are tested here, and of so many some would seem clear by chance: {SURER} are those whose p, adjusted "
        f"for all of them after Holm, is below {ALPHA} too. Differences of shares are in percentage points."
    )
    body: list[Child] = [note(text)]
    for name, of in others:
        body += [el("h3", name), alone(_forest(name, of)), _change_table(name, names[0], of)]
    return body


def _change_table(name: str, baseline: str, of: Mapping[str, Change]) -> Html:
    heads = ["Metric", baseline, name, "Difference [95 %]", "p", "p, Holm", "Sure"]
    lines = [
        [
            metric_name(key),
            write_metric(key, c.a),
            write_metric(key, c.b),
            _shift_cell(key, c.difference),
            _p(c.p),
            _p(c.holm),
            c.mark or "no",
        ]
        for key, c in of.items()
    ]
    return region(heads, lines, f"Differences of {name}")


def _shift_cell(key: str, m: Measured) -> Html | str:
    if m.value is None:
        return f"{UNDEFINED}: a model lacks the metric"
    ends = f"[{_shift(key, m.ends[0])}, {_shift(key, m.ends[1])}]" if m.ends else "no interval"
    return join(el("span", _shift(key, m.value), class_="shift"), el("div", ends, class_="soft"))


def _shift(key: str, value: float) -> str:
    """A difference with its sign: in percentage points, or that of correlations as it is."""
    written = f"{value:+.3f}" if is_correlation(key) else f"{100 * value:+.1f}"
    return written.replace("-", "−")


def _p(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _forest(name: str, of: Mapping[str, Change]) -> Html:
    drawn = [
        Effect(f"{metric_name(key)} {c.mark}".strip(), 100 * value, *(100 * e for e in c.difference.ends or ()))
        for key, c in of.items()
        if not is_correlation(key) and (value := c.difference.value) is not None
    ]
    picture = forest(f"Differences of {name} from the baseline", drawn, unit="percentage points", write=signed)
    return figure(
        "Differences",
        picture or absent("Differences", "no metric is a share that both have"),
        "Right of 0 the model scores higher than the baseline; blue where the interval keeps off 0.",
    )


def _pictures(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Child]:
    curves = [
        Curve(name, margin_points(mapping(results.get("margins")).get("curve")))
        for name, results in zip(names, found, strict=True)
    ]
    bins = [
        Bins(name, bins_of(mapping(results.get("calibration")).get("bins")))
        for name, results in zip(names, found, strict=True)
    ]
    if any(c.points for c in curves) and all(results.get("benchmark") == RM_BENCH for results in found):
        curves.append(Curve(PAPER_NAME, PAPER_MARGINS, quiet=True))
    margins = margin_curves("Accuracy over the share of pairs kept", curves)
    chances = reliability("Predicted chance and observed share", bins)
    measures = [
        (name, _error(results), "Expected calibration error (ECE) after Platt scaling.")
        for name, results in zip(names, found, strict=True)
    ]
    return [
        note(
            "Left: accuracy of the pairs whose scores lie farthest apart; the higher line has the better margins, whatever its "
            "units. Right: chances fitted to the gaps against what was observed; the nearer to the dashed line, the honester."
        ),
        grid(
            figure("Accuracy of the clearest pairs", margins or absent("Curves", "there are no pairs")),
            figure("Reliability", chances or absent("Reliability", "no model has a calibration")),
        ),
        facts(*measures, subject="Model") if measures else None,
    ]


def _error(results: Mapping[str, Any]) -> str:
    ece = number(mapping(results.get("calibration")).get("ece"))
    return UNDEFINED if ece is None else percent(ece)


def _pairs(errors: Mapping[str, Any], names: Sequence[str]) -> list[Child]:
    body: list[Child] = [
        note(
            "Pairs that only one of two models has in order, with the scores of each. A fixed pair is one that the baseline has "
            "wrong and the other right, a broken one the reverse. Texts are the benchmark's and not ours."
        )
    ]
    for key, title in (("fixed", "Fixed"), ("broken", "Broken")):
        found = rows(errors.get(key))[:MAX_PAIRS]
        body.append(el("h3", f"{title}: {len(found)} shown" if found else title))
        none = f"No pair was {key}." if key in errors else f"Pairs that were {key}: not recorded."
        body += [error_card(row, _scores(row, names)) for row in found] or [el("p", none, class_="absent")]
    return body


def _scores(row: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    given = [items(pair) for pair in items(row.get("scores"))]
    return [(name, *pair) for name, pair in zip(names, given, strict=False) if len(pair) == 2]


def _sources(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Child]:
    lines = [
        [
            name,
            string(results.get("benchmark")),
            count(results.get("items")),
            write_metric(ACCURACY, number(results.get("overall"))),
            el(
                "span",
                ", ".join(f"{k}: {v}" for k, v in flat(mapping(results.get("source")))) or "not recorded",
                class_="long",
            ),
            moment(results.get("created")),
        ]
        for name, results in zip(names, found, strict=True)
    ]
    heads = ["Model", "Benchmark", "Prompts", "Published number", "Source", "Measured"]
    return [note("Each model's own page tells more."), region(heads, lines, "Evaluations", numeric=(2, 3))]
