"""`wildreward status`: what stands in storage is told as it is, and the command that it names goes on with the same run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.unit.inspect_artefact import clean_rows, write
from tests.unit.job_api import JobApi
from wildreward_ray.cli import COMMANDS, _load, main, parse
from wildreward_ray.cluster.artifact import UNFINISHED, open_artifact, without
from wildreward_ray.core.config import extract, online_dpo, train
from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.submit import StatusConfig
from wildreward_ray.core.errors import StorageError, UserError
from wildreward_ray.core.manifest import FunnelStep, Manifest
from wildreward_ray.stages.chunks import part_file, part_name
from wildreward_ray.stages.evaluate import OPERATIONAL as EVALUATE_OPERATIONAL
from wildreward_ray.stages.experiment import _FREE as EXPERIMENT_FREE
from wildreward_ray.stages.status import describe_job, run, text
from wildreward_ray.stages.status_output import describe

# What a stage keeps in its state beside the settings.
ALSO: dict[str, dict[str, Any]] = {
    "extract": {"input": [["logs/a", 7], ["logs/b", 8]], "prompt_version": "v1"},
    "train": {"reward": {}, "files_of_dataset": "abc"},
    "online-dpo": {"prompts": "abc"},
    "evaluate": {"jobs": "abc", "version": "1"},
    "experiment": {"dataset_created": "2026-01-02"},
}
OPERATIONAL: dict[str, frozenset[str] | set[str]] = {
    "extract": extract.OPERATIONAL,
    "train": train.OPERATIONAL,
    "online-dpo": online_dpo.OPERATIONAL,
    "evaluate": EVALUATE_OPERATIONAL,
    "experiment": EXPERIMENT_FREE,
}


@pytest.fixture(autouse=True)
def _no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def settings_of(stage: str, words: list[str]) -> dict[str, Any]:
    config: type[Section] = _load(COMMANDS[stage].config)
    return parse(stage, config, words).model_dump(mode="json")


def begin(stage: str, output: Path, words: list[str]) -> Path:
    """Begin a run as the stage does, and leave it; returns its work directory."""
    settings = without(settings_of(stage, [*words, "--output", str(output)]), OPERATIONAL[stage])
    with open_artifact(str(output), overwrite=False, state={"config": settings, **ALSO[stage]}):
        pass
    return output / UNFINISHED


def fill(work: Path, files: Mapping[str, str | dict[str, Any]]) -> None:
    """Write files; a mapping is written as JSON."""
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_parts(folder: Path, names: list[str]) -> None:
    from wildreward_ray.cluster.storage import locate

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        part_file(locate(str(folder)), name).write_table(pa.table({"a": [1]}))


def whole(folder: Path, **content: Any) -> Path:
    folder.mkdir(parents=True)
    manifest = Manifest.model_validate({"inputs": [], "config": {}, "seconds": 1.0, **content})
    (folder / "manifest.json").write_text(manifest.checked_json(), encoding="utf-8")
    return folder


def test_a_whole_dataset_is_told_with_its_judge_and_its_funnel(tmp_path: Path) -> None:
    rows = clean_rows(50)
    uri = write(tmp_path / "dataset", rows)
    found = describe(uri)
    assert (found["kind"], found["state"], found["inputs"]) == ("feedback", "whole", ["s3://logs/january"])
    assert found["settings"] == {"judge.model": "judge-model"}
    shown = text(found)
    assert shown.startswith(f"{uri}: feedback, whole, made ")
    assert "read      1,000 ->       990 records  no_messages 10" in shown
    assert describe(f"file://{uri}")["settings"] == found["settings"]


def test_an_unfinished_extraction_tells_its_chunks(tmp_path: Path) -> None:
    work = begin("extract", tmp_path / "out", ["--input", "logs/a", "logs/b", "--limit", "9"])
    names = [part_name("aa", 0, end=False), part_name("aa", 1, end=True), part_name("bb", 0, end=False)]
    write_parts(work / "judged", names)
    found = describe(str(tmp_path / "out"))
    assert (found["kind"], found["state"]) == ("feedback", "unfinished")
    assert found["settings"]["input"] == ["logs/a", "logs/b"]
    assert found["done"] == {
        "input_files": 2,
        "judged_chunks": 3,
        "shards_whole": 1,
        "shards_begun": 2,
        "judging_finished": False,
        "refined_chunks": 0,
    }
    write_parts(work / "refined", names[:2])
    write_parts(work / "second", names[:1])
    fill(work, {"judged.done": ""})
    done = describe(str(tmp_path / "out"))["done"]
    assert (done["judging_finished"], done["refined_chunks"], done["second_judge_chunks"]) == (True, 2, 1)


def test_unfinished_training_tells_its_last_whole_checkpoint(tmp_path: Path) -> None:
    work = begin("train", tmp_path / "out", ["--dataset", "data", "--base", "demo:minilm"])
    assert describe(str(tmp_path / "out"))["done"] == {"tokenised": False, "model_written": False}
    fill(
        work,
        {
            "tokens.json": {},
            "checkpoints/step-00000050/checkpoint.json": {"step": 50, "curve": [{"loss": 0.9, "epoch": 0}]},
            "checkpoints/step-00000100/checkpoint.json": {"step": 100, "curve": [{"loss": 0.5, "epoch": 1}]},
            # Of a worker that was killed while it wrote.
            "checkpoints/step-00000150/__0_0.distcp": "",
        },
    )
    done = describe(str(tmp_path / "out"))["done"]
    assert done == {"tokenised": True, "checkpoint_step": 100, "loss": 0.5, "epoch": 1, "model_written": False}


def test_unfinished_online_dpo_tells_its_last_step_and_the_one_it_goes_on_from(tmp_path: Path) -> None:
    work = begin("online-dpo", tmp_path / "out", ["--policy", "p", "--prompts", "q", "--reward-url", "http://h"])
    assert describe(str(tmp_path / "out"))["done"] == {"checkpoint_step": None}
    rows = [{"step": step, "reward_mean": step / 2, "kl": 0.1, "pairs": 3} for step in (1, 2, 3)]
    fill(
        work,
        {
            "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "checkpoints/step-00000002/checkpoint.json": {"step": 2},
        },
    )
    done = describe(str(tmp_path / "out"))["done"]
    assert done == {"step": 3, "reward_mean": 1.5, "kl": 0.1, "checkpoint_step": 2}


def test_unfinished_evaluations_and_experiments_tell_what_is_done(tmp_path: Path) -> None:
    work = begin("evaluate", tmp_path / "e", ["--model", "m", "--benchmark", "rm_bench"])
    write_parts(work / "parts", ["000000", "000001"])
    assert describe(str(tmp_path / "e"))["done"] == {"scored_parts": 2}
    work = begin("experiment", tmp_path / "x", ["ablation", "--dataset", "d"])
    whole(work / "runs" / "all-seed-0", kind="reward_model")
    (work / "runs" / "all-seed-1").mkdir()
    assert describe(str(tmp_path / "x"))["done"] == {"runs_whole": 1, "runs_begun": 2}


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            "extract",
            ["--input", "s3://b/a b", "c'd", "--limit", "9", "--strict", "--split.salt", "7", "--cascade.enabled"],
        ),
        (
            "extract",
            ["--input", "x", "--judge.expected-shares", "0.05", "0.15", "0.6", "0.12", "0.08", "--levels", "3"],
        ),
        ("extract", ["--input", "x", "--quality.rules", "toxic", "language", "--hindsight.enabled", "false"]),
        ("train", ["--dataset", "data", "--base", "b", "--epochs", "2", "--optim.learning-rate", "1e-5"]),
        ("train", ["--dataset", "data", "--base", "demo:minilm", "--lora.rank", "8", "--objective.loss", "corn"]),
        ("evaluate", ["--model", "m", "--benchmark", "rm_bench", "--data", "a", "b", "--limit", "3"]),
        ("evaluate", ["--reward-url", "http://h", "--benchmark", "judgebench", "--data", "a"]),
        ("experiment", ["diversity", "--dataset", "d", "--users", "1", "4", "--train.epochs", "3"]),
        ("experiment", ["ablation", "--dataset", "d"]),
        ("online-dpo", ["--policy", "p", "--prompts", "q", "--reward-model", "r", "--seed", "5"]),
        ("online-dpo", ["--policy", "p", "--prompts", "q", "--reward-url", "http://h"]),
    ],
)
def test_the_command_that_goes_on_asks_for_what_the_run_was_begun_with(
    stage: str, words: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out put"
    work = begin(stage, output, words)
    named = describe(str(output))["next"]
    program, named_stage, *flags = shlex.split(named)
    assert (program, named_stage) == ("wildreward", stage)
    if stage == "online-dpo":
        assert flags[flags.index("--steps") + 1] == "N"
        flags[flags.index("--steps") + 1] = "7"
    again = settings_of(stage, flags)
    kept = json.loads((work / "state.json").read_text(encoding="utf-8"))["config"]
    assert without(again, OPERATIONAL[stage]) == kept
    assert again["output"] == str(output)
    assert named in text(describe(str(output)))


def test_a_command_that_flags_alone_cannot_say_is_not_made_up(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("quality: {rules: []}\n", encoding="utf-8")
    begin("extract", tmp_path / "out", ["--input", "x", "--config", str(file)])
    found = describe(str(tmp_path / "out"))
    assert (found["kind"], found["next"]) == ("feedback", None)
    assert "the command that began it" in text(found)


def test_a_run_that_can_only_start_again_says_so(tmp_path: Path) -> None:
    with open_artifact(str(tmp_path / "scores"), overwrite=False):
        pass
    fill(tmp_path / "scores" / UNFINISHED, {"all/a.parquet": ""})
    found = describe(str(tmp_path / "scores"))
    assert (found["kind"], found["state"], found["next"]) == (None, "unfinished", None)
    assert "the same command starts again" in text(found)


def test_the_time_of_the_last_change_is_that_of_the_newest_file(tmp_path: Path) -> None:
    work = begin("train", tmp_path / "out", ["--dataset", "data", "--base", "b"])
    fill(work, {"tokens/train/a.parquet": "", "tokens.json": {}})
    for file, time in ((work / "state.json", 1_000_000_000), (work / "tokens.json", 1_000_000_060)):
        os.utime(file, (time, time))
    os.utime(work / "tokens" / "train" / "a.parquet", (1_000_003_600, 1_000_003_600))
    assert describe(str(tmp_path / "out"))["changed"] == "2001-09-09T02:46:40+00:00"


def test_a_run_all_tells_its_stages_and_which_have_not_begun(tmp_path: Path) -> None:
    step = FunnelStep(name="train", unit="rows", rows_in=3, rows_out=2, dropped={"too_long": 1})
    whole(tmp_path / "run" / "reward_model", kind="reward_model", funnel=[step], config={"base": "b"})
    write(tmp_path / "run" / "dataset", clean_rows(20))
    (tmp_path / "run" / "logs").mkdir()
    found = describe(str(tmp_path / "run"))
    assert (found["kind"], found["state"], found["not_begun"]) == ("directory", "unfinished", ["online_dpo"])
    assert [stage["kind"] for stage in found["stages"]] == ["feedback", "reward_model"]
    assert "too_long 1" in text(found)
    assert "online_dpo: not begun" in text(found)
    begin(
        "online-dpo", tmp_path / "run" / "online_dpo", ["--policy", "p", "--prompts", "q", "--reward-url", "http://h"]
    )
    assert describe(str(tmp_path / "run"))["state"] == "unfinished"
    (tmp_path / "run" / "online_dpo" / UNFINISHED / "state.json").unlink()
    (tmp_path / "run" / "online_dpo" / UNFINISHED).rmdir()
    (tmp_path / "run" / "online_dpo").rmdir()
    whole(tmp_path / "run" / "online_dpo", kind="online_dpo", summary={"stopped": "the KL rose"})
    found = describe(str(tmp_path / "run"))
    assert (found["state"], found["stages"][2]["stopped"]) == ("whole", "the KL rose")
    assert "the KL rose" in text(found)


def test_a_whole_artefact_whose_work_was_not_removed_yet_is_whole(tmp_path: Path) -> None:
    whole(tmp_path / "out", kind="scores")
    (tmp_path / "out" / UNFINISHED).mkdir()
    assert describe(str(tmp_path / "out"))["state"] == "whole"


def test_where_no_run_is_an_error_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        describe(str(tmp_path / "missing"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("a", "file"):
        with pytest.raises(StorageError, match="holds no run"):
            describe(str(tmp_path / name))
    whole(tmp_path / "broken", kind="scores")
    (tmp_path / "broken" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match="can't read"):
        describe(str(tmp_path / "broken"))


JOB = {
    "status": "FAILED",
    "message": "exit code 3, last available logs (truncated to 20,000 chars):\nline 0\nline 1\n",
    "start_time": 1_000_000_000_000,
    "end_time": 1_000_000_060_000,
    "driver_exit_code": 3,
    "runtime_env": {"env_vars": {"HF_TOKEN": "s3cr3t"}},
}


@pytest.fixture
def api() -> Iterator[JobApi]:
    with JobApi(jobs={"one": JOB, "two": {"status": "RUNNING", "start_time": 5000, "end_time": 0}}) as server:
        server.logs["one"] = "".join(f"line {i}\n" for i in range(30))
        yield server


def test_a_job_is_told_with_the_end_of_its_log_and_without_its_environment(
    api: JobApi, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--address", api.address, "--json", "--log-lines", "2", "one", "two"]) == 0
    printed = capfd.readouterr().out
    one, two = json.loads(printed)
    assert one == {
        "run": "one",
        "kind": "job",
        "state": "failed",
        "message": JOB["message"],
        "entrypoint": "python jobs/extract.py",
        "started": "2001-09-09T01:46:40+00:00",
        "ended": "2001-09-09T01:47:40+00:00",
        "exit_code": 3,
        "log": ["line 28", "line 29"],
    }
    assert (two["state"], two["ended"], two["log"]) == ("running", None, [])
    assert "s3cr3t" not in printed
    assert main(["status", "--address", api.address, "one"]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("one: job, failed\n")
    assert "  | line 20\n" in shown
    assert "  message     exit code 3\n" in shown
    assert "line 19" not in shown
    assert "line 0" not in shown
    assert "s3cr3t" not in shown


def test_a_job_that_the_cluster_does_not_know_is_an_error(
    api: JobApi, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--address", api.address, "three"]) == 2
    assert "'three' is no directory here, and no job that the cluster knows of" in capfd.readouterr().err
    assert main(["status", "--address", "http://127.0.0.1:9", "three"]) == 2
    assert "'three' is no directory here, and no job server answers at" in capfd.readouterr().err


def test_a_server_that_fails_is_not_taken_for_one_without_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from wildreward_ray.stages.job_server import JobServer

    with JobApi() as api:
        server = JobServer(api.address)
    # The server is gone now.
    with pytest.raises(UserError, match="can't ask about job 'one'"):
        describe_job(server, "one", 3)


def test_an_output_needs_no_job_server_and_several_runs_come_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole(tmp_path / "a", kind="scores")
    whole(tmp_path / "b", kind="comparison")
    monkeypatch.chdir(tmp_path)
    found = run(StatusConfig(runs=("b", str(tmp_path / "a")), address="http://127.0.0.1:9"))
    assert [one["kind"] for one in found] == ["comparison", "scores"]
    assert main(["status", "b", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["run"] == "b"
