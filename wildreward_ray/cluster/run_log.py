"""What a stage says while it runs, and which run it belongs to: lines for people, or one JSON object a line for machines.

`WILDREWARD_LOG=json` makes every line on standard error that this program writes, its own log records included, one JSON
object in ASCII with `time` (UTC, ISO 8601), `level`, `stage`, `run`, `event`, `text`, and fields of the event. What is no
finite number is null there. Runs that begin and end are told in that form only.

A run is one attempt at one output: its name is six hex digits over the output's URI, and the second it began in (UTC).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from wildreward_ray.core.errors import UserError, nearest

LOG_VARIABLE = "WILDREWARD_LOG"
Level = Literal["info", "warning", "error"]

_FORMS = ("json", "text")
_TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"
_CREDENTIALS = re.compile(r"://[^/@\s]+@")

# Of the process, not of a thread or task: threads that print progress belong to the run of the thread that started them.
_open: list[str] = []
_command = ""


def set_up(command: str, level: int) -> None:
    """Send log records to standard error in the form that is asked for.

    Args:
        command: of the command line; the stage of what names no other.
        level: of `logging`.

    Raises:
        UserError: `WILDREWARD_LOG` is neither `json` nor `text`.
    """
    global _command
    _command = command
    form = os.environ.get(LOG_VARIABLE, "text")
    if form not in _FORMS:
        raise UserError(
            f"the environment variable {LOG_VARIABLE} is {form!r}: it may be 'json' or 'text'",
            hint=nearest(form, _FORMS),
        )
    if form == "text":
        logging.basicConfig(level=level, format=_TEXT_FORMAT)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def say(
    stage: str, text: str, *, event: str = "progress", level: Level = "info", prefix: str | None = None, **fields: Any
) -> None:
    """Write a line to standard error: `[stage] text`, or the event and its fields as JSON.

    Args:
        event: short and stable, for programs.
        prefix: in place of `[stage] ` in the line for people.
        fields: numbers, texts, lists and mappings of them; never what stands in a conversation.
    """
    if _is_json():
        line = json_line(stage, text, event=event, level=level, fields=fields)
    else:
        line = (f"[{stage}] " if prefix is None else prefix) + text
    print(line, file=sys.stderr, flush=True)


def json_line(
    stage: str, text: str, *, event: str, level: str, fields: Mapping[str, Any], time: datetime | None = None
) -> str:
    """One event as one JSON object in ASCII.

    Args:
        time: of the event, with a time zone; None: now.

    Raises:
        ValueError: a field has the name of one that every line has.
    """
    common = {
        "time": (time or datetime.now(UTC)).isoformat(timespec="milliseconds"),
        "level": level,
        "stage": stage,
        "run": run_id() or None,
        "event": event,
        "text": text,
    }
    if taken := sorted(common.keys() & fields.keys()):
        raise ValueError(f"a log line has fields of its own named {taken}")
    return json.dumps({**common, **_plain(fields)}, default=str)


@contextmanager
def running(output: str, *, resumed: bool = False) -> Iterator[str]:
    """Give what happens inside to a run. Runs may be nested: what is said belongs to the innermost.

    Args:
        output: URI of what the run makes.
        resumed: whether it goes on with the work of an earlier run.

    Yields:
        the run's name.
    """
    began = time.monotonic()
    run = run_name(output, datetime.now(UTC))
    _open.append(run)
    shown = _CREDENTIALS.sub("://***@", output).partition("?")[0]
    try:
        _tell("started", shown, resumed=resumed)
        yield run
        _tell("finished", shown, seconds=round(time.monotonic() - began, 1))
    except BaseException as e:
        why = f"{type(e).__name__}: {_CREDENTIALS.sub('://***@', str(e))}"
        _tell("failed", shown, level="error", error=why, seconds=round(time.monotonic() - began, 1))
        raise
    finally:
        _open.remove(run)


def run_name(output: str, began: datetime) -> str:
    """The name of a run, e.g. `3f9c02-20260102T030405`: attempts at one output share what stands before the hyphen."""
    return f"{hashlib.blake2b(output.encode(), digest_size=3).hexdigest()}-{began:%Y%m%dT%H%M%S}"


def run_id() -> str:
    """The innermost run of this process, or the empty text outside of all runs."""
    return _open[-1] if _open else ""


def is_running(run: str) -> bool:
    """Whether a run of this name is open in this process."""
    return run in _open


class JsonFormatter(logging.Formatter):
    """Records of `logging` in the form of `json_line`, with `logger` and, where there is one, `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_line(
            _command,
            record.getMessage(),
            event="log",
            level=record.levelname.lower(),
            fields=fields,
            time=datetime.fromtimestamp(record.created, UTC),
        )


def _tell(event: str, output: str, *, level: Level = "info", **fields: Any) -> None:
    """Say what only machines need to be told."""
    if _is_json():
        say(_command, f"{event}: {output}", event=event, level=level, output=output, **fields)


def _is_json() -> bool:
    return os.environ.get(LOG_VARIABLE) == "json"


def _plain(value: Any) -> Any:
    """A value without NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
