"""What a bench ran on and from which commit: rates mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_PATIENCE_S = 30.0
_CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """The machine of this process.

    Returns:
        `cpu`: its model; `cpus`: how many the system has; `memory_gib`: all of its memory, or None where the system does not
        tell; `gpus`: names and memory as nvidia-smi gives them, or what it said instead of them; empty where there is none.
    """
    return {"cpu": cpu_model(), "cpus": os.cpu_count(), "memory_gib": _memory_gib(), "gpus": gpus()}


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """The model's name; where the system does not tell it, as on ARM, the architecture."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.*\S)", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def gpus() -> list[str]:
    """One text for every GPU. A driver that fails is told as such: it must not end a bench, nor look like no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi gave no answer in {_PATIENCE_S:g} s"]
    if found.returncode:
        return [f"nvidia-smi failed: {' '.join((found.stderr or found.stdout).split())[:200]}"]
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def checkout(folder: str = ".") -> dict[str, Any]:
    """The git checkout that a folder is in.

    Returns:
        `commit`: its hash; `dirty`: whether files that git knows were changed since. Both None where there is no checkout.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    # Files that git doesn't know are mostly outputs.
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def text_of(facts: dict[str, Any]) -> str:
    """The facts of `machine` on one line."""
    memory = "memory unknown" if facts["memory_gib"] is None else f"{facts['memory_gib']:g} GiB"
    return ", ".join([facts["cpu"], f"{facts['cpus']} CPUs", memory, *(facts["gpus"] or ["no GPU"])])


def commit_text(facts: dict[str, Any]) -> str:
    """The facts of `checkout` in a few words."""
    if facts["commit"] is None:
        return "none: not a git checkout"
    return str(facts["commit"]) + (", with uncommitted changes" if facts["dirty"] else "")


def _memory_gib() -> float | None:
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not set(names) <= os.sysconf_names.keys():
        return None
    pages, size = (os.sysconf(name) for name in names)
    return round(pages * size / 2**30, 1)


def _git(folder: str, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or it refuses."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", folder, *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if found.returncode else found.stdout.strip()
