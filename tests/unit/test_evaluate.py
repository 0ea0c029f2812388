"""`wildreward evaluate` without engines: what is read, matched, measured, written and compared, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ray.helpers import json_of, reward_server, rows_of, write_json_lines
from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.errors import RewardUnavailableError, UserError, WildRewardError
from wildreward_ray.stages import evaluate, evaluate_compare
from wildreward_ray.stages.commands import evaluate as command
from wildreward_ray.stages.evaluate_data import scores_lines, spread
from wildreward_ray.stages.evaluate_jobs import Job, Parts, cut, digest

PAIRS = 8


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Pairs of two subsets, four each."""
    rows = [
        {
            "id": f"p{number}",
            "subset": "first" if number < PAIRS // 2 else "second",
            "prompt": f"What comes after {number}?",
            "chosen": f"The number after it is {number + 1}." + " That is so." * number,
            "rejected": f"I think that it is {number - 1}, or so.",
        }
        for number in range(PAIRS)
    ]
    return write_json_lines(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of scores in which the first pairs of all are in order."""

    def write(right: int, *, name: str = "scores.jsonl", count: int = PAIRS) -> str:
        rows = [{"id": f"p{n}", "chosen": 1.0 if n < right else -1.0, "rejected": 0.0} for n in range(count)]
        return write_json_lines(tmp_path / name, rows)

    return write


def settings(data: str, output: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig.load(
        None, {"benchmark": "pairs", "data": [data], "output": str(output), "bootstrap": 100, **more}
    )


def test_a_file_of_scores_is_measured_and_all_of_it_is_written(
    data: str, given: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(data, tmp_path / "out", scores=given(6))
    command(config)
    assert "accuracy" in capsys.readouterr().out
    results = json_of(tmp_path / "out" / "results.json")
    assert results["accuracy"] == results["overall"] == 0.75
    assert (results["metrics"]["first"]["value"], results["metrics"]["second"]["value"]) == (1.0, 0.5)
    assert (results["items"], results["responses"], results["complete"]) == (8, 16, True)
    assert {error["id"] for error in results["errors"]} == {"second/p6", "second/p7"}
    assert results["bias"]["probes"] is None
    assert results["speed"] is None
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {
        *("manifest.json", "outcomes.parquet", "plots", "report.html", "results.json", "scores.parquet"),
        *("table.md", "table.tex"),
    }
    rows = rows_of(tmp_path / "out" / "scores.parquet")
    assert [row["scores"] for row in rows] == [[1.0, 0.0]] * 6 + [[-1.0, 0.0]] * 2
    command(config)
    assert "nothing to do" in capsys.readouterr().out


def test_the_same_settings_on_other_prompts_are_no_evaluation_that_was_made_before(
    data: str, given: Callable[..., str], tmp_path: Path
) -> None:
    config = settings(data, tmp_path / "out", scores=given(6))
    evaluate.run(config)
    text = Path(data).read_text()
    Path(data).write_text(text.replace("What comes after 3?", "What comes before 3?"))
    with pytest.raises(UserError, match="but other prompts stand there now") as caught:
        evaluate.run(config)
    assert caught.value.flag == "--overwrite"
    Path(data).write_text(text)
    given(5)
    with pytest.raises(UserError, match="but other model or scores stand there now"):
        evaluate.run(config)
    with pytest.raises(UserError, match="seed differ"):
        evaluate.run(settings(data, tmp_path / "out", scores=config.scores, seed=3))


def test_a_limit_is_a_part_of_every_group_and_never_the_published_number(
    data: str, given: Callable[..., str], tmp_path: Path
) -> None:
    results = evaluate.run(settings(data, tmp_path / "out", scores=given(6), limit=4)).results
    assert results["groups"] == {"first": 2, "second": 2}
    assert results["accuracy"] == 0.75  # p0, p2, p4 are in order, p6 is not
    assert (results["overall"], results["complete"]) == (None, False)
    assert [*spread("abcdefgh", 3)] == ["a", "c", "f"]
    assert [*spread("ab", 3)] == [*spread("ab", None)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "p7", "chosen": float("nan"), "rejected": 0}, "nan"),
        ({"id": "p6", "chosen": 1, "rejected": 0}, "p6"),
        ({"id": "p9", "chosen": 1, "rejected": 0}, "p9"),
        (None, "7 of 8"),
    ],
    ids=["nan", "twice", "unknown", "missing"],
)
def test_scores_that_do_not_fit_the_benchmark_are_refused_before_anything_is_written(
    data: str, given: Callable[..., str], tmp_path: Path, line: dict[str, Any] | None, message: str
) -> None:
    file = given(6, count=PAIRS - 1)
    if line is not None:
        with Path(file).open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=f"(?i){message}") as caught:
        evaluate.run(settings(data, tmp_path / "out", scores=file))
    assert caught.value.flag == "--scores"
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_array_of_scores_is_read_as_its_lines_would_be(tmp_path: Path) -> None:
    rows = [{"id": 1, "chosen": 2.5, "rejected": 1}, {"id": 2, "chosen": 0, "rejected": 1}]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    lines = write_json_lines(tmp_path / "lines.jsonl", rows)
    assert [*scores_lines(locate(str(tmp_path / "array.json")))] == [*scores_lines(locate(lines))]
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n{oops\n')
    with pytest.raises(UserError, match=r"line 2 of .*bad\.jsonl"):
        [*scores_lines(locate(str(tmp_path / "bad.jsonl")))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a", "prompt": "x", "chosen": "y"}\n', "record 1 of pairs.jsonl: rejected"),
        ('{"id": "a", "prompt": "x", "chosen": "y", "rejected": "z"}\n{"id": "b", "pro', "record 2 of"),
        ('{"id": "a", "prompt": "x", "chosen": "y", "rejected": "z"}\n' * 2, "twice"),
        ("\n", "no items"),
    ],
    ids=["a field is missing", "cut off", "an id twice", "nothing"],
)
def test_a_benchmark_that_can_not_be_read_whole_is_refused(
    data: str, given: Callable[..., str], tmp_path: Path, content: str, message: str
) -> None:
    Path(data).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        evaluate.run(settings(data, tmp_path / "out", scores=given(6)))
    assert caught.value.flag == "--data"


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ({}, "nothing given"),
        ({"model": "m", "scores": "s"}, "--model and --scores given"),
        ({"compare": ["a"]}, "two or more"),
        ({"compare": ["a", "b"], "model": "m"}, "no model, service"),
    ],
)
def test_there_is_one_way_in(ways: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig.load(None, {"output": "o", **({} if "compare" in ways else {"benchmark": "pairs"}), **ways})


def test_jobs_are_cut_the_same_way_every_time_and_a_job_is_never_split() -> None:
    jobs = [Job(f"j{i}", (), f"prompt {i}", ("a", "b") if i != 2 else tuple("abcdef")) for i in range(5)]
    chunks = [*cut(jobs, 4)]
    assert [[job.id for job in chunk.jobs] for chunk in chunks] == [["j0", "j1"], ["j2"], ["j3", "j4"]]
    assert [chunk.name for chunk in chunks] == ["000000", "000001", "000002"]
    assert [chunk.responses for chunk in chunks] == [4, 6, 4]
    assert digest(jobs) == digest([*jobs])
    assert digest(jobs) != digest(jobs[::-1])


def test_parts_that_lack_a_score_are_never_read_as_whole(tmp_path: Path) -> None:
    parts = Parts(locate(str(tmp_path)))
    jobs = [Job("a", (), "x", ("1", "2")), Job("b", (), "y", ("1",))]
    parts.write("000000", {"a": [1.0, 2.0]})
    with pytest.raises(WildRewardError, match="lacks scores of 1 of 2 prompts: 'b'"):
        parts.read(jobs)
    parts.write("000001", {"b": [1.0, 2.0]})
    with pytest.raises(WildRewardError, match="'b'"):
        parts.read(jobs)
    parts.write("000001", {"b": [3.0]})
    assert {job: scores.tolist() for job, scores in parts.read(jobs).items()} == {"a": [1.0, 2.0], "b": [3.0]}
    assert parts.done() == {"000000", "000001"}


@contextmanager
def served(reward: Callable[[str], float], **faults: Any) -> Iterator[Any]:
    with reward_server(reward, **faults) as server:
        yield server


def by_service(data: str, output: Path, url: str, **more: Any) -> EvaluateConfig:
    return settings(
        data, output, **{"reward_url": url, "probes.items": 0, "batch_size": 4, "reward.retries": 0, **more}
    )


def test_a_service_gives_what_the_same_scores_in_a_file_give(data: str, tmp_path: Path) -> None:
    with served(lambda text: 1 + len(text) / 100) as server:
        results = evaluate.run(by_service(data, tmp_path / "served", server.url, **{"probes.items": 2})).results
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    lengths = [{"id": r["id"], "chosen": len(r["chosen"]), "rejected": len(r["rejected"])} for r in rows]
    file = write_json_lines(tmp_path / "lengths.jsonl", lengths)
    expected = evaluate.run(settings(data, tmp_path / "file", scores=file)).results
    assert results["metrics"] == expected["metrics"]
    assert results["source"]["kind"] == "service"
    padding = next(probe for probe in results["bias"]["probes"] if probe["name"] == "padding")
    assert (padding["n"], padding["effect"] > 0) == (2, True)


def test_a_service_that_goes_away_costs_nothing_that_was_scored(data: str, tmp_path: Path) -> None:
    with served(lambda text: 1 + len(text) / 100, answers=5) as server:
        config = by_service(data, tmp_path / "out", server.url, **{"reward.concurrency": 1})
        with pytest.raises(RewardUnavailableError):
            evaluate.run(config)
        assert not (tmp_path / "out" / "results.json").exists()
        asked = len(server.given)
        server.answers = 1_000
        results = evaluate.run(config).results
        assert results["speed"]["reused"] >= 4
        assert len(server.given) - asked == PAIRS - results["speed"]["reused"] // 2
    with served(lambda text: 1 + len(text) / 100) as server:
        undisturbed = evaluate.run(by_service(data, tmp_path / "whole", server.url)).results
    assert results["metrics"] == undisturbed["metrics"]


def test_a_reply_with_nan_or_too_few_scores_ends_the_evaluation(data: str, tmp_path: Path) -> None:
    for name, body in (("nan", b'{"model":"m","version":"1","scores":[{"score":NaN}]}'), ("few", b'{"scores":[]}')):
        with (
            served(lambda text: 1.0, answers=0, after=lambda items, body=body: body) as server,
            pytest.raises((RewardUnavailableError, UserError)),
        ):
            evaluate.run(by_service(data, tmp_path / name, server.url))
        assert not (tmp_path / name / "results.json").exists()


def test_two_evaluations_side_by_side(
    data: str, given: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, right in (("a", 6), ("b", 8)):
        evaluate.run(settings(data, tmp_path / name, scores=given(right, name=f"{name}.jsonl"), name=name))
    config = EvaluateConfig.load(
        None, {"compare": [str(tmp_path / "a"), str(tmp_path / "b")], "output": str(tmp_path / "ab"), "bootstrap": 500}
    )
    command(config)
    assert "0.7500 -> 1.0000" in capsys.readouterr().out
    comparison = json_of(tmp_path / "ab" / "results.json")
    found = comparison["differences"][0]["accuracy"]
    assert (found["a"], found["b"], found["difference"]) == (0.75, 1.0, 0.25)
    # Two prompts differ: their signs agree in half of all swaps.
    assert found["p"] == pytest.approx(0.5, abs=0.1)
    assert [entry["id"] for entry in comparison["errors"]["fixed"]] == ["second/p6", "second/p7"]
    assert comparison["errors"]["broken"] == []
    assert comparison["errors"]["fixed"][0]["scores"] == [[-1.0, 0.0], [1.0, 0.0]]
    assert {"report.html", "table.md", "table.tex"} <= {file.name for file in (tmp_path / "ab").iterdir()}


def test_evaluations_of_other_prompts_or_unfinished_ones_are_not_compared(
    data: str, given: Callable[..., str], tmp_path: Path
) -> None:
    evaluate.run(settings(data, tmp_path / "a", scores=given(6)))
    evaluate.run(settings(data, tmp_path / "b", scores=given(6), limit=4))

    def compared(*names: str) -> None:
        uris = [str(tmp_path / name) for name in names]
        evaluate_compare.run(EvaluateConfig.load(None, {"compare": uris, "output": str(tmp_path / "out")}))

    with pytest.raises(UserError, match=r"other prompts .* 4 differ"):
        compared("a", "b")
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        compared("a", "b")


def test_random_scores_are_within_their_interval_of_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"id": i, "prompt": f"p {i}", "chosen": "x", "rejected": "y"} for i in range(400)]
    scores = [{"id": i, "chosen": rng.normal(), "rejected": rng.normal()} for i in range(400)]
    results = evaluate.run(
        settings(
            write_json_lines(tmp_path / "d.jsonl", rows),
            tmp_path / "out",
            scores=write_json_lines(tmp_path / "s.jsonl", scores),
            bootstrap=500,
        )
    ).results
    accuracy = results["metrics"]["accuracy"]
    assert accuracy["low"] < 0.5 < accuracy["high"]
    assert results["calibration"]["ece"] < 0.1
