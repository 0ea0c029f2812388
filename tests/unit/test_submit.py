"""`wildreward submit`: what is run is what is printed, typos cost no upload, and the exit code is the job's."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.job_api import FakeRay, JobApi
from wildreward_ray.cli import COMMANDS, main, parse
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.submit import STAGES, StatusConfig, SubmitConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages.job_files import for_the_job
from wildreward_ray.stages.submit import free_name
from wildreward_ray.stages.submit_line import default_name

ROOT = Path(__file__).parents[2]
FLAGS = ("--input", "s3://bucket/logs", "--output", "s3://bucket/dataset")


@pytest.fixture(autouse=True)
def _no_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_JOB_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(tmp_path, monkeypatch)


@pytest.fixture
def api(fake: FakeRay) -> Iterator[JobApi]:
    with JobApi(fake, on_submission={"status": "SUCCEEDED", "driver_exit_code": 0}) as server:
        yield server


def shown(output: str) -> str:
    """The command among what was printed."""
    return next(line for line in output.splitlines() if "ray job submit" in line)


def test_the_line_that_is_printed_is_the_one_that_is_run(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    own = ("--address", api.address, "--submission-id", "mine", "--entrypoint-num-cpus", "2", "--label", "zone=a b")
    assert main(["submit", *own, "--stop-wait-s", "60", "extract", *FLAGS, "--limit", "5"]) == 0
    printed = shlex.split(shown(capfd.readouterr().out))
    assert printed == ["ray", *fake.words]
    assert fake.words[:2] == ["job", "submit"]
    assert fake.words[fake.words.index("--") + 1 :] == ["python", "jobs/extract.py", *FLAGS, "--limit", "5"]
    options = fake.words[: fake.words.index("--")]
    assert options[options.index("--entrypoint-num-cpus") + 1] == "2"
    assert options[options.index("--entrypoint-label-selector") + 1] == '{"zone": "a b"}'
    assert options[options.index("--working-dir") + 1] == "."
    assert '"RAY_JOB_STOP_WAIT_TIME_S": "60"' in options[options.index("--runtime-env-json") + 1]


def test_words_that_a_shell_would_change_reach_the_job_as_they_were(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "a 'b' \"c\" $HOME `id` * \\ ;"
    flags = [*FLAGS, "--judge.model", hostile]
    assert main(["submit", "--address", api.address, "extract", *flags]) == 0
    run = fake.words
    assert run[-1] == hostile
    line = shown(capfd.readouterr().out)
    assert "\n" not in line
    fake.forget()
    paste(fake, line)
    assert fake.words == run


def paste(fake: FakeRay, line: str) -> None:
    """Run a printed line in a shell that finds the fake `ray`."""
    environment = {**os.environ, "PATH": f"{fake.folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", line], env=environment, check=True, timeout=30)


def test_a_secret_reaches_the_job_and_is_neither_printed_nor_among_the_words(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    monkeypatch.setenv("OTHER", "tw0 words: #1")
    assert main(["submit", "--address", api.address, "--env", "HF_TOKEN", "--env", "OTHER", "extract", *FLAGS]) == 0
    printed = capfd.readouterr()
    assert '"$HF_TOKEN" "$OTHER"' in printed.out
    assert not [text for text in (printed.out, printed.err, " ".join(fake.words)) if "s3cr3t" in text or "tw0" in text]
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": "300", "HF_TOKEN": "hf_s3cr3t", "OTHER": "tw0 words: #1"}
    assert yaml.safe_load(fake.stdin) == {"env_vars": variables}
    fake.forget()
    paste(fake, shown(printed.out))
    assert yaml.safe_load(fake.stdin) == {"env_vars": variables}


@pytest.mark.parametrize("value", ['{"a": "b\\n"}', "1e5", "two\nlines", "\x7f é 🙂", "%s"])
def test_any_value_of_a_variable_reaches_the_job(
    value: str, fake: FakeRay, api: JobApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", value)
    assert main(["submit", "--address", api.address, "--env", "SECRET", "extract", *FLAGS]) == 0
    assert yaml.safe_load(fake.stdin)["env_vars"]["SECRET"] == value


@pytest.mark.parametrize("given", ["UNSET_VARIABLE", "TOKEN=s3cr3t"])
def test_a_variable_that_is_not_set_or_given_with_its_value_is_an_error(
    given: str, fake: FakeRay, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--env", given, "extract", *FLAGS]) == 2
    message = capfd.readouterr().err
    assert "--env" in message
    assert given.partition("=")[0] in message
    assert "s3cr3t" not in message
    assert not fake.ran


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["extract", "--inptu", "x"], "unknown flag '--inptu': did you mean '--input'"),
        (["extract", "--input", "s3://b/x"], "'output' is required (--output)"),
        (["extract", *FLAGS, "--hindsight.threshold", "3"], "(--hindsight.threshold)"),
        (["extrct", *FLAGS], "'extrct' is no stage that runs as a job: did you mean 'extract'? (STAGE)"),
        (["bench", "extract"], "'bench' is no stage"),
        (["--adress", "http://h", "extract", *FLAGS], "unknown flag '--adress': did you mean '--address'?"),
        (["extract", *FLAGS, "--no-wait"], "'--no-wait' belongs to submit and not to extract"),
        (["extract", "--input", "s3://b/x", "--output", "runs/x"], "'runs/x' is a relative path"),
        (["--label", "zone", "extract", *FLAGS], "'zone' is not KEY=VALUE (--label)"),
        ([], "'stage' is required (STAGE)"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    words: list[str], said: str, fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--address", api.address, *words]) == 2
    assert said in capfd.readouterr().err
    assert not fake.ran
    assert api.asked == []


@pytest.mark.parametrize(
    ("job", "exit_code", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, ""),
        ({"status": "FAILED", "driver_exit_code": 3}, 3, "failed: ended with exit code 3"),
        ({"status": "FAILED", "driver_exit_code": -9}, 137, "failed"),
        ({"status": "FAILED", "message": "node died"}, 1, "failed: node died"),
        # `ray job submit` ends with 0 after these.
        ({"status": "STOPPED"}, 130, "was stopped"),
        ({"status": "RUNNING"}, 1, "goes on"),
    ],
)
def test_the_exit_code_is_the_jobs(
    job: dict[str, object], exit_code: int, said: str, fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    api.on_submission = job
    fake.behave(f"exit {int(job['status'] == 'FAILED')}")
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == exit_code
    assert said in capfd.readouterr().err


def test_a_submission_that_ray_refuses_fails_with_its_exit_code(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.behave("exit 4", submits=False)
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 4
    assert "there is no job" in capfd.readouterr().err


def test_without_waiting_a_job_that_has_begun_is_enough(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    api.on_submission = {"status": "PENDING"}
    assert main(["submit", "--address", api.address, "--no-wait", "extract", *FLAGS]) == 0
    assert "--no-wait" in fake.words[: fake.words.index("--")]
    assert f"`ray job stop --address {api.address} {fake.job}` stops it" in capfd.readouterr().err


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_stop_it(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    api.on_submission = {"status": "RUNNING"}
    fake.behave("kill -INT $PPID; sleep 0.3; exit 1")
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 130
    message = capfd.readouterr().err
    assert f"job {fake.job!r} goes on" in message
    assert f"`ray job stop --address {api.address} {fake.job}` stops it" in message


def test_ctrl_c_before_the_job_exists_does_not_claim_that_it_goes_on(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.behave("kill -INT $PPID; sleep 0.3; exit 1", submits=False)
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 130
    assert "interrupted before job" in capfd.readouterr().err


def test_what_is_submitted_again_gets_a_number_and_says_so(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    name = default_name("extract", FLAGS)
    api.jobs = {name: {"status": "STOPPED"}, f"{name}-2": {"status": "FAILED"}}
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 0
    assert fake.job == f"{name}-3"
    assert f"{name!r} has run before: this submission is '{name}-3'" in capfd.readouterr().err


def test_a_name_depends_on_the_stage_and_on_every_flag() -> None:
    names = [default_name(*one) for one in (("train", FLAGS), ("extract", FLAGS), ("extract", (*FLAGS, "--strict")))]
    assert len({*names}) == 3
    assert default_name("extract", list(FLAGS)) == names[1]
    assert names[1].startswith("extract-")


def test_the_first_free_number_is_taken_and_names_of_others_do_not_count() -> None:
    assert free_name("a", {}, chosen=False) == "a"
    assert free_name("a", {"a-2": "FAILED", "ab": "RUNNING", "a-b": "RUNNING"}, chosen=False) == "a"
    assert free_name("a", {"a": "FAILED", "a-3": "FAILED"}, chosen=False) == "a-2"


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_two_jobs_of_the_same_flags_do_not_run_at_once(status: str, fake: FakeRay, api: JobApi) -> None:
    api.jobs = {f"{default_name('extract', FLAGS)}-2": {"status": status}}
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 2
    assert not fake.ran


def test_a_chosen_name_is_kept_or_refused() -> None:
    assert free_name("mine", {"mine-2": "RUNNING"}, chosen=True) == "mine"
    with pytest.raises(UserError, match="has a job 'mine' already"):
        free_name("mine", {"mine": "SUCCEEDED"}, chosen=True)


def test_the_address_that_is_given_wins_over_the_environments(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert main(["submit", "--address", api.address, "extract", *FLAGS]) == 0
    assert fake.address == api.address
    line = shown(capfd.readouterr().out)
    assert line.startswith(f"RAY_API_SERVER_ADDRESS={api.address} ray job submit")
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    monkeypatch.setenv("RAY_ADDRESS", api.address)
    fake.forget()
    assert main(["submit", "extract", *FLAGS]) == 0
    assert shown(capfd.readouterr().out).startswith(f"ray job submit --address {api.address} ")


def test_a_dry_run_prints_the_line_and_asks_nobody(
    fake: FakeRay, api: JobApi, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--dry-run", "--address", api.address, "extract", *FLAGS]) == 0
    assert shlex.split(capfd.readouterr().out)[:3] == ["ray", "job", "submit"]
    assert not fake.ran
    assert api.asked == []


def test_no_job_server_is_an_error_that_names_the_address(fake: FakeRay, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:9", "extract", *FLAGS]) == 2
    assert "no job server answers at http://127.0.0.1:9" in capfd.readouterr().err
    assert not fake.ran


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file that is uploaded and others that aren't."""
    root = tmp_path / "project"
    for name in ("jobs/extract.py", "configs/a.yaml", "runs/b.yaml", "deep/keep/c.yaml", "deep/d.yaml", ".venv/e.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("output: s3://bucket/dataset\ninput: [s3://bucket/logs]\n", encoding="utf-8")
    (root / ".rayignore").write_text("runs/\n", encoding="utf-8")
    (root / ".gitignore").write_text("nothing\n", encoding="utf-8")
    (root / "deep" / ".gitignore").write_text("d.yaml\n", encoding="utf-8")
    (tmp_path / "outside.yaml").write_text("limit: 3\n", encoding="utf-8")
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("../outside.yaml", "outside the working directory"),
        ("runs/b.yaml", ".rayignore keeps it out"),
        ("deep/d.yaml", "deep/.gitignore keeps it out"),
        (".venv/e.yaml", "Ray keeps it out"),
    ],
)
def test_a_file_that_the_nodes_will_not_have_is_an_error(file: str, said: str, project: Path) -> None:
    for given in ([f"--config={file}"], ["--config", file], ["--config", str(project / file)]):
        with pytest.raises(UserError, match=said) as caught:
            for_the_job(given, ".")
        assert caught.value.flag == "--config"
    with pytest.raises(UserError, match=said):
        for_the_job(["--dataset", file], ".")


def test_a_file_that_is_uploaded_is_named_from_the_working_directory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert for_the_job(["--config", str(project / "configs/a.yaml")], ".") == ("--config", "configs/a.yaml")
    assert for_the_job(["--config=deep/keep/c.yaml"], ".") == ("--config=deep/keep/c.yaml",)
    monkeypatch.chdir(project / "configs")
    assert for_the_job(["--config", "a.yaml"], str(project)) == ("--config", "configs/a.yaml")


def test_what_is_no_file_of_this_machine_is_left_as_it_is(project: Path) -> None:
    words = (
        "--config",
        "s3://b/c.yaml",
        "--input",
        "logs/none",
        "/etc/hosts",
        "--name",
        "jobs",
        "--x=",
        "{" + "a" * 999,
    )
    assert for_the_job(words, ".") == words


def test_a_local_file_does_not_go_with_a_working_directory_that_is_a_uri(project: Path) -> None:
    with pytest.raises(UserError, match=r"the job gets those of 's3://b/code\.zip'"):
        for_the_job(["--config", "configs/a.yaml"], "s3://b/code.zip")


def test_a_working_directory_without_the_entrypoint_is_an_error(
    tmp_path: Path, fake: FakeRay, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--dry-run", "--working-dir", str(tmp_path), "extract", *FLAGS]) == 2
    assert f"no 'jobs/extract.py' in {str(tmp_path)!r}" in capfd.readouterr().err


def test_elsewhere_the_repository_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "--dry-run", "extract", *FLAGS]) == 0
    assert f"--working-dir {ROOT} " in capfd.readouterr().out


def test_outputs_of_all_stages_of_run_all_are_looked_at() -> None:
    given = ["run-all", "--output", "s3://b/run", "--extract.input", "s3://b/x", "--online-dpo.policy", "p"]
    assert parse("submit", SubmitConfig, given)
    with pytest.raises(UserError, match="'out' is a relative path") as caught:
        parse("submit", SubmitConfig, [*given, "--train.output", "out"])
    assert caught.value.flag == "--train.output"


def test_every_stage_has_an_entrypoint_of_its_name() -> None:
    for stage in STAGES:
        text = (ROOT / "jobs" / f"{stage.replace('-', '_')}.py").read_text(encoding="utf-8")
        assert f'run_stage("{stage}", sys.argv[1:])' in text
        assert stage in COMMANDS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--help"], ("--submission-id", "online-dpo")),
        (["submit", "extract", "--help"], ("--judge.model", "wildreward extract")),
        (["submit", "--no-wait", "train", "-h"], ("--epochs",)),
        (["status", "--help"], ("--json", "submission ids")),
    ],
)
def test_help_helps_on_both_sides_of_the_stage_and_loads_nothing_heavy(words: list[str], said: tuple[str, ...]) -> None:
    code = (
        f"import sys\nfrom wildreward_ray.cli import main\ntry:\n    main({words!r})\n"
        "except SystemExit as e:\n    assert e.code == 0\n"
        "print(*['LOADED ' + name for name in ('ray', 'torch', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED" not in done.stdout
    assert all(text in done.stdout for text in said)


def test_flags_of_the_stage_stay_the_stages_even_where_submit_has_the_same() -> None:
    found = parse(
        "submit",
        SubmitConfig,
        ["--no-wait", "extract", *FLAGS, "--verbose", "--config", "configs/extract.cascade.yaml"],
    )
    assert isinstance(found, SubmitConfig)
    assert found.arguments == (*FLAGS, "--verbose", "--config", "configs/extract.cascade.yaml")
    assert (found.no_wait, found.dry_run) == (True, False)


def test_a_flag_of_status_never_takes_a_run_for_its_value() -> None:
    found = parse("status", StatusConfig, ["--json", "runs/a", "runs/b", "--log-lines", "3"])
    assert isinstance(found, StatusConfig)
    assert (found.runs, found.as_json, found.log_lines) == (("runs/a", "runs/b"), True, 3)
    with pytest.raises(UserError, match="'runs' is required") as caught:
        parse("status", StatusConfig, ["--json"])
    assert caught.value.flag == "RUNS"


def test_a_configuration_is_read_from_a_uri_and_flags_win_over_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("input: [s3://b/x]\noutput: s3://b/y\nlimit: 3\nlevels: 3\n", encoding="utf-8")
    found = parse("extract", ExtractConfig, ["--config", f"file://{tmp_path}/a.yaml", "--limit", "4"])
    assert isinstance(found, ExtractConfig)
    assert (found.input, found.limit, found.levels) == (("s3://b/x",), 4, 3)


@pytest.mark.parametrize("content", [None, b"a: [1", b"\xff\xfe\x00", b"- 1\n", b"inptu: [a]\noutput: o\n"])
def test_a_uri_that_holds_no_configuration_is_named_together_with_the_flag(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.yaml").write_bytes(content)
    uri = f"file://{tmp_path}/a.yaml"
    with pytest.raises(UserError) as caught:
        parse("extract", ExtractConfig, ["--config", uri])
    assert uri in str(caught.value)
    assert caught.value.flag == "--config"


def test_a_scheme_that_nobody_knows_is_an_error_of_the_flag() -> None:
    with pytest.raises(UserError, match=r"can't reach 'nowhere://x/a\.yaml'") as caught:
        parse("extract", ExtractConfig, ["--config", "nowhere://x/a.yaml"])
    assert caught.value.flag == "--config"


def test_rays_own_command_takes_the_line_as_it_is_meant(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real `ray job submit`, against a server that is not a cluster's."""
    monkeypatch.setenv("SECRET", 'a "b" \\c')
    flags = ["--config", str(project / "configs" / "a.yaml"), "--judge.model", "it's $HOME"]
    own = ["--env", "SECRET", "--label", "zone=a", "--entrypoint-num-cpus", "0.5", "--stop-wait-s", "60", "--no-wait"]
    with JobApi() as api:
        assert main(["submit", "--address", api.address, *own, "extract", *flags]) == 0, capfd.readouterr()
    (asked,) = api.submitted
    assert shlex.split(asked["entrypoint"]) == ["python", "jobs/extract.py", "--config", "configs/a.yaml", *flags[2:]]
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "SECRET": 'a "b" \\c'}
    assert asked["runtime_env"]["env_vars"] == variables
    assert asked["runtime_env"]["working_dir"].startswith("gcs://")
    assert (asked["entrypoint_label_selector"], asked["entrypoint_num_cpus"]) == ({"zone": "a"}, 0.5)
    assert asked["submission_id"] == default_name("extract", flags)
    printed = capfd.readouterr()
    assert 'a "b"' not in printed.out + printed.err
