"""Bad input ends a command with exit code 2 and one line that names the value and the flag, and leaves nothing that looks whole."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CodeGenConfig, CodeGenForCausalLM

from tests.ray.helpers import looks_whole, save_tiny_reward_model, wildreward, write_json_lines
from wildreward_ray.cluster.models import SMOLLM2, resolve_model


def refusal(*arguments: str, env: dict[str, str] | None = None) -> str:
    """The one line that a command refuses its arguments with."""
    done = wildreward(*arguments, env=env)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("wildreward ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith(lines[0]), "the line that counts is the last one"
    return lines[0]


def extract(source: str, output: Path, *more: str) -> tuple[str, ...]:
    return ("extract", "--input", source, "--output", str(output), *more)


def test_missing_input(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.parquet")
    line = refusal(*extract(missing, tmp_path / "out"))
    assert f"{missing!r} does not exist (--input)" in line
    assert looks_whole(tmp_path / "out") == []


@pytest.mark.parametrize("uri", ["gopher://logs/chat.parquet", "nonsense://x"])
def test_input_of_an_unknown_scheme(uri: str, tmp_path: Path) -> None:
    line = refusal(*extract(uri, tmp_path / "out"))
    assert repr(uri) in line
    assert line.endswith("(--input)")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment that leads to an object store on this machine with an empty bucket `logs`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="logs")
    yield env
    server.stop()


def test_objects_that_are_not_in_the_store(s3: dict[str, str], tmp_path: Path) -> None:
    for uri in ("s3://logs/nothing.parquet", "s3://no-such-bucket/chat.parquet"):
        line = refusal(*extract(uri, tmp_path / "out"), env=s3)
        assert repr(uri) in line
        assert line.endswith("(--input)")
    assert not (tmp_path / "out").exists()


def test_file_of_no_known_format(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("dear diary", encoding="utf-8")
    line = refusal(*extract(str(file), tmp_path / "out"))
    assert repr(str(file)) in line
    assert line.count("--format") == 1
    assert not (tmp_path / "out").exists()


def test_format_of_no_known_name(sample: str, tmp_path: Path) -> None:
    line = refusal(*extract(sample, tmp_path / "out", "--format", "wildchats"))
    assert "'wildchats'" in line
    assert line.endswith("(--format)")
    assert "'wildchat'" in line


def test_file_of_another_format_than_it_is_said_to_be(sample: str, tmp_path: Path) -> None:
    line = refusal(*extract(sample, tmp_path / "out", "--format", "sharegpt"))
    assert repr(sample) in line
    assert line.endswith("(--format)")


@pytest.mark.parametrize(
    ("arguments", "unknown", "meant"),
    [
        (("extract", "--inptu", "x", "--output", "y"), "--inptu", "--input"),
        (("train", "--dataset", "x", "--output", "y", "--epoch", "2"), "--epoch", "--epochs"),
        (("extract", "--input", "x", "--output", "y", "--judge.num-cpu=2"), "--judge.num-cpu", "--judge.num-cpus"),
    ],
)
def test_unknown_flag_is_named_with_the_nearest_known_one(arguments: tuple[str, ...], unknown: str, meant: str) -> None:
    line = refusal(*arguments)
    assert repr(unknown) in line
    assert f"did you mean {meant!r}" in line


def test_more_cpus_than_the_cluster_has_stop_at_once_instead_of_waiting(sample: str, tmp_path: Path) -> None:
    line = refusal(*extract(sample, tmp_path / "out", "--judge.num-cpus", "6400"))
    assert "6400" in line
    assert line.endswith("(--judge.num-cpus)")
    assert looks_whole(tmp_path / "out") == []


@pytest.mark.engine
def test_judge_that_the_engine_can_not_load(sample: str, tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    (judge / "config.json").write_text("{}", encoding="utf-8")
    line = refusal(*extract(sample, tmp_path / "out", "--judge.model", str(judge)))
    assert repr(str(judge)) in line
    assert line.endswith("(--judge.model)")
    assert looks_whole(tmp_path / "out") == []


def test_base_without_the_head_that_training_needs(tmp_path: Path) -> None:
    base = tmp_path / "codegen"
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 128, "vocab_size": 49152}
    CodeGenForCausalLM(CodeGenConfig(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(base)
    AutoTokenizer.from_pretrained(resolve_model(SMOLLM2, flag="--base")).save_pretrained(base)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"id": f"r{i}", "messages": messages, "label": 1 + i % 4} for i in range(8)]
    dataset = write_json_lines(tmp_path / "rows.jsonl", rows)
    line = refusal("train", "--dataset", dataset, "--base", str(base), "--output", str(tmp_path / "out"))
    assert repr(str(base)) in line
    assert line.endswith("(--base)")
    assert looks_whole(tmp_path / "out") == []


def test_busy_port(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = save_tiny_reward_model(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refusal("serve", "--model", model, "--port", port)
    assert port in line
    assert line.endswith("(--port)")


def test_disk_without_room_is_refused_before_anything_starts(sample: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        line = refusal(*extract(sample, disk / "out"))
        assert repr(str(disk / "out")) in line
        assert re.search(r"3 MiB free: at least \d+ MiB", line)
        assert line.endswith("(--output)")
        assert looks_whole(disk / "out") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_output_that_holds_other_peoples_files_is_left_alone(sample: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work", encoding="utf-8")
    line = refusal(*extract(sample, tmp_path / "out"))
    assert line.endswith("(--output)")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["thesis.txt"]
