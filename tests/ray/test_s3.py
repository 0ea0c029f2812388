"""An extraction from and to a real S3 endpoint: with rights checked first, with faults survived, and nothing half left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.helpers import assert_connected, rows_of, wildreward
from tests.ray.judge_server import JudgeServer, judge_flags, judge_server
from tests.ray.s3 import S3Server
from tests.ray.s3_proxy import Faults

# Interactions: enough chunks for every kind of fault to be met several times.
LIMIT = 240


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with judge_server() as running:
        yield running


@pytest.fixture
def bucket(s3: S3Server, sample: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bucket of the test's own, with the sample in `logs/`; without faults before and after."""
    s3.configure()
    name = "b" + str(abs(hash(request.node.name)))[:12]
    s3.make_bucket(name)
    s3.client().upload_file(sample, name, "logs/sample.parquet")
    yield name
    s3.configure()


def keys(s3: S3Server, bucket: str, prefix: str = "") -> set[str]:
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", [])}


def download(s3: S3Server, bucket: str, prefix: str, folder: Path) -> Path:
    """Copy what stands below a prefix, past all faults."""
    for key in keys(s3, bucket, prefix):
        if not key.endswith("/"):
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.client().download_file(bucket, key, str(target))
    return folder / prefix


def extract(s3: S3Server, server: JudgeServer, bucket: str, *more: str) -> Any:
    command = [
        "extract",
        "--input",
        f"s3://{bucket}/logs",
        "--output",
        f"s3://{bucket}/out",
        "--judge.batch-size",
        "16",
    ]
    small = ["--limit", str(LIMIT), "--hindsight.enabled", "false"]
    return wildreward(*command, *small, *judge_flags(server), *more, env=s3.environment)


@pytest.mark.slow
def test_a_store_that_fails_for_good_stops_the_run_and_one_that_throttles_and_drops_changes_no_row(
    s3: S3Server, server: JudgeServer, bucket: str, sample: str, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    flags = ["--judge.batch-size", "16", "--limit", str(LIMIT), "--hindsight.enabled", "false", *judge_flags(server)]
    assert wildreward("extract", "--input", sample, "--output", str(local), *flags).returncode == 0

    server.asked.clear()
    s3.configure(Faults(fail_puts_after=12))
    stopped = extract(s3, server, bucket)
    assert stopped.returncode != 0
    s3.configure()
    assert "out/manifest.json" not in keys(s3, bucket)
    assert not s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert server.asked

    s3.configure(Faults(slow_down_every=13, drop_every=7))
    finished = extract(s3, server, bucket)
    assert finished.returncode == 0, finished.stderr
    assert s3.counts.faults["slow_down"] > 5
    assert s3.counts.faults["drop"] > 5
    assert sum(server.asked.values()) < 2 * len(server.asked)
    s3.configure()
    remote = download(s3, bucket, "out", tmp_path / "remote")
    for table in ("feedback", "dataset/train", "dataset/test"):
        found, want = rows_of(remote / table), rows_of(local / table)
        for row in (*found, *want):
            row.pop("source", None)
        assert sorted(map(repr, found)) == sorted(map(repr, want)), table
    assert len(rows_of(remote / "feedback")) == LIMIT
    assert_connected(json.loads((remote / "manifest.json").read_text())["funnel"])
    assert not [key for key in keys(s3, bucket) if "_unfinished" in key and not key.endswith("/")]


def test_bucket_that_is_missing_or_may_not_be_written_is_known_before_anything_is_judged(
    s3: S3Server, server: JudgeServer, bucket: str
) -> None:
    server.asked.clear()
    command = ["extract", "--judge.batch-size", "16", "--hindsight.enabled", "false", *judge_flags(server)]
    absent = [*command, "--input", "s3://no-such-bucket-here/logs", "--output", f"s3://{bucket}/out"]
    missing = wildreward(*absent, env=s3.environment)
    assert missing.returncode == 2
    assert "no-such-bucket-here" in missing.stderr
    assert "--input" in missing.stderr
    s3.configure(Faults(read_only=True))
    refused = extract(s3, server, bucket)
    assert refused.returncode == 2
    last = refused.stderr.strip().splitlines()[-1]
    assert "--output" in last
    assert f"s3://{bucket}/out" in last
    assert not server.asked
