"""What the page of an evaluation says of scores beyond the metrics: styles, distributions, margins, calibration, bias, consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.dpo_outcome import signed
from wildreward_ray.report.evaluation_blocks import RM_BENCH, absent, alone, ends, fold, or_undefined, signed_ends
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
    UNDEFINED,
    measured,
    metric_cell,
    model_name,
)
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import (
    facts,
    figure,
    grid,
    note,
    passage,
    table,
)
from wildreward_ray.report.values import (
    count,
    decimal,
    mapping,
    number,
    percent,
    rows,
    string,
    words,
)

_MAX_GROUPS = 12


def styles_section(results: Mapping[str, Any]) -> list[Child]:
    """Win rates by the styles of both responses."""
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


def scores_section(results: Mapping[str, Any]) -> list[Child]:
    """Scores of right and of wrong responses."""
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


def margins_section(results: Mapping[str, Any]) -> list[Child]:
    """Accuracy where scores lie far apart."""
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
            or_undefined(row.get("coverage")),
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


def calibration_section(results: Mapping[str, Any]) -> list[Child]:
    """How far the chances that follow from score gaps can be believed."""
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
                ("ECE", or_undefined(found.get("ece")), f"Mean gap between chance and share, by bin. {spread}"),
                ("splits", count(found.get("splits")), "Random halves it was fitted and measured on."),
                ("slope", decimal(found.get("slope")), "Log odds a unit of score gap, fitted on all pairs."),
                ("log loss", decimal(found.get("nll")), "Nats a pair; 0.693 is a coin's."),
            ),
        ),
    ]


def bias_section(results: Mapping[str, Any]) -> list[Child]:
    """What moves scores though it makes no reply better."""
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
            or_undefined(row.get("flips")),
            or_undefined(row.get("flips_to_wrong")),
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
    return join(signed(m.value), el("div", signed_ends(m), class_="soft"))


def consistency_section(results: Mapping[str, Any]) -> list[Child]:
    """Whether a score means the same on every prompt."""
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
                or_undefined(auc.value),
                f"{ends(auc)}ROC-AUC of right against wrong, all prompts pooled.",
            ),
            (
                "within prompts",
                or_undefined(found.get("within_auc")),
                "Mean share of a prompt's pairs in order; ties half.",
            ),
            ("right responses", count(found.get("right")), "Scored responses that should win."),
            ("wrong responses", count(found.get("wrong")), "Scored responses that should lose."),
        ),
    ]
