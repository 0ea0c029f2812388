"""The service that a soak runs: started and stopped as a process, other versions of its model, requests it must refuse."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from scripts.soak_record import Record
from wildreward_ray.core.errors import WildRewardError

COMMAND = (sys.executable, "-m", "wildreward_ray.cli")
_START_S, _STOP_S, _SETTLE_S = 600.0, 120.0, 5.0

BAD_BODIES = {
    "malformed": b'{"items": [',
    "not UTF-8": b'{"items": [{"prompt": "\xff", "response": "x"}]}',
    "empty": b'{"items": []}',
    "number for text": b'{"items": [{"prompt": 1, "response": "x"}]}',
    "no response": b'{"items": [{"prompt": "x"}]}',
    "unknown model": b'{"model": "no-such-model", "items": [{"prompt": "x", "response": "y"}]}',
    "lone surrogate": b'{"items": [{"prompt": "x", "response": "\\ud800"}]}',
    "too long": b'{"items": [{"prompt": "x", "response": "' + b"word " * 50_000 + b'"}]}',
    "one bad among good": b'{"items": [{"prompt": "x", "response": "y"}, {"prompt": null, "response": "y"}]}',
}


@asynccontextmanager
async def service(settings: Sequence[str], log: Path, record: Record) -> AsyncIterator[tuple[str, str, int]]:
    """`wildreward serve` as a process. Gives its URL, its cluster's address and its process id.

    Args:
        settings: flags of `wildreward serve`.
        log: where what it prints goes.
        record: is told if it ends by itself or does not stop.

    Raises:
        WildRewardError: it did not start.
    """
    # A cluster of its own, so that all processes of the service are its descendants.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", *settings],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        url, address = await _addresses(process, log)
        record.incident(f"service up at {url}")
        yield url, address, process.pid
        if process.poll() is not None:
            record.problem(f"the service ended by itself with code {process.returncode}: see {log.name}")
    finally:
        await asyncio.to_thread(_stop, process, record)


def _stop(process: subprocess.Popen[bytes], record: Record) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        record.problem(f"the service did not stop within {_STOP_S:.0f} s")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(_SETTLE_S)


async def _addresses(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """The URL and the cluster's address that `wildreward serve` prints when it is ready."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8", errors="replace")
        url, address = re.search(r"engine at (http://\S+)", text), re.search(r"RAY_ADDRESS=(\S+)", text)
        if url and address:
            return url[1], address[1]
        if process.poll() is not None:
            raise WildRewardError(f"the service did not start: {text[-2000:]}")
        await asyncio.sleep(0.5)
    raise WildRewardError(f"the service was not up after {_START_S:.0f} s: see {log}")


def new_version(model: str, folder: Path) -> Path:
    """A directory with the model's files under links, and a `reward_config.json` that says another thing of its origin.

    Raises:
        WildRewardError: the model has none.
    """
    from wildreward_ray.reward.config import RewardConfig

    source = Path(model).resolve()
    config = RewardConfig.load_if_present(str(source))
    if config is None:
        raise WildRewardError(f"{source} has no reward_config.json to make another version of")
    target = folder.resolve() / f"model-{time.time_ns()}"
    shutil.copytree(source, target, copy_function=_link)
    config.model_copy(update={"lineage": {**config.lineage, "soak": target.name}}).save(target)
    return target


def _link(source: str, target: str) -> None:
    """A second name for a file: gigabytes are not copied, and what is written anew replaces the name only."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def started(pid: int) -> str:
    """When a process started, in the system's own count, or "" where there is none or it only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
