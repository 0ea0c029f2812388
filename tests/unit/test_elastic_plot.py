"""Figures of elastic runs from what was seen of them, and what their picture shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from scripts.elastic import text_of
from scripts.elastic_cluster import configuration
from scripts.elastic_figures import done_by, extract_figures, rates_by_judges, train_figures
from scripts.elastic_plot import draw, write_plot

# (seconds, worker nodes, judges at work, judges that start)
CLUSTER = [
    (0.5, 0, 0, 0),
    (5.0, 1, 0, 1),
    (20.0, 1, 1, 2),
    (30.0, 3, 3, 0),
    (60.0, 3, 0, 0),
    (80.0, 1, 0, 0),
    (90.0, 0, 0, 0),
]
JUDGED = [(22.0, 10), (26.0, 50), (32.0, 110), (50.0, 470)]
ENDED = 65.0


def measured() -> dict[str, Any]:
    train = {
        "starts": [(10.0, 1, 0), (40.0, 2, 40), (90.0, 1, 70)],
        "events": [(33.0, "node added"), (60.0, "notice"), (75.0, "node gone"), (120.0, "end")],
        "checkpoints": [(25.0, 20, 1), (33.0, 40, 1), (62.0, 70, 2)],
        "steps": [(at, step) for step, at in enumerate(range(12, 120), start=1)],
        "loss": [(step, 1 / step) for step in range(1, 109)],
    }
    return {
        "machine": {"cores": 2},
        "extract": {"cluster": CLUSTER, "judged": JUDGED, "ended_s": ENDED},
        "train": train,
    }


def test_times_of_growing_count_from_submission_and_those_of_shrinking_from_the_end() -> None:
    found = extract_figures(CLUSTER, JUDGED, ENDED)
    assert (found["first_node_s"], found["first_judge_s"]) == (5.0, 20.0)
    assert (found["most_nodes"], found["all_nodes_s"]) == (3, 30.0)
    assert (found["most_judges"], found["all_judges_s"]) == (3, 30.0)
    assert found["end_to_no_node_s"] == 25.0
    # A cluster that was empty before it grew has not shrunk.
    assert extract_figures(CLUSTER[:5], JUDGED, ENDED)["end_to_no_node_s"] is None


def test_every_interaction_counts_for_the_judges_that_were_at_work_when_it_was_written() -> None:
    found = rates_by_judges(CLUSTER, JUDGED)
    # From the first part on, whose own time isn't known, until the last.
    assert found["1"] == {"seconds": 8.0, "starting_s": 8.0, "interactions": 40, "per_s": 5.0}
    assert found["3"] == {"seconds": 20.0, "starting_s": 0.0, "interactions": 420, "per_s": 21.0}
    assert sum(row["interactions"] for row in found.values()) == JUDGED[-1][1] - JUDGED[0][1]
    assert [done_by(JUDGED, at) for at in (0, 22.0, 31.9, 99)] == [0, 10, 50, 470]


def test_time_in_which_no_judge_is_at_work_is_no_ones() -> None:
    lost = [(0.0, 1, 1, 0), (30.0, 1, 0, 1), (40.0, 1, 1, 0)]
    assert rates_by_judges(lost, JUDGED)["1"]["seconds"] == 18.0


def test_a_start_costs_the_steps_behind_its_checkpoint_and_the_time_without_a_new_step() -> None:
    steps = [(1.0, 1), (2.0, 2), (3.0, 3), (9.0, 4), (10.0, 5), (16.0, 6)]
    # Of the first step after a start the command may hear in the same moment.
    starts = [(0.5, 1, 0), (9.0, 2, 2), (14.0, 1, 5)]
    curve = [{"workers": 1, "seconds": s} for s in (9.0, 1.0, 1.0)] + [{"workers": 2, "seconds": 0.5}]
    found = train_figures(steps, starts, curve)
    assert found["resizes"] == [
        {"workers": 2, "repeated": 1, "held_up_s": 6.0},
        {"workers": 1, "repeated": 0, "held_up_s": 6.0},
    ]
    # The first step of a start takes long: the median doesn't mind.
    assert found["steps_per_s"] == {"1": 1.0, "2": 2.0}


def test_the_picture_shows_what_was_seen_and_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    found = measured()
    figure: Any = draw(found["extract"], found["train"])
    nodes, judged, workers, steps, loss = figure.axes
    lines = {line.get_label(): line for line in nodes.lines}
    assert list(lines["worker nodes"].get_ydata()) == [0, 1, 1, 3, 3, 1, 0, 0]
    assert list(lines["judges at work"].get_ydata()) == [0, 0, 1, 3, 0, 0, 0, 0]
    assert list(judged.lines[0].get_xdata()) == [22.0, 22.0, 26.0, 32.0, 50.0]
    assert list(workers.lines[0].get_ydata()) == [0, 1, 2, 1, 1]
    assert {text.get_text() for text in workers.texts} == {"node added", "notice", "node gone"}
    marks = next(line for line in steps.lines if line.get_label() == "checkpoint whole")
    assert list(marks.get_ydata()) == [20, 40, 70]
    assert len(loss.lines[0].get_xdata()) == 108
    for axes in figure.axes:
        assert axes.get_ylabel()
    for name in ("a.svg", "b.svg"):
        write_plot(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_file_of_figures_is_json_with_a_line_for_each_timeline() -> None:
    text = text_of(measured())
    assert json.loads(text) == json.loads(json.dumps(measured()))
    assert len(text.splitlines()) < 30


def test_rays_autoscaler_takes_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    file = tmp_path / "autoscaler.json"
    given = configuration("127.0.0.1:1", {"CPU": 2}, most=3, idle_s=15, head_id="ff")
    file.write_text(json.dumps(given), encoding="utf-8")
    read = FileConfigReader(os.fspath(file)).get_cached_autoscaling_config()
    workers = read.get_node_type_configs()["worker"]
    assert (workers.min_worker_nodes, workers.max_worker_nodes, dict(workers.resources)) == (0, 3, {"CPU": 2})
    assert read.get_idle_timeout_s() == 15
