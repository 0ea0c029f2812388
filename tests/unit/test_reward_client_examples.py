"""The example reward functions, run as the trainers call them, against a small server that speaks the service's protocols."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from wildreward_ray.core.errors import WildRewardError
from wildreward_ray.core.protocols import DIALECTS
from wildreward_ray.core.service import Conversation, ModelCard, Reward, Scored, ServiceError

EXAMPLES = Path(__file__).parents[2] / "examples" / "reward_clients"
CARD = ModelCard(
    id="rm", source="rm", version="1", engine="vllm", levels=4, max_length=9, dtype="x", calibrated=False, created=1
)
USER, REPLY = {"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}
CONVERSATION: Conversation = ([], "p", "good")


class Service(ThreadingHTTPServer):
    """Scores every input 3.5 (P = 1, 1, 0.5) after the failures that a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures: list[int] = []
        self.asked: list[Any] = []
        self.tokens: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.tokens.append(self.headers["authorization"])
        status = self.server.failures.pop(0) if self.server.failures else 200
        reply: Any = {"detail": "told to fail", "code": "test"}
        if status == 200:
            dialect = next(d for d in DIALECTS if d.path == self.path)
            try:
                asked = dialect.read(body)
                self.server.asked += asked.inputs
                rewards = [Reward(3.5, [0.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.5]) for _ in asked.inputs]
                reply = dialect.write(asked, Scored(rewards, CARD, 1))
            except ServiceError as e:
                status, reply = e.status, {"detail": e.detail, "code": e.code}
        text = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        if status in (429, 503):
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_impatient(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example on aiohttp that doesn't wait between its tries."""
    pytest.importorskip("aiohttp")
    module = load(name)
    real = asyncio.sleep
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=lambda _: real(0)))
    return module


def verl(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load_impatient("verl_reward", monkeypatch)
    extra = {"messages": [USER], "num_turns": None}
    found = asyncio.run(module.compute_score("d", "good", "", extra, reward_url=service.url))
    assert found == {"score": 3.5, "p_highest_level": 0.5}
    return found["score"]


def slime(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load_impatient("slime_reward", monkeypatch)
    sample = SimpleNamespace(prompt="rendered", response="good", metadata={"messages": [USER]})
    return asyncio.run(module.custom_rm(SimpleNamespace(rm_url=service.url), sample))


def openrlhf(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("requests")
    module = load("openrlhf_reward")
    monkeypatch.setattr(module, "RETRY", module.RETRY.new(backoff_factor=0, backoff_jitter=0))
    monkeypatch.setenv("WILDREWARD_URL", service.url)
    found = module.reward_func(["<u>p<a>good<|im_end|>\n"], ["<u>p<a>"], [json.dumps([USER])])
    assert found["scores"].tolist() == pytest.approx([2.5 / 3])
    return found["rewards"].item()


def trl(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    reward = load("trl_reward").wildreward(service.url)
    (found,) = reward(prompts=[[USER]], completions=[[REPLY]], completion_ids=[[1]], trainer_state=None)
    return found


@pytest.mark.parametrize("ask", [verl, slime, openrlhf, trl])
def test_an_example_posts_the_conversation_and_gives_the_trainer_its_score(
    ask: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(service, monkeypatch) == 3.5
    assert service.asked == [CONVERSATION]


@pytest.mark.parametrize("ask", [verl, slime, openrlhf, trl])
def test_an_example_asks_a_busy_service_again(ask: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.failures = [503, 429]
    assert ask(service, monkeypatch) == 3.5
    assert len(service.tokens) == 3


@pytest.mark.parametrize("ask", [verl, slime, openrlhf, trl])
@pytest.mark.parametrize("status", [401, 422, 500])
def test_an_example_raises_at_once_where_the_service_refuses(
    ask: Any, status: int, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.failures = [status] * 20
    with pytest.raises((RuntimeError, WildRewardError), match=f"{status}"):
        ask(service, monkeypatch)
    assert len(service.tokens) == 1


@pytest.mark.parametrize("ask", [verl, slime, openrlhf])
def test_an_example_gives_up_with_an_error_and_not_a_number(
    ask: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.failures = [503] * 50
    with pytest.raises(RuntimeError, match="503"):
        ask(service, monkeypatch)
    assert 10 < len(service.tokens) < 20


@pytest.mark.parametrize("ask", [verl, slime, openrlhf])
def test_an_example_sends_the_token_where_there_is_one(
    ask: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WILDREWARD_TOKEN", "secret")
    ask(service, monkeypatch)
    assert service.tokens == ["Bearer secret"]


def test_trl_s_plain_texts_are_prompt_and_response_and_mixed_forms_are_refused(service: Service) -> None:
    module = load("trl_reward")
    assert module.wildreward(service.url)(prompts=["p"], completions=["good"]) == [3.5]
    assert service.asked == [CONVERSATION]
    with pytest.raises(TypeError):
        module.item("p", [REPLY])


def test_openrlhf_s_example_refuses_a_query_that_its_prompt_does_not_begin(service: Service) -> None:
    pytest.importorskip("requests")
    with pytest.raises(ValueError, match="does not start"):
        load("openrlhf_reward").item("p good", "<u>p", [USER])
