"""The page of an evaluation: what a reward model scored on a benchmark, how sure that is, where it fails and what sways it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wildreward_ray.core.config.base import leaves
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_figures import (
    PAPER_MARGINS,
    PAPER_NAME,
    Bins,
    Curve,
    Effect,
    bins_of,
    counted,
    forest,
    margin_curves,
    margin_points,
    reliability,
    square,
    two_distributions,
    win_rates,
)
from wildreward_ray.report.evaluation_tables import (
    ACCURACY,
    LEVELS,
    UNDEFINED,
    Measured,
    incomplete,
    measured,
    metric_cell,
    metrics_block,
    metrics_of,
    model_name,
    reference_block,
    without_password,
    write_metric,
)
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import (
    badge,
    facts,
    figure,
    grid,
    note,
    own_file,
    page,
    passage,
    section,
    table,
    tile,
    tiles,
)
from wildreward_ray.report.svg import shorten
from wildreward_ray.report.values import (
    count,
    counts,
    decimal,
    items,
    mapping,
    moment,
    number,
    percent,
    rows,
    seconds,
    string,
    words,
)

RM_BENCH = "rm_bench"
# What is cut for good: the page would otherwise weigh what its longest texts weigh. The benchmark's files have them whole.
MAX_TEXT, MAX_MESSAGE, MAX_MESSAGES = 4_000, 1_000, 4
MAX_ERRORS, SHOWN_ERRORS = 30, 10
_MAX_GROUPS = 12
_LONGEST_VALUE = 300
_NOT_SET = "not set"
Part = tuple[str, str, Sequence[Child]]


def evaluation_page(results: Mapping[str, Any]) -> str:
    """The page of an evaluation as one HTML text that loads nothing from anywhere. Whatever is missing is said to be missing.

    Args:
        results: content of results.json; any part of it may be missing, None or of another kind.
    """
    title = f"{model_name(results)} on {_benchmark(results)}"
    parts: list[Part] = [("metrics", "Metrics", _metrics(results))]
    if mapping(results.get("styles")) or results.get("benchmark") == RM_BENCH:
        parts.append(("styles", "Styles", _styles(results)))
    parts += [
        ("scores", "Scores", _scores(results)),
        ("margins", "Margins", _margins(results)),
        ("calibration", "Calibration", _calibration(results)),
        ("bias", "Bias", _bias(results)),
        ("consistency", "Consistency across prompts", _consistency(results)),
        ("errors", "Worst errors", _errors(results)),
        ("making", "How it was made", _making(results)),
    ]
    return str(
        page(
            title,
            el("h1", title),
            el("p", f"WildReward on Ray, evaluation of {moment(results.get('created'))}", class_="made"),
            el("p", _headline(results), class_="lead"),
            incomplete_box([results]),
            tiles(_tiles(results)),
            *(section(anchor, f"{i}. {name}", *body) for i, (anchor, name, body) in enumerate(parts, 1)),
            style=style(),
        )
    )


def style() -> str:
    """CSS of the pages of evaluations, after the common one."""
    return own_file("dpo.css") + own_file("evaluation.css")


def incomplete_box(found: Sequence[Mapping[str, Any]]) -> Html | None:
    """A box that names every evaluation whose number isn't the benchmark's own, and why; None if there is none."""
    reasons = [(model_name(results), incomplete(results)) for results in found]
    listed = [el("li", f"{name}: " if len(found) > 1 else None, "; ".join(why)) for name, why in reasons if why]
    if not listed:
        return None
    return el(
        "section",
        el("h2", "Incomplete: this is no official number"),
        el(
            "p",
            "The benchmark was not measured as a whole. The numbers here are over what was measured, and must not be "
            "compared with published ones.",
        ),
        el("ul", *listed),
        class_="alarms raised",
        id="incomplete",
    )


def alone(block: Html) -> Html:
    """A picture that has the line to itself, no wider than it can be drawn."""
    return el("div", block, class_="alone")


def absent(what: str, why: str) -> Html:
    """What stands where something isn't defined."""
    return el("p", f"{what}: {UNDEFINED}: {why}.", class_="absent")


def _benchmark(results: Mapping[str, Any]) -> str:
    return string(results.get("title") or results.get("benchmark"))


def _headline(results: Mapping[str, Any]) -> str:
    accuracy = number(results.get(ACCURACY))
    if accuracy is None:
        return "The accuracy is not defined: nothing that was measured tells of it, or it was not recorded."
    interval = metrics_of(results).get(ACCURACY, Measured(None, None, None)).ends
    sure = f", 95 % interval {100 * interval[0]:.1f} to {percent(interval[1])}" if interval else ", without an interval"
    what = "Accuracy over what was measured" if incomplete(results) else "Accuracy"
    size = f"{count(results.get('items'))} prompts with {count(results.get('responses'))} responses"
    return f"{what}: {percent(accuracy)}{sure}. {size} of {_benchmark(results)}."


def _tiles(results: Mapping[str, Any]) -> list[Html]:
    metrics, pairs = metrics_of(results), mapping(results.get("pairs"))
    calibration, consistency = mapping(results.get("calibration")), mapping(results.get("consistency"))
    overall, speed = number(results.get("overall")), mapping(results.get("speed"))
    found = [
        tile(
            "Published number",
            UNDEFINED if overall is None else percent(overall),
            "What the benchmark's authors would report."
            if overall is not None
            else "Only a whole benchmark has one; see above for what was measured.",
        )
    ]
    levels = [metrics[level].value if level in metrics else None for level in LEVELS]
    if any(level is not None for level in levels):
        values = " / ".join(write_metric("", level, unit=False) for level in levels)
        found.append(
            tile("Easy / normal / hard, %", values, "The right reply has the richer, the same or the plainer style.")
        )
    size = f"{count(pairs.get('n'))} pairs: {string(pairs.get('are'))}. {count(pairs.get('ties'))} ties count as wrong."
    found += [
        tile("Pairs in order", _or_undefined(pairs.get(ACCURACY)), f"{_ends(measured(pairs, ACCURACY))}{size}"),
        tile("Calibration error", _or_undefined(calibration.get("ece")), "ECE after Platt scaling on other pairs."),
        tile("Right against wrong, any prompts", _or_undefined(consistency.get("auc")), "ROC-AUC of the raw scores."),
        _bias_tile(rows(mapping(results.get("bias")).get("observed"))),
    ]
    if speed:
        rate = number(speed.get("responses_per_s"))
        text = f"{seconds(speed.get('seconds'))} in all."
        found.append(tile("Responses a second", UNDEFINED if rate is None else decimal(rate), text))
    return found


def _bias_tile(observed: Sequence[Mapping[str, Any]]) -> Html:
    """The effect that is surest, by how far its interval keeps from 0."""
    effects = [(words(row.get("name")), string(row.get("unit")), measured(row, "effect")) for row in observed]
    sure = [(n, u, m) for n, u, m in effects if m.value is not None and m.ends and not m.ends[0] <= 0 <= m.ends[1]]
    if not sure:
        known = any(m.ends for _, _, m in effects)
        text = "No interval keeps off 0." if known else "Nothing was measured that tells of it."
        return tile("Surest bias", "none" if known else UNDEFINED, text)
    name, unit, m = max(sure, key=lambda entry: min(map(abs, entry[2].ends or (0.0,))))
    return tile(f"Surest bias: {name}", signed(m.value or 0.0), f"{unit}, 95 % interval {_signed_ends(m)}.")


def _metrics(results: Mapping[str, Any]) -> list[Child]:
    sizes, excluded = counts(results.get("groups")), counts(results.get("excluded"))
    return [
        note(
            "Each metric as the benchmark's authors define it, with its 95 % bootstrap interval over prompts: had other "
            "prompts of the same kind been drawn, it would mostly lie in there. "
            f"Definition: {string(results.get('definition'))}"
        ),
        metrics_block(results),
        el("h3", "Beside published figures"),
        reference_block(results),
        el("h3", "What was measured"),
        table(["Group", "Prompts"], [[string(n), count(size)] for n, size in sizes.items()], numeric=(1,))
        if sizes
        else absent("Groups", "not recorded"),
        note(
            "Left out by the benchmark's own rules: "
            + (", ".join(f"{words(reason)} {count(n)}" for reason, n in excluded.items() if n) or "nothing")
            + "."
        ),
    ]


def _styles(results: Mapping[str, Any]) -> list[Child]:
    found = {str(name): square(cells) for name, cells in mapping(results.get("styles")).items()}
    if not found:
        return [absent("Win rates by style", "not recorded")]
    pictures = [
        figure(_part(name), win_rates(f"Win rates by style, {_part(name)}", cells))
        if cells
        else absent(_part(name), "a pair of styles has no win rate")
        for name, cells in found.items()
    ]
    return [
        note(
            "How often the right response beats the wrong one, by the styles of both: below the diagonal the right one has the "
            "richer style (easy), above it the plainer one (hard). A model that reads content has nine cells alike; one that "
            "likes style is blue below and orange above."
        ),
        grid(*pictures),
    ]


def _part(name: str) -> str:
    return "whole benchmark" if name == "all" else words(name)


def _scores(results: Mapping[str, Any]) -> list[Child]:
    found = mapping(results.get("distributions"))
    groups = mapping(found.get("groups"))

    def drawn(name: str, entry: Mapping[str, Any]) -> Html:
        shape = counted(found.get("edges"), entry.get("right"), entry.get("wrong"))
        if shape is None:
            return absent(name, "no score was counted, or the counts do not fit their edges")
        edges, (right, wrong) = shape
        return figure(name, two_distributions(f"Scores, {name}", edges, {"right": right, "wrong": wrong}))

    if not found:
        return [absent("Score distributions", "not recorded")]
    each = [drawn(words(name), mapping(entry)) for name, entry in list(groups.items())[:_MAX_GROUPS]]
    more = f", the first {_MAX_GROUPS} of {len(groups)}" if len(groups) > _MAX_GROUPS else ""
    return [
        note(
            "Raw scores of right and of wrong responses, each as shares of their own number: the less they overlap, the "
            "better one threshold for all prompts would work."
        ),
        alone(drawn("all responses", found)),
        fold(f"By group{more}", grid(*each)) if each else None,
    ]


def _margins(results: Mapping[str, Any]) -> list[Child]:
    found = mapping(results.get("margins"))
    listed = rows(found.get("table"))
    own = margin_points(found.get("curve"))
    curves = [Curve(model_name(results), own)]
    paper = results.get("benchmark") == RM_BENCH and bool(own)
    if paper:
        curves.append(Curve(PAPER_NAME, PAPER_MARGINS, quiet=True))
    lines = [
        [
            decimal(row.get("threshold")),
            count(row.get("pairs")),
            _or_undefined(row.get("coverage")),
            metric_cell(ACCURACY, measured(row, ACCURACY))
            if number(row.get(ACCURACY)) is not None
            else f"{UNDEFINED}: no pairs this far apart",
        ]
        for row in listed
    ]
    heads = ["Score gap at least", "Pairs", "Share kept", "Accuracy [95 %]"]
    picture = margin_curves("Accuracy over the share of pairs kept", curves) if own else None
    return [
        note(
            "Only pairs whose scores lie far apart are kept, ever fewer from right to left: a model whose margins mean "
            "something gets more accurate. Gaps are in the model's own score units, so the table compares ordinal models "
            f"only; the curve compares any. Pairs: {string(mapping(results.get('pairs')).get('are'))}."
            + (" The dashed line is the authors' curve on 3,981 pairs (arXiv 2602.08829)." if paper else "")
        ),
        grid(
            figure("Accuracy of the clearest pairs", picture or absent("Curve", "there are no pairs")),
            table(heads, lines, numeric=range(4)) if lines else absent("Table", "there are no pairs"),
        ),
    ]


def _calibration(results: Mapping[str, Any]) -> list[Child]:
    found = mapping(results.get("calibration"))
    if not found:
        return [absent("Calibration", "there are too few pairs to fit it, all score alike, or it was not recorded")]
    bins = bins_of(found.get("bins"))
    spread = f"5th to 95th percentile over splits: {percent(found.get('ece_low'))} to {percent(found.get('ece_high'))}."
    drawn = reliability("Predicted chance and observed share", [Bins(model_name(results), bins)])
    return [
        note(
            "The chance that the higher scored reply is the right one, fitted to score gaps on half of the prompts and "
            "checked on the other: dots on the dashed line mean that the chances can be taken at their word, below it that "
            "the model is too sure."
        ),
        grid(
            figure(
                "Reliability", drawn or absent("Reliability", "no bin holds a pair"), "Larger dots hold more pairs."
            ),
            facts(
                ("ECE", _or_undefined(found.get("ece")), f"Mean gap between chance and share, by bin. {spread}"),
                ("splits", count(found.get("splits")), "Random halves it was fitted and measured on."),
                ("slope", decimal(found.get("slope")), "Log odds a unit of score gap, fitted on all pairs."),
                ("log loss", decimal(found.get("nll")), "Nats a pair; 0.693 is a coin's."),
            ),
        ),
    ]


def _bias(results: Mapping[str, Any]) -> list[Child]:
    found = mapping(results.get("bias"))
    observed, probes = rows(found.get("observed")), rows(found.get("probes"))
    # A unit none of whose effects is defined has nothing to draw; the table says why.
    units = dict.fromkeys(string(row.get("unit")) for row in observed if number(row.get("effect")) is not None)
    pictures = [
        _forest(f"Observed, {unit}", unit, [row for row in observed if string(row.get("unit")) == unit])
        for unit in units
    ]
    if probes:
        pictures.append(_forest("Probes, standard deviations of the scores", "standard deviations", probes))
    lines = [
        [
            words(row.get("name")),
            _effect_cell(row),
            string(row.get("unit")),
            count(row.get("n")),
            string(row.get("meaning")),
        ]
        for row in observed
    ]
    return [
        note(
            "What moves the score though it makes no reply better. A dot at 0 is no effect, to the right a liking, to the left "
            "an aversion; it is sure where its 95 % interval (the line; blue) keeps off 0."
        ),
        grid(*pictures) if pictures else None,
        el("h3", "Observed among the benchmark's responses"),
        table(["Effect", "Size [95 %]", "Unit", "Pairs", "What it means"], lines, numeric=(1, 3))
        if lines
        else absent("Observed effects", "not recorded"),
        el("h3", "Probes: the same replies, changed and scored again"),
        _probe_table(probes) if probes else absent("Probes", "none were scored (--probes.items 0, or --scores)"),
    ]


def _probe_table(probes: Sequence[Mapping[str, Any]]) -> Html:
    lines = [
        [
            words(row.get("name")),
            _effect_cell(row),
            count(row.get("n")),
            _or_undefined(row.get("flips")),
            _or_undefined(row.get("flips_to_wrong")),
            join(string(row.get("meaning")), passage("Example", row.get("example")) if row.get("example") else None),
        ]
        for row in probes
    ]
    heads = ["Probe", "Size [95 %]", "Replies", "Decisions that change", "Right ones that turn wrong", "What it means"]
    return table(heads, lines, numeric=(1, 2, 3, 4))


def _forest(title: str, unit: str, effects: Sequence[Mapping[str, Any]]) -> Html:
    read = [(words(row.get("name")), measured(row, "effect")) for row in effects]
    drawn = [Effect(name, m.value, m.low, m.high) for name, m in read if m.value is not None]
    return figure(
        title, forest(title, drawn, unit=unit, write=signed) or absent("Effects", "no responses tell of them")
    )


def _effect_cell(row: Mapping[str, Any]) -> Html | str:
    m = measured(row, "effect")
    if m.value is None:
        return f"{UNDEFINED}: " + ("no such responses" if number(row.get("n")) == 0 else "they do not settle it")
    return join(signed(m.value), el("div", _signed_ends(m), class_="soft"))


def _consistency(results: Mapping[str, Any]) -> list[Child]:
    found = mapping(results.get("consistency"))
    if not found:
        return [absent("Consistency", "not recorded")]
    auc = measured(found, "auc")
    return [
        note(
            "Whether a score means the same on every prompt: high across prompts, and not only within each, is what filtering "
            "by a threshold needs. 50 % is chance."
        ),
        facts(
            (
                "across prompts",
                _or_undefined(auc.value),
                f"{_ends(auc)}ROC-AUC of right against wrong, all prompts pooled.",
            ),
            (
                "within prompts",
                _or_undefined(found.get("within_auc")),
                "Mean share of a prompt's pairs in order; ties half.",
            ),
            ("right responses", count(found.get("right")), "Scored responses that should win."),
            ("wrong responses", count(found.get("wrong")), "Scored responses that should lose."),
        ),
    ]


def _errors(results: Mapping[str, Any]) -> list[Child]:
    found = rows(results.get("errors"))[:MAX_ERRORS]
    if not found:
        text = "No wrong response beat a right one by its score" if "errors" in results else "Errors: not recorded"
        return [el("p", f"{text}.", class_="absent")]
    cards = [error_card(row, [("", row.get("right_score"), row.get("wrong_score"))]) for row in found]
    rest = cards[SHOWN_ERRORS:]
    return [
        note(
            "Pairs whose wrong response was scored highest above the right one, worst first. Read whether the model erred or "
            "the benchmark did. Texts are the benchmark's and not ours."
        ),
        *cards[:SHOWN_ERRORS],
        fold(f"{len(rest)} more", *rest) if rest else None,
    ]


def error_card(row: Mapping[str, Any], scores: Sequence[tuple[str, Any, Any]]) -> Html:
    """A pair to read, folded: prompt, both responses side by side, and their scores.

    Args:
        row: an entry of `errors` in results.json.
        scores: (model or "", score of the right response, score of the wrong one).
    """
    badges = [
        badge(
            f"{shorten(name, 200)}: " * bool(name) + f"right {decimal(right)}, wrong {decimal(wrong)}",
            _kind(right, wrong),
        )
        for name, right, wrong in scores
    ]
    summary = el(
        "summary",
        el(
            "div",
            badge(shorten(string(row.get("id")), 200)),
            badge(shorten(string(row.get("group")), 200)),
            *badges,
            class_="badges",
        ),
        el("span", shorten(string(row.get("prompt")), 800), class_="more flush"),
    )
    both = el("div", _text("Right", row.get("right")), _text("Wrong", row.get("wrong")), class_="pair")
    return el(
        "details", summary, _history(row.get("history")), _text("Prompt", row.get("prompt")), both, class_="card wide"
    )


def _kind(right: Any, wrong: Any) -> str:
    a, b = number(right), number(wrong)
    return "plain" if a is None or b is None else "good" if a > b else "warn"


def _history(history: Any) -> Html | None:
    messages = items(history)
    if not messages:
        return None
    shown = [mapping(m) for m in messages[-MAX_MESSAGES:]]
    said = [_text(string(m.get("role"))[:40], m.get("content"), MAX_MESSAGE) for m in shown]
    last = f", the last {len(shown)} of them here" if len(messages) > len(shown) else ""
    return fold(f"{len(messages):,} message{'s' * (len(messages) > 1)} before the prompt{last}", *said)


def _text(title: str, value: Any, limit: int = MAX_TEXT) -> Html:
    # A response may be empty, which is not the same as one that wasn't recorded.
    whole = "(empty)" if isinstance(value, str) and not value.strip() else string(value)
    if len(whole) <= limit:
        return passage(title, whole)
    return passage(f"{title}: the first {limit:,} of {len(whole):,} characters", whole[:limit])


def fold(title: str, *body: Child) -> Html:
    """What is opened by a click on its title."""
    return el("details", el("summary", el("span", title, class_="more flush")), *body, class_="history")


def _making(results: Mapping[str, Any]) -> list[Child]:
    speed = mapping(results.get("speed"))
    kinds = {"model": "a model loaded here", "service": "a service", "scores": "a file of scores"}
    source = [
        [words(name), el("span", kinds.get(value, value) if name == "kind" else value, class_="long")]
        for name, value in flat(mapping(results.get("source")))
    ]
    versions = [[string(name), string(v)] for name, v in mapping(results.get("versions")).items()]
    return [
        note("What gave the scores, with which settings and versions: enough to measure the same again."),
        table(["Source", "Value"], source) if source else absent("Source", "not recorded"),
        facts(
            ("time", seconds(speed.get("seconds")), "Wall time of scoring."),
            ("responses a second", decimal(speed.get("responses_per_s")), "Scored in this run."),
            ("prefix cache", percent(speed.get("cached_share")), "Share of tokens that were not computed twice."),
            ("reused", count(speed.get("reused")), "Responses that an earlier, killed run had scored."),
        )
        if speed
        else absent("Speed", "nothing was scored here, or it was not recorded"),
        el("h3", "Settings"),
        _settings(mapping(results.get("config"))),
        el("h3", "Versions"),
        table(["Package", "Version"], versions) if versions else absent("Versions", "not recorded"),
    ]


def _settings(config: Mapping[str, Any]) -> Html:
    if not config:
        return absent("Settings", "not recorded")
    known = {name: field.description or "" for name, field in leaves(EvaluateConfig)}
    written = list(flat(config))
    given = [[n, el("span", value, class_="long"), known.get(n, "")] for n, value in written if value != _NOT_SET]
    unset = ", ".join(n for n, value in written if value == _NOT_SET)
    return join(
        table(["Setting", "Value", "What it is"], given) if given else None,
        note(f"Not set: {unset}.") if unset else None,
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text, without passwords."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
            continue
        nested = isinstance(value, list | tuple | dict)
        said = json.dumps(value, ensure_ascii=False, default=str) if nested else string(value)
        said = _NOT_SET if value is None else "yes" if value is True else "no" if value is False else said
        said = without_password(said)
        yield f"{prefix}{name}", said if len(said) <= _LONGEST_VALUE else said[:_LONGEST_VALUE] + "…"


def _or_undefined(value: Any) -> str:
    return UNDEFINED if number(value) is None else percent(value)


def _ends(m: Measured) -> str:
    return f"95 % interval {100 * m.ends[0]:.1f} to {percent(m.ends[1])}. " if m.ends else ""


def _signed_ends(m: Measured) -> str:
    return f"[{signed(m.ends[0])}, {signed(m.ends[1])}]" if m.ends else "no interval"
