"""`wildreward status`: how far an output or a job is, told from what stands in storage and by the job server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pyarrow import fs as pafs

from wildreward_ray.cluster.storage import locate
from wildreward_ray.core.config.submit import StatusConfig
from wildreward_ray.core.errors import UserError
from wildreward_ray.stages.job_server import JobServer
from wildreward_ray.stages.status_output import describe

# Where no command is known: for a stage that can be resumed, and for what leaves no state.
_BEGUN_WITH = "the command that began it"
_STARTS_AFRESH = "nothing: what is there can't be gone on with, and the same command starts again"


def run(config: StatusConfig) -> list[dict[str, Any]]:
    """Describe every run, in the order given, see `describe` and `describe_job`.

    Raises:
        StorageError: an output that doesn't exist or holds no run.
        UserError: a job that the cluster doesn't know, or no job server.
    """
    found = []
    server: JobServer | None = None
    for name in config.runs:
        if is_output(name):
            found.append(describe(name))
            continue
        try:
            server = server or JobServer(config.address)
        except UserError as e:
            raise UserError(f"{name!r} is no directory here, and {e.problem}", flag=e.flag, hint=e.hint) from e
        found.append(describe_job(server, name, config.log_lines))
    return found


def is_output(name: str) -> bool:
    """Whether a run is named by its output: a URI, a path of several parts, or something that exists here."""
    return "/" in name or locate(name, flag="RUN").info().type != pafs.FileType.NotFound


def describe_job(server: JobServer, job: str, lines: int) -> dict[str, Any]:
    """What the server says of a job, as JSON values; its runtime environment, which may hold secrets, is left out.

    Returns:
        `run`, `kind` (`job`), `state` (Ray's word in small letters), `message`, `entrypoint`, `started`, `ended`,
        `exit_code`, `log`: the last lines.

    Raises:
        UserError: it knows of none of that name, or can't be asked.
    """
    details = server.details(job)
    if details is None:
        raise UserError(f"{job!r} is no directory here, and no job that the cluster knows of", flag="RUN")
    return {
        "run": job,
        "kind": "job",
        "state": details.status.value.lower(),
        "message": details.message,
        "entrypoint": details.entrypoint,
        "started": _time(details.start_time),
        "ended": _time(details.end_time),
        "exit_code": details.driver_exit_code,
        "log": server.log_tail(job, lines) if lines else [],
    }


def text(found: Mapping[str, Any]) -> str:
    """A description for people: a heading, and a line for everything that is known."""
    if found["kind"] == "job":
        return _job_text(found)
    if found["kind"] == "directory":
        parts = [f"{found['run']}: {found['state']}, {len(found['stages'])} runs"]
        parts += [_indented(text(stage)) for stage in found["stages"]]
        return "\n".join([*parts, *(f"  {name}: not begun" for name in found["not_begun"])])
    kind = found["kind"] or "unknown kind"
    if found["state"] == "whole":
        heading = f"{found['run']}: {kind}, whole, made {found['created']} in {found['seconds']} s"
        rows = {**found["settings"], **({"stopped": found["stopped"]} if "stopped" in found else {})}
        return "\n".join([heading, *_rows(rows), *map(_funnel_line, found["funnel"])])
    heading = (
        f"{found['run']}: {kind}, unfinished, last changed {found['changed'] or 'at a time the store does not tell'}"
    )
    goes_on = {"goes on with": found["next"] or (_BEGUN_WITH if found["kind"] else _STARTS_AFRESH)}
    return "\n".join([heading, *_rows({**found["settings"], **found["done"], **goes_on})])


def _job_text(found: Mapping[str, Any]) -> str:
    rows = {name: found[name] for name in ("entrypoint", "started", "ended", "exit_code", "message")}
    # Ray gives a job that failed up to 20,000 characters of its log there, whose end is shown below.
    rows["message"] = rows["message"] and rows["message"].partition(", last available logs")[0]
    lines = [f"{found['run']}: job, {found['state']}", *_rows({k: v for k, v in rows.items() if v is not None})]
    return "\n".join([*lines, *(f"  | {line}" for line in found["log"])])


def _rows(rows: Mapping[str, Any]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name.replace('_', ' '):<{width}}  {_value(value)}" for name, value in rows.items()]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _funnel_line(step: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in step["dropped"].items() if n)
    line = f"  {step['name']:>15}  {step['rows_in']:>9,} -> {step['rows_out']:>9,} {step['unit']}  {dropped}"
    return line.rstrip()


def _indented(lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines.splitlines())


def _time(milliseconds: int | None) -> str | None:
    """UTC in ISO form, of Unix milliseconds; 0 is a job that hasn't ended."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds") if milliseconds else None
