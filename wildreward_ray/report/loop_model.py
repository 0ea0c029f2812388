"""Sections on the reward model and on the service that gives its rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.curves import Series, averaged, histogram, line_chart, reliability
from wildreward_ray.report.markup import Html
from wildreward_ray.report.page import facts, figure, grid, not_run, note, section
from wildreward_ray.report.values import (
    ABSENT,
    count,
    decimal,
    items,
    mapping,
    milliseconds,
    number,
    numbers,
    percent,
    rows,
    string,
    with_unit,
    words,
)

_METRICS = {
    "n": ("replies", "Held-out replies the other numbers are measured on."),
    "mae": ("mean absolute error", "Mean distance between score and label, in levels; lower is better."),
    "rmse": ("root mean square error", "The same with large misses weighing more; lower is better."),
    "accuracy": ("accuracy", "Share of replies whose rounded score is the label."),
    "quadratic_kappa": (
        "quadratic kappa",
        "Agreement beyond chance, far misses weighing more; 1 is perfect, 0 is chance.",
    ),
    "spearman": (
        "Spearman",
        "How far scores put replies in the order of their labels; 1 is the same order, 0 is none.",
    ),
    "auc": ("AUC", "Chance that a positively labelled reply scores above a negative one; 0.5 is guessing."),
    "ece": (
        "expected calibration error",
        "Mean gap between the predicted chance of a positive label and how often it was; lower is better.",
    ),
}


def reward_model_section(summary: Mapping[str, Any]) -> Html:
    """Section 4: how training went, and what the model can do on replies it never saw."""
    train = mapping(summary.get("train"))
    title = "4. Reward model"
    if not train:
        return section("reward-model", title, not_run("Training"))
    curve, evals = rows(train.get("curve")), rows(train.get("evals"))
    bins = [
        (p, o, n)
        for b in rows(train.get("reliability"))
        if (p := number(b.get("predicted"))) is not None
        and (o := number(b.get("observed"))) is not None
        and (n := number(b.get("count"))) is not None
    ]
    run = averaged(len(curve))
    thinned = f" Each point is the mean of {run} steps." if run > 1 else ""
    return section(
        "reward-model",
        title,
        note(
            "The model learns, for every level, the chance that the user was more satisfied than that; the score is "
            "one plus the sum of these chances. It never sees the user's next message, only the conversation and the "
            "reply."
        ),
        grid(
            figure(
                "Training loss",
                line_chart("Training loss by step", [series("loss", curve, "loss")], x_title="step", y_title="loss"),
                "How wrong the predicted chances are on the rows being learnt from; lower is better." + thinned,
            ),
            figure(
                "Learning rate",
                line_chart(
                    "Learning rate by step",
                    [series("learning rate", curve, "learning_rate")],
                    x_title="step",
                    y_title="learning rate",
                    zero=True,
                ),
                "The size of the steps: a short rise, then a fall." + thinned,
            ),
            figure(
                "Held-out ranking",
                line_chart(
                    "Held-out AUC, Spearman and kappa by step",
                    [
                        series("AUC", evals, "auc"),
                        series("Spearman", evals, "spearman"),
                        series("kappa", evals, "quadratic_kappa"),
                    ],
                    x_title="step",
                    y_title="higher is better",
                ),
                "Measured on held-out users while training; with few rows these lines are noisy.",
            ),
            figure(
                "Held-out error",
                line_chart(
                    "Held-out error and calibration error by step",
                    [series("mean absolute error", evals, "mae"), series("calibration error", evals, "ece")],
                    x_title="step",
                    y_title="lower is better",
                    zero=True,
                ),
                "A rising error while the training loss falls means that the model learns rows by heart.",
            ),
            figure(
                "Can its probabilities be believed?",
                reliability("Predicted chance against observed share of positive labels", bins),
                "Each dot is a tenth of the held-out replies. On the dashed line a predicted 70 % is positive 70 % "
                "of the time; below it the model is too hopeful, above it too gloomy.",
            ),
            figure("The training run", _training(train)),
        ),
        figure("Held-out metrics", _metrics(mapping(train.get("metrics"))), "Measured after the last step."),
    )


def service_section(summary: Mapping[str, Any]) -> Html:
    """Section 5: how fast rewards come over HTTP, and whether they are the model's own."""
    serve = mapping(summary.get("serve"))
    title = "5. Service"
    if not serve:
        return section("service", title, not_run("Service"))
    latency = mapping(serve.get("latency_ms"))
    markers = {
        f"{name} {milliseconds(n)}": n for name in ("p50", "p95", "p99") if (n := number(latency.get(name))) is not None
    }
    parity = mapping(serve.get("parity"))
    low, high = [*items(serve.get("score_range")), None, None][:2]
    return section(
        "service",
        title,
        note(
            "The reward model answers over HTTP, as a trainer would ask it. Requests that arrive together are scored "
            "together."
        ),
        grid(
            figure(
                "Time to an answer",
                histogram(
                    "Requests by latency", numbers(serve.get("latencies_ms")), x_title="milliseconds", markers=markers
                ),
                "Each bar counts requests. The dashed lines are the times within which 50, 95 and 99 of 100 were "
                "answered; the last bar also holds the few that took far longer.",
            ),
            figure(
                "In numbers",
                facts(
                    ("engine", string(serve.get("engine")), "What runs the model."),
                    ("requests", count(serve.get("requests")), "Requests sent."),
                    ("items", count(serve.get("items")), "Replies scored in them."),
                    ("concurrency", count(serve.get("concurrency")), "Requests under way at a time."),
                    ("throughput", with_unit(serve.get("items_per_s"), "items/s"), "Replies scored per second."),
                    ("p50", milliseconds(latency.get("p50")), "Half of the requests were answered within this."),
                    ("p95", milliseconds(latency.get("p95")), "95 of 100 were."),
                    ("p99", milliseconds(latency.get("p99")), "99 of 100 were."),
                    ("scores", _span(low, high), "Between the lowest and the highest of these the scores lie."),
                    *(
                        (words(name), decimal(gap), "Largest difference between the scores of the two; 0 is best.")
                        for name, gap in parity.items()
                    ),
                ),
            ),
        ),
    )


def series(name: str, steps: Sequence[Mapping[str, Any]], key: str, spread: str | None = None) -> Series:
    """A line of a log: `key` over `step` of every entry that has a number, `spread` as its band if all have one."""
    points: list[tuple[float, float]] = []
    around: list[float | None] = []
    for i, entry in enumerate(steps):
        x, y = number(entry.get("step")), number(entry.get(key))
        if y is not None:
            points.append((float(i) if x is None else x, y))
            around.append(number(entry.get(spread)) if spread else None)
    known = [abs(d) for d in around if d is not None]
    return Series(name, points, known if len(known) == len(points) else ())


def _metrics(metrics: Mapping[str, Any]) -> Html | None:
    if not metrics:
        return None
    written: list[tuple[str, str, str]] = []
    for name, value in metrics.items():
        title, meaning = _METRICS.get(name, (words(name), ""))
        level = str(name).removeprefix("accuracy_gt_")
        above = level != name
        if above:
            title, meaning = (
                f"accuracy above {level}",
                f"Share of replies rightly told to lie above level {level}, or not.",
            )
        shown = count(value) if name == "n" else percent(value) if above or name == "accuracy" else decimal(value)
        written.append((title, shown, meaning))
    return facts(*written, subject="Metric")


def _training(train: Mapping[str, Any]) -> Html:
    return facts(
        ("base", string(train.get("base")), "The model that training started from."),
        ("parameters", count(train.get("parameters")), "Its size."),
        ("levels", count(train.get("levels")), "Ordered labels it tells apart."),
        ("training rows", count(train.get("train_rows")), "Replies it learnt from."),
        ("test rows", count(train.get("test_rows")), "Replies of other users, kept for measuring."),
        ("steps", count(train.get("steps")), "Updates of the weights."),
        ("epochs", decimal(train.get("epochs")), "Passes over the training rows."),
        ("throughput", with_unit(train.get("tokens_per_s"), "tokens/s"), "Tokens learnt from per second."),
        ("padding", percent(train.get("padding_waste")), "Share of computed tokens that only fill up batches."),
    )


def _span(low: Any, high: Any) -> str:
    return ABSENT if number(low) is None or number(high) is None else f"{decimal(low)} to {decimal(high)}"
