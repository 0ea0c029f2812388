"""What several files of this directory need: the command as a process, tables, ports, tiny models, a reward service of one's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from wildreward_ray.cluster.models import SMOLLM2, resolve_model
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.model import save_checkpoint

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "wildreward_ray.cli")
TINY_LENGTH = 2048


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command that starts its own Ray, whatever cluster this process has joined."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, **extra}


def wildreward(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=400, env=environment(**(env or {})), cwd=ROOT
    )


def kill_when(command: list[str], ready: Callable[[], bool], env: dict[str, str] | None = None) -> None:
    """Start a command and kill all its processes as soon as `ready`."""
    process = subprocess.Popen(
        [*COMMAND, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(**(env or {})),
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    assert ready()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def processes(name: str) -> list[int]:
    """Processes with `name` in their command line; Ray writes there what a worker is. Those of tests beside these don't count."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (folder / "cmdline").read_bytes() and (alone or _is_below(int(folder.name))):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _is_below(process: int) -> bool:
    """Whether this process, or a process that it started, has started `process`."""
    while process > 1 and process != os.getpid():
        # The name may hold blanks and brackets; what follows its last bracket are state and parent.
        process = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return process == os.getpid()


def rows_of(folder: str | Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a directory of Parquet files."""
    rows: list[dict[str, Any]] = pads.dataset(str(folder)).to_table(columns=columns).to_pylist()
    return rows


def json_of(file: str | Path) -> Any:
    """The value in a JSON file."""
    return json.loads(Path(file).read_text(encoding="utf-8"))


def json_lines_of(file: str | Path) -> list[dict[str, Any]]:
    """The values in a JSONL file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def write_json_lines(file: Path, rows: Sequence[Any]) -> str:
    """Write a JSONL file and give its path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def looks_whole(output: Path) -> list[str]:
    """What stands in an output that a reader could take for a result: everything but the work directory."""
    return sorted(item.name for item in output.iterdir() if item.name != "_unfinished") if output.is_dir() else []


def assert_connected(funnel: list[dict[str, Any]]) -> None:
    """Every step adds up, and takes what the last step of its unit gave."""
    given: dict[str, int] = {}
    for step in funnel:
        assert step["rows_in"] == step["rows_out"] + sum(step["dropped"].values()), step
        assert given.get(step["unit"], step["rows_in"]) == step["rows_in"], step
        given[step["unit"]] = step["rows_out"]


def _tiny_config(**extra: Any) -> LlamaConfig:
    # Weights far larger than usual, so that outputs differ between inputs by much more than any tolerance here.
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=TINY_LENGTH,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **extra,
    )


def save_tiny_policy(folder: Path, dtype: torch.dtype = torch.bfloat16) -> str:
    """A random language model with tied embeddings and a chat tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(_tiny_config(tie_word_embeddings=True)).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model(SMOLLM2, flag="--policy")).save_pretrained(folder)
    return str(folder)


def save_tiny_reward_model(folder: Path, *, levels: int = 4, head_value: float | None = None, seed: int = 1) -> str:
    """A random decoder reward model; `head_value` fills its head."""
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(
        _tiny_config(num_labels=levels - 1, problem_type="multi_label_classification")
    )
    if head_value is not None:
        torch.nn.init.constant_(model.score.weight, head_value)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(SMOLLM2, flag="--model"))
    save_checkpoint(
        model, tokenizer, RewardConfig(levels=levels, template=DEFAULT_TEMPLATE, max_length=512), str(folder)
    )
    return str(folder)


Answer = Callable[[list[dict[str, Any]]], bytes | None]


@dataclass
class RewardServer:
    """A reward service over real HTTP that gives the rewards a test wants.

    Attributes:
        reward: the reward of a reply's text.
        answers: how many score requests are answered as they should be.
        after: what is answered from then on; without it, or where it gives None, the connection is closed.
        given: the rewards of every request that was answered as it should be, in order of arrival.
    """

    reward: Callable[[str], float]
    answers: int = 1_000_000
    after: Answer | None = None
    given: list[list[float]] = field(default_factory=list)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, items: list[dict[str, Any]]) -> bytes | None:
        """The body of the reply to a score request, or None to hang up."""
        with self._lock:
            if len(self.given) >= self.answers:
                return self.after(items) if self.after is not None else None
            rewards = [self.reward(item["response"]) for item in items]
            self.given.append(rewards)
        return score_reply(rewards)


def score_reply(rewards: Sequence[float]) -> bytes:
    """A body of `/v1/score` with these rewards."""
    scores = [{"score": r, "level_probs": [0.25] * 4, "p_gt": [(r - 1) / 3] * 3} for r in rewards]
    return json.dumps({"model": "test", "version": "1", "scores": scores}).encode()


@contextmanager
def reward_server(
    reward: Callable[[str], float], *, answers: int = 1_000_000, after: Answer | None = None
) -> Iterator[RewardServer]:
    """Run a `RewardServer` in a thread."""
    state = RewardServer(reward, answers, after)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            health = {"status": "ok", "model": "test", "version": "1", "engine": "test", "levels": 4}
            self._send(json.dumps(health).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            reply = state.reply(json.loads(body)["items"])
            if reply is None:
                self.close_connection = True
            else:
                self._send(reply)

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
