"""An artefact is whole or visibly unfinished, and every failure names the value and the flag."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from wildreward_ray.cluster import artifact
from wildreward_ray.cluster.artifact import UNFINISHED, is_done, open_artifact, read_manifest, storage_error_of
from wildreward_ray.cluster.storage import list_files, locate
from wildreward_ray.core.errors import (
    ResourceError,
    RewardUnavailableError,
    StorageError,
    UserError,
    WildRewardError,
    nearest,
)
from wildreward_ray.core.manifest import MANIFEST, FunnelStep, Manifest


def manifest(**changes: object) -> Manifest:
    return Manifest.model_validate({"kind": "feedback", "inputs": ["in"], "config": {}, "seconds": 0.1, **changes})


def files_below(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def write(output: Path, *parts: str, text: str = "x", overwrite: bool = False) -> None:
    """A whole artefact with a file in every part."""
    with open_artifact(str(output), overwrite=overwrite) as artifact:
        for part in parts:
            folder = Path(artifact.work.path) / part
            folder.mkdir()
            (folder / "data.txt").write_text(text)
        artifact.commit(manifest(), list(parts))


def test_commit_leaves_exactly_the_parts_and_the_manifest(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with open_artifact(str(output), overwrite=False) as artifact:
        work = Path(artifact.work.path)
        (work / "part").mkdir()
        (work / "part" / "a.txt").write_text("a")
        (work / "README.md").write_text("read")
        (work / "scratch.txt").write_text("only needed on the way")
        assert not (output / MANIFEST).exists()
        artifact.commit(manifest(), ["part", "README.md"])
    assert files_below(output) == {"part/a.txt", "README.md", MANIFEST}
    assert not (output / UNFINISHED).exists()
    assert read_manifest(str(output), kind="feedback", flag="--dataset")["inputs"] == ["in"]


def test_artefact_that_was_not_committed_is_refused_by_readers(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with open_artifact(str(output), overwrite=False) as artifact:
        (Path(artifact.work.path) / "part").mkdir()
    assert not (output / MANIFEST).exists()
    with pytest.raises(StorageError, match=r"out' has no manifest\.json: it is unfinished") as caught:
        read_manifest(str(output), kind="feedback", flag="--dataset")
    assert caught.value.flag == "--dataset"


def test_commit_that_fails_half_way_leaves_no_manifest_and_can_be_run_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with open_artifact(str(output), overwrite=False) as artifact:
        (Path(artifact.work.path) / "one").mkdir()
        with pytest.raises(FileNotFoundError):
            artifact.commit(manifest(), ["one", "never-written"])
    assert not (output / MANIFEST).exists()
    write(output, "one", text="second run")
    assert (output / "one" / "data.txt").read_text() == "second run"


def test_funnel_that_loses_rows_never_becomes_a_whole_artefact(tmp_path: Path) -> None:
    leaky = FunnelStep(name="judge", unit="interactions", rows_in=2, rows_out=1)
    with (
        pytest.raises(AssertionError, match="judge"),
        open_artifact(str(tmp_path / "out"), overwrite=False) as artifact,
    ):
        artifact.commit(manifest(funnel=[leaky.model_dump()]), [])
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_whole_artefact_is_refused_without_overwrite_and_left_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "out", "part", text="old")
    with pytest.raises(StorageError, match=r"out' already holds a whole result") as caught:
        write(tmp_path / "out", "part", text="new")
    assert caught.value.flag == "--overwrite"
    assert (tmp_path / "out" / "part" / "data.txt").read_text() == "old"
    assert (tmp_path / "out" / MANIFEST).is_file()


def test_overwrite_replaces_the_old_and_is_not_whole_until_the_new_is(tmp_path: Path) -> None:
    write(tmp_path / "out", "part", text="old")
    with open_artifact(str(tmp_path / "out"), overwrite=True):
        assert (tmp_path / "out" / "part" / "data.txt").read_text() == "old"
        assert not (tmp_path / "out" / MANIFEST).exists()
    write(tmp_path / "out", "part", text="new")
    assert (tmp_path / "out" / "part" / "data.txt").read_text() == "new"
    assert files_below(tmp_path / "out") == {"part/data.txt", MANIFEST}


def test_overwrite_leaves_nothing_of_the_old_that_the_new_does_not_have(tmp_path: Path) -> None:
    """A model of fewer files must not be read together with files of the one it replaced."""
    write(tmp_path / "out", "part", "old-part")
    write(tmp_path / "out", "part", overwrite=True)
    assert files_below(tmp_path / "out") == {"part/data.txt", MANIFEST}


def test_overwrite_keeps_parts_that_are_named_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "out", "dataset")
    with open_artifact(str(tmp_path / "out"), overwrite=True) as artifact:
        (Path(artifact.work.path) / "dataset").mkdir()
        (Path(artifact.work.path) / "dataset" / "train.txt").write_text("new")
        artifact.commit(manifest(), ["dataset/train.txt"])
    assert "dataset/train.txt" in files_below(tmp_path / "out")


def test_unfinished_run_is_replaced_without_being_asked(tmp_path: Path) -> None:
    with open_artifact(str(tmp_path / "out"), overwrite=False) as artifact:
        (Path(artifact.work.path) / "stale.txt").write_text("stale")
    with open_artifact(str(tmp_path / "out"), overwrite=False) as artifact:
        assert files_below(Path(artifact.work.path)) == set()
        artifact.commit(manifest(), [])
    assert files_below(tmp_path / "out") == {MANIFEST}


def begin(output: Path, state: Mapping[str, object], *, overwrite: bool = False) -> bool:
    """Begin a run that can be resumed and leave it unfinished; whether it went on with an earlier one."""
    with open_artifact(str(output), overwrite=overwrite, state=state) as artifact:
        (Path(artifact.work.path) / "done.txt").write_text("work")
        return artifact.resumed


def test_unfinished_run_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    state = {"config": {"judge": {"model": "a", "replicas": (1, 2)}}}
    assert [begin(tmp_path / "out", state), begin(tmp_path / "out", state)] == [False, True]
    assert "_unfinished/done.txt" in files_below(tmp_path / "out")


def test_unfinished_run_of_other_settings_is_kept_and_named_setting_by_setting(tmp_path: Path) -> None:
    begin(tmp_path / "out", {"config": {"judge": {"model": "a", "seed": "x"}, "levels": 4}, "input": [["f", 1]]})
    with pytest.raises(StorageError) as caught:
        begin(tmp_path / "out", {"config": {"judge": {"model": "b", "seed": "x"}, "levels": 5}, "input": [["f", 1]]})
    assert "config.judge.model, config.levels" in str(caught.value)
    assert "seed" not in str(caught.value)
    assert caught.value.flag == "--overwrite"
    assert "_unfinished/done.txt" in files_below(tmp_path / "out")


def test_changed_input_is_named_as_what_differs(tmp_path: Path) -> None:
    begin(tmp_path / "out", {"input": [["f", 1]]})
    with pytest.raises(StorageError, match=r"differs in input"):
        begin(tmp_path / "out", {"input": [["f", 2]]})


def test_unfinished_run_of_other_settings_is_discarded_when_asked(tmp_path: Path) -> None:
    begin(tmp_path / "out", {"a": 1})
    assert begin(tmp_path / "out", {"a": 2}, overwrite=True) is False
    # The very same command, given again after a kill, goes on.
    assert begin(tmp_path / "out", {"a": 2}, overwrite=True) is True


def test_whole_result_is_found_again_whatever_the_operational_settings(tmp_path: Path) -> None:
    config = {"judge": {"model": "a", "replicas": [1, 1]}, "overwrite": False}
    with open_artifact(str(tmp_path / "out"), overwrite=False) as artifact:
        artifact.commit(manifest(config=config), [])
    other = {"judge": {"model": "a", "replicas": [1, 8]}, "overwrite": True}
    assert is_done(str(tmp_path / "out"), other, {"judge.replicas"})
    with pytest.raises(StorageError, match=r"judge\.replicas"):
        is_done(str(tmp_path / "out"), {**other, "overwrite": False})


def test_writer_that_is_taken_for_dead_cannot_spoil_what_another_wrote(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "file"))
    place.write_bytes(b"first")
    place.write_bytes(b"second")
    assert place.read_bytes() == b"second"
    assert files_below(tmp_path) == {"file"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_somebody_else_are_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="holds files that no unfinished run") as caught:
        write(tmp_path, "part", overwrite=overwrite)
    assert caught.value.flag == "--output"
    assert files_below(tmp_path) == {"thesis.txt"}


def test_output_that_is_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match=r"out'.*--output"):
        write(tmp_path / "out", "part", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_output_below_a_file_is_an_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"can't write '.*file/out'.*--output"):
        write(tmp_path / "file" / "out", "part")


def test_full_disk_is_known_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(artifact, "MIN_FREE_BYTES", 2 * free)
    with pytest.raises(StorageError, match=r"MiB free: at least .*--output"):
        write(tmp_path / "out", "part")


def test_disk_that_fills_up_later_is_a_user_error_and_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"no space left while writing .*out'"),
        open_artifact(str(tmp_path / "out"), overwrite=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionResetError), open_artifact(str(tmp_path / "other"), overwrite=False):
        raise ConnectionResetError(errno.ECONNRESET, "peer")


def test_missing_space_is_found_behind_wrapped_errors() -> None:
    def wrapped(code: int) -> RuntimeError:
        try:
            try:
                raise OSError(code, "inner")
            except OSError as inner:
                raise RuntimeError("task failed") from inner
        except RuntimeError as outer:
            return outer

    assert isinstance(storage_error_of(wrapped(errno.ENOSPC), "out"), StorageError)
    assert storage_error_of(wrapped(errno.EPIPE), "out") is None


def test_errors_that_name_each_other_as_cause_are_searched_once() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert storage_error_of(one, "out") is None


@pytest.mark.parametrize("uri", ["nope://bucket/x", "s3:///no-bucket", "file://host/x"])
def test_uri_that_cannot_be_reached_names_value_and_flag(uri: str) -> None:
    with pytest.raises(StorageError, match="can't reach") as caught:
        locate(uri, flag="--input")
    assert repr(uri) in str(caught.value)
    assert caught.value.flag == "--input"


def test_s3_place_crosses_process_borders_with_its_endpoint_and_without_its_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.internal:9000")
    place = locate("s3://bucket/logs/").child("a.parquet")
    packed = pickle.dumps(place)
    assert b"not-to-be-seen" not in packed
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    there = pickle.loads(packed)
    assert (there.uri, there.path, there.s3_options) == (place.uri, "bucket/logs/a.parquet", place.s3_options)
    assert dict(there.s3_options)["endpoint_override"] == "http://store.internal:9000"


def test_endpoint_in_the_uri_outweighs_the_environment_and_is_no_part_of_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other:1")
    place = locate("s3://bucket/logs?endpoint_override=localhost:9000&scheme=http")
    assert place.uri == "s3://bucket/logs"
    assert dict(place.s3_options or ())["endpoint_override"] == "localhost:9000"
    with pytest.raises(StorageError, match="'acces_key' is not known"):
        locate("s3://bucket/logs?acces_key=x")


def test_path_and_file_uri_are_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    assert locate(str(tmp_path / "x")).read_bytes() == locate(f"file://{tmp_path}/x").read_bytes() == b"content"


def test_absent_input_names_value_and_flag(tmp_path: Path) -> None:
    uri = str(tmp_path / "absent.parquet")
    with pytest.raises(StorageError, match="does not exist") as caught:
        list_files(uri, flag="--input")
    assert repr(uri) in str(caught.value)
    assert caught.value.flag == "--input"
    with pytest.raises(StorageError, match="does not exist") as caught:
        read_manifest(uri, kind="feedback", flag="--dataset")
    assert caught.value.flag == "--dataset"


def test_directory_without_logs_names_the_kinds_that_were_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StorageError, match=r"holds no files of kind \.parquet, \.json"):
        list_files(str(tmp_path), flag="--input", suffixes=(".parquet", ".json"))


def test_files_are_found_at_every_depth_in_order_without_hidden_and_unfinished_ones(tmp_path: Path) -> None:
    for name in ("b.json", "a/c.JSON", "a/_unfinished/d.json", ".cache/e.json", "_f.json", "g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    found = list_files(str(tmp_path), flag="--input", suffixes=(".json",))
    assert [f.uri for f in found] == [f"{tmp_path}/a/c.JSON", f"{tmp_path}/b.json"]
    assert all(f.read_bytes() == b"[]" for f in found)


def test_bytes_are_read_as_they_are_whatever_the_name_says(tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(b"plain text")
    with locate(str(tmp_path / "log.gz")).open_input() as stream:
        assert stream.read() == b"plain text"


def test_artefact_of_another_kind_or_with_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(StorageError, match="is a feedback artefact, not a reward_model one"):
        read_manifest(str(tmp_path / "out"), kind="reward_model", flag="--model")
    for broken in ("{", json.dumps([1])):
        (tmp_path / "out" / MANIFEST).write_text(broken)
        with pytest.raises(StorageError):
            read_manifest(str(tmp_path / "out"), kind="feedback", flag="--dataset")


@pytest.mark.parametrize("kind", [UserError, StorageError, ResourceError])
def test_user_errors_cross_process_borders_whole(kind: type[UserError]) -> None:
    error = kind("3 GPUs: there are 2", flag="--judge.num-gpus", hint="lower it")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.flag, back.hint, back.exit_code) == (str(error), "--judge.num-gpus", "lower it", 2)
    assert str(error) == "3 GPUs: there are 2; lower it (--judge.num-gpus)"


def test_other_errors_cross_process_borders_whole() -> None:
    back = pickle.loads(pickle.dumps(RewardUnavailableError("gave up after 6 tries")))
    assert isinstance(back, WildRewardError)
    assert (str(back), back.exit_code) == ("gave up after 6 tries", 1)


def test_hint_names_the_nearest_name_or_all_of_them() -> None:
    assert nearest("limitt", ["limit", "output"]) == "did you mean 'limit'?"
    assert nearest("zzz", ["limit", "output"]) == "known: limit, output"
