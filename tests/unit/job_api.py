"""A job server that speaks Ray's REST API, and a `ray` that records what it was asked instead of asking a cluster."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import ray


@dataclass
class JobApi:
    """The server, for as long as its context lasts.

    Attributes:
        jobs: by submission id, fields other than their defaults.
        logs: by submission id.
        asked: paths of all requests.
        submitted: bodies of all submissions, which begin as pending jobs; every package counts as uploaded.
        on_submission: job that appears, under the name in `FakeRay.job`, once the fake `ray` has run; None for none.
    """

    ray: FakeRay | None = None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    on_submission: dict[str, Any] | None = None

    def __enter__(self) -> JobApi:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> Any:
        """What a path gives; None for what doesn't exist."""
        jobs = dict(self.jobs)
        if self.ray is not None and self.ray.ran and self.on_submission is not None:
            jobs[self.ray.job] = self.on_submission
        details = {name: _details(name, job) for name, job in jobs.items()}
        parts = path.strip("/").split("/")
        if path == "/api/version":
            return {"version": "4", "ray_version": ray.__version__, "ray_commit": ""}
        if path == "/api/jobs/":
            return list(details.values())
        if parts[:2] == ["api", "packages"]:
            return {}
        if parts[:2] == ["api", "jobs"] and parts[2] in details:
            return details[parts[2]] if len(parts) == 3 else {"logs": self.logs.get(parts[2], "")}
        return None


def _details(name: str, job: dict[str, Any]) -> dict[str, Any]:
    return {"type": "SUBMISSION", "submission_id": name, "entrypoint": "python jobs/extract.py", **job}


def _handler(api: JobApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.asked.append(self.path)
            self.reply(api.answer(self.path))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            api.submitted.append(asked)
            api.jobs[asked["submission_id"]] = {"status": "PENDING", "entrypoint": asked["entrypoint"]}
            self.reply({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

        def reply(self, found: Any) -> None:
            body = json.dumps(found).encode() if found is not None else b"no such job"
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


class FakeRay:
    """An executable `ray` in a directory of its own, that takes the place of the one beside the interpreter."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self._record = folder / "record"
        self.behave("exit 0")
        monkeypatch.setattr(sys, "executable", str(self.folder / "python"))

    def behave(self, script: str, *, submits: bool = True) -> None:
        """Lines of shell that it runs when it has recorded everything; without `submits` no job ever appears."""
        program = self.folder / "ray"
        record = f"printf '%s\\0' \"$@\" > '{self._record}.args'\n" if submits else ""
        address = f"printf '%s' \"$RAY_API_SERVER_ADDRESS\" > '{self._record}.address'\n"
        read = f"case \"$*\" in */dev/stdin*) cat > '{self._record}.stdin';; esac\n"
        program.write_text(f"#!/bin/sh\n{read}{address}{record}{script}\n", encoding="utf-8")
        program.chmod(0o755)

    @property
    def ran(self) -> bool:
        """Whether it has submitted anything."""
        return Path(f"{self._record}.args").exists()

    @property
    def words(self) -> list[str]:
        """Its arguments."""
        return Path(f"{self._record}.args").read_text(encoding="utf-8").split("\0")[:-1]

    @property
    def stdin(self) -> str:
        """What it read."""
        return Path(f"{self._record}.stdin").read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        """What its environment said of the address."""
        return Path(f"{self._record}.address").read_text(encoding="utf-8")

    @property
    def job(self) -> str:
        """The submission id it was given."""
        return self.words[self.words.index("--submission-id") + 1]

    def forget(self) -> None:
        """Forget what was recorded."""
        for file in self.folder.parent.glob("record.*"):
            file.unlink()
