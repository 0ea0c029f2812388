"""The dashboard and the alerts: in Grafana's shape, and asking only for metrics and labels that there are."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from wildreward_ray.cluster.metric_channel import COMMON_LABELS
from wildreward_ray.cluster.telemetry import METRICS
from wildreward_ray.stages import serve_metrics
from wildreward_ray.stages.serve_recorder import Metric as ServiceMetric

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "wildreward.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
COLUMNS = 24
# What Ray Serve adds to the service's metrics.
SERVE_LABELS = {"application", "deployment", "replica"}
FUNCTIONS = {"sum", "max", "min", "avg", "rate", "increase", "changes", "histogram_quantile"}
WORDS = {"by", "and", "or", "unless", "on", "offset"}


def exported() -> dict[str, set[str]]:
    """Every name that Ray exports for this project, and its labels."""
    found = {f"ray_{metric.name}": {*COMMON_LABELS, *metric.labels} for metric in METRICS}
    for metric in vars(serve_metrics).values():
        if isinstance(metric, ServiceMetric):
            labels = {*metric.labels, *SERVE_LABELS}
            if metric.kind == "Histogram":
                found |= {f"ray_{metric.name}_{part}": {*labels} for part in ("sum", "count")}
                found[f"ray_{metric.name}_bucket"] = {*labels, "le"}
            else:
                found[f"ray_{metric.name}"] = labels
    return found


NAMES = exported()


def problems(expr: str) -> list[str]:
    """What an expression asks for that there isn't."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    found = []
    used = re.findall(r"\b(ray_\w+)(?:\{([^}]*)\})?", bare)
    for name, matchers in used:
        asked = set(re.findall(r"(\w+)\s*[=!]", matchers))
        if name not in NAMES:
            found.append(f"no metric {name}")
        elif asked - NAMES[name]:
            found.append(f"{name} has no label {sorted(asked - NAMES[name])}")
    known = set().union(*(NAMES.get(name, set()) for name, _ in used)) if used else set()
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
        found += [f"no label {label}" for label in re.findall(r"\w+", group) if label not in known]
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on)\s*\([^)]*\)|\b[\d.]+[smhd]?\b", " ", bare)
    words = set(re.findall(r"[A-Za-z_]\w*", rest)) - FUNCTIONS - WORDS
    found += [f"what is {word}" for word in sorted(words) if not word.startswith("ray_")]
    if not used:
        found.append("asks for nothing")
    if bare.count("(") != bare.count(")"):
        found.append("parentheses")
    return found


def targets() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "alert:" in block)
    found: list[dict[str, Any]] = yaml.safe_load(block)["groups"][0]["rules"]
    return found


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("sum by (judge) (rate(ray_wildreward_judged_total{run=~\"$run\"}[5m]))", []),
        ("rate(ray_wildreward_judge_total[5m])", ["no metric ray_wildreward_judge_total"]),
        ("rate(wildreward_judged_total[5m])", ["what is wildreward_judged_total", "asks for nothing"]),
        ("ray_wildreward_judged_total{reason=\"x\"}", ["ray_wildreward_judged_total has no label ['reason']"]),
        ("sum by (reason) (ray_wildreward_judged_total)", ["no label reason"]),
        ("sum by (run) (rate(ray_wildreward_items_total[5m]))", ["no label run"]),
        ("histogram_quantile(0.5, rate(ray_wildreward_score[5m]))", ["no metric ray_wildreward_score"]),
        ("summ(ray_wildreward_progress)", ["what is summ"]),
    ],
)  # fmt: skip
def test_the_reader_of_queries_sees_what_is_wrong(expr: str, wrong: list[str]) -> None:
    """The tests below hold nothing if a wrong name can hide from it."""
    assert problems(expr) == wrong


def test_every_query_of_the_dashboard_asks_for_what_there_is() -> None:
    assert len(targets()) > 30
    assert {(title, tuple(found)) for title, expr in targets() if (found := problems(expr))} == set()


def test_every_alert_asks_for_what_there_is() -> None:
    assert len(rules()) >= 8
    assert {rule["alert"]: problems(rule["expr"]) for rule in rules() if problems(rule["expr"])} == {}
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_every_metric_of_the_pipeline_and_of_the_service_is_shown() -> None:
    shown = set(re.findall(r"\bray_wildreward_\w+", " ".join(expr for _, expr in targets())))
    histogram = re.compile(r"_(bucket|sum|count)$")
    # `_total` ends a counter's name, and no histogram has one.
    assert {histogram.sub("", name) for name in NAMES} == {histogram.sub("", name) for name in shown}


def test_the_dashboard_has_what_grafana_asks_of_one() -> None:
    assert (DASHBOARD["title"], DASHBOARD["uid"]) == ("WildReward on Ray", "wildreward")
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert "id" not in DASHBOARD, "an id belongs to one Grafana"
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    assert {panel["type"] for panel in PANELS} == {"row", "timeseries", "bargauge"}
    for panel in PANELS:
        assert panel["title"]
        assert set(panel["gridPos"]) == {"x", "y", "w", "h"}
        if panel["type"] == "row":
            assert panel["panels"] == []
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert all(target["legendFormat"] for target in panel["targets"])


def test_the_variables_that_queries_name_are_those_that_the_dashboard_has() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps([panel.get("targets") for panel in PANELS])
    assert set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval"} == set(variables) == {"datasource", "run"}
    assert variables["run"]["multi"]
    # Several runs are joined by `|`, which only the matching operator of regular expressions understands.
    assert "$run" not in text.replace('run=~\\"$run\\"', "")


def test_no_two_panels_lie_on_one_another_and_none_leaves_the_grid() -> None:
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        assert min(place["w"], place["h"]) > 0
    for one, other in itertools.combinations(PANELS, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart_across = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_down = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_across or apart_down, (one["title"], other["title"])


def test_panels_of_each_part_stand_below_its_row() -> None:
    rows = [panel["title"] for panel in sorted(PANELS, key=lambda p: p["gridPos"]["y"]) if panel["type"] == "row"]
    assert rows == ["Extract, score and evaluate", "Train", "Reward service", "Online DPO"]
    service = {f"ray_{value.name}" for value in vars(serve_metrics).values() if isinstance(value, ServiceMetric)}
    starts = {panel["title"]: panel["gridPos"]["y"] for panel in PANELS if panel["type"] == "row"}
    for panel in PANELS:
        own = {name for t in panel.get("targets", []) for name in re.findall(r"\bray_wildreward_\w+", t["expr"])}
        of_service = any(name.startswith(metric) for name in own for metric in service)
        between = starts["Reward service"] < panel["gridPos"]["y"] < starts["Online DPO"]
        assert panel["type"] == "row" or of_service == between, panel["title"]
