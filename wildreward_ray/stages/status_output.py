"""What stands at an output: a whole artefact, an unfinished one and how far it is, or a directory of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pyarrow import fs as pafs

from wildreward_ray.cluster.artifact import STATE, UNFINISHED, has_manifest
from wildreward_ray.cluster.checkpoints import CheckpointStore
from wildreward_ray.cluster.storage import Location, again, first_line, locate
from wildreward_ray.core.errors import StorageError
from wildreward_ray.core.manifest import MANIFEST
from wildreward_ray.stages.chunks import done_parts, list_parts
from wildreward_ray.stages.status_command import command

_FLAG = "RUN"
# A state names what its stage was asked beside its settings, and with it the stage.
_KIND_BY_STATE = {
    "prompt_version": "feedback",
    "files_of_dataset": "reward_model",
    "prompts": "online_dpo",
    "jobs": "evaluation",
    "dataset_created": "experiment",
}
# What tells one run from another, by kind.
_SETTINGS = {
    "feedback": ("input", "judge.model", "judge.mode", "levels", "limit"),
    "reward_model": ("dataset", "base", "objective.loss", "levels", "epochs"),
    "scores": ("model", "input"),
    "online_dpo": ("policy", "prompts", "reward_model", "reward_url", "steps"),
    "experiment": ("kind", "dataset", "seeds", "train.base"),
    "evaluation": ("benchmark", "model", "reward_url", "scores", "data", "limit"),
    "comparison": ("compare",),
}
_RUN_ALL = ("dataset", "reward_model", "online_dpo")


def describe(uri: str) -> dict[str, Any]:
    """What stands at `uri`, as JSON values.

    Returns:
        `run`, `kind`, `state` (`whole`, `unfinished`), and
        of a whole artefact `created`, `seconds`, `inputs`, `settings`, `funnel`, and of the kinds that have them `metrics` and
        `stopped`;
        of an unfinished one `changed` (UTC, None where the store doesn't tell), `settings`, `done`, and `next`: the command that
        goes on with it, None where flags can't say it, or without a `kind`, where only a new start does;
        of a directory of several `stages`, one object each, and `not_begun`, names of stages of run-all.

    Raises:
        StorageError: nothing is there, nothing of this program's, or it can't be read.
    """
    place = locate(uri, flag=_FLAG)
    try:
        kind = place.info().type
        if kind == pafs.FileType.NotFound:
            raise StorageError(f"{uri!r} does not exist", flag=_FLAG)
        found = _artefact(place) if kind == pafs.FileType.Directory else None
        if found is None and kind == pafs.FileType.Directory:
            found = _several(place)
    except (OSError, ValueError) as e:
        raise StorageError(f"can't read {uri!r}: {first_line(e)}", flag=_FLAG) from e
    if found is None:
        raise StorageError(
            f"{uri!r} holds no run: neither a {MANIFEST} nor {UNFINISHED}/, nor directories with one", flag=_FLAG
        )
    return found


def _artefact(place: Location) -> dict[str, Any] | None:
    if has_manifest(place):
        return _whole(place)
    return _unfinished(place) if UNFINISHED in again(place.names) else None


def _whole(place: Location) -> dict[str, Any]:
    manifest = json.loads(place.child(MANIFEST).read_bytes())
    if not isinstance(manifest, dict) or "kind" not in manifest:
        raise StorageError(f"{place.uri!r} has a {MANIFEST} that names no kind of artefact", flag=_FLAG)
    kind = manifest["kind"]
    found = {"run": place.uri, "kind": kind, "state": "whole"}
    found |= {name: manifest.get(name) for name in ("created", "seconds", "inputs")}
    found |= {"settings": _settings(kind, manifest.get("config", {})), "funnel": manifest.get("funnel", [])}
    if "metrics" in manifest:
        found["metrics"] = manifest["metrics"]
    stopped = manifest.get("summary", {}).get("stopped")
    return found | ({"stopped": stopped} if stopped else {})


def _unfinished(place: Location) -> dict[str, Any]:
    work = place.child(UNFINISHED)
    state = json.loads(work.child(STATE).read_bytes()) if STATE in again(work.names) else {}
    kind = next((kind for name, kind in _KIND_BY_STATE.items() if name in state), None)
    settings = state.get("config", {})
    return {
        "run": place.uri,
        "kind": kind,
        "state": "unfinished",
        "changed": _changed(work),
        "settings": _settings(kind, settings),
        "done": _DONE[kind](work, state) if kind else {},
        "next": command(kind, settings, place.uri) if kind else None,
    }


def _several(root: Location) -> dict[str, Any] | None:
    """A directory with artefacts directly below it, such as run-all's; None where there are none."""
    items = again(lambda: root.fs.get_file_info(pafs.FileSelector(root.path)))
    folders = sorted(item.base_name for item in items if item.type == pafs.FileType.Directory)
    found = {name: stage for name in folders if (stage := _artefact(root.child(name))) is not None}
    if not found:
        return None
    order = [name for name in _RUN_ALL if name in found]
    not_begun = [name for name in _RUN_ALL if name not in found] if order else []
    stages = [found[name] for name in [*order, *(name for name in found if name not in order)]]
    whole = not not_begun and all(stage["state"] == "whole" for stage in stages)
    state = "whole" if whole else "unfinished"
    return {"run": root.uri, "kind": "directory", "state": state, "stages": stages, "not_begun": not_begun}


def _settings(kind: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that tell a run of this kind from others; those that weren't given are left out."""
    found: dict[str, Any] = {}
    for name in _SETTINGS.get(kind or "", ()):
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, ""):
            found[name] = value
    return found


def _changed(work: Location) -> str | None:
    """When the newest file below was written."""
    items = again(lambda: work.fs.get_file_info(pafs.FileSelector(work.path, recursive=True, allow_not_found=True)))
    times = [item.mtime for item in items if item.type == pafs.FileType.File and item.mtime is not None]
    if not times:
        return None
    newest: datetime = max(times)
    return newest.astimezone(UTC).isoformat(timespec="seconds")


def _extraction(work: Location, state: Mapping[str, Any]) -> dict[str, Any]:
    parts = list_parts(work.child("judged"))
    names = work.names()
    shards = done_parts(parts)
    done: dict[str, Any] = {
        "input_files": len(state["input"]),
        "judged_chunks": len(parts),
        "shards_whole": sum(shard.whole for shard in shards.values()),
        "shards_begun": len(shards),
        "judging_finished": "judged.done" in names,
    }
    if "second" in names:
        done["second_judge_chunks"] = len(list_parts(work.child("second")))
    return done | {"refined_chunks": len(list_parts(work.child("refined")))}


def _training(work: Location, state: Mapping[str, Any]) -> dict[str, Any]:
    done: dict[str, Any] = {"tokenised": "tokens.json" in work.names()}
    store = CheckpointStore(work.child("checkpoints"))
    steps = store.steps()
    if steps:
        curve = store.info(steps[-1]).get("curve") or [{}]
        done |= {"checkpoint_step": steps[-1], "loss": curve[-1].get("loss"), "epoch": curve[-1].get("epoch")}
    return done | {"model_written": "metrics.json" in work.child("model").names()}


def _improvement(work: Location, state: Mapping[str, Any]) -> dict[str, Any]:
    done: dict[str, Any] = {}
    if "metrics.jsonl" in work.names():
        rows = work.child("metrics.jsonl").read_bytes().splitlines()
        last = json.loads(rows[-1]) if rows else {}
        done = {name: last[name] for name in ("step", "reward_mean", "kl") if name in last}
    steps = CheckpointStore(work.child("checkpoints")).steps()
    return done | {"checkpoint_step": steps[-1] if steps else None}


def _evaluation(work: Location, state: Mapping[str, Any]) -> dict[str, Any]:
    return {"scored_parts": len(list_parts(work.child("parts")))}


def _experiment(work: Location, state: Mapping[str, Any]) -> dict[str, Any]:
    runs = work.child("runs")
    names = runs.names()
    return {"runs_whole": sum(has_manifest(runs.child(name)) for name in names), "runs_begun": len(names)}


_DONE: dict[str, Callable[[Location, Mapping[str, Any]], dict[str, Any]]] = {
    "feedback": _extraction,
    "reward_model": _training,
    "online_dpo": _improvement,
    "evaluation": _evaluation,
    "experiment": _experiment,
}
