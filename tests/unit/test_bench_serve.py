"""The measuring of the reward service: what the load generator counts, which texts are asked for, what the figures say."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from scripts.soak_record import Record
from scripts.soak_service import new_version
from wildreward_ray.core.config.bench import BenchConfig, ServeBench
from wildreward_ray.core.config.serve import ScorerSection, ServeConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.core.template import RewardTemplate
from wildreward_ray.reward import ordinal
from wildreward_ray.reward.config import RewardConfig
from wildreward_ray.reward.inputs import InputEncoder
from wildreward_ray.reward.model import save_checkpoint
from wildreward_ray.stages import bench, bench_serve, ingest
from wildreward_ray.stages.bench_serve_load import NO_REPLY, Generator, Load, Order, drive
from wildreward_ray.stages.bench_serve_memory import growth, role_of, service_processes
from wildreward_ray.stages.bench_serve_plain import (
    NullEngine,
    constant_reward,
    plain_app,
    requests_of,
    scores_of,
    serve_constant,
    server,
)
from wildreward_ray.stages.bench_serve_texts import Context, count_tokens, grouped, newest_history, read_texts
from wildreward_ray.stages.scoring import checkpoint_version, load_scorer

Answer = Callable[[int, bytes], bytes]
WORDS = "user: {{ prompt }} assistant: {{ response }}"
HISTORY = "{% for m in history %}{{ m.role }}: {{ m.content }} {% endfor %}" + WORDS


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Listener:
    """A server that answers the n-th request with the bytes that it is told to, and sees what comes."""

    def __init__(self, answer: Answer, delay_s: float) -> None:
        self._answer, self._delay_s = answer, delay_s
        self.bodies: list[bytes] = []
        self.connections = self.in_flight = self.most_in_flight = 0
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
                self.bodies.append(await reader.readexactly(length))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                answer = self._answer(len(self.bodies) - 1, self.bodies[-1])
                await asyncio.sleep(self._delay_s)
                self.in_flight -= 1
                writer.write(answer)
                if not answer or b"connection: close" in answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@contextmanager
def listening(answer: Answer, *, delay_s: float = 0.0) -> Iterator[Listener]:
    listener = Listener(answer, delay_s)
    loop, up = asyncio.new_event_loop(), threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        served = loop.run_until_complete(asyncio.start_server(listener.talk, "127.0.0.1", 0))
        listener.url = f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v1/score"
        up.set()
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield listener
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def bodies_of(count: int) -> list[bytes]:
    return [json.dumps({"number": i}).encode() for i in range(count)]


def echo(_: int, body: bytes) -> bytes:
    return whole(body)


def test_every_reply_belongs_to_its_request_though_many_are_in_flight() -> None:
    bodies = bodies_of(50)
    with listening(echo, delay_s=0.01) as there:
        load = drive(Order(there.url, bodies, in_flight=7, requests=50, keep=True))
    assert load.bodies == dict(enumerate(bodies))
    assert there.bodies == bodies
    assert (there.most_in_flight, there.connections) == (7, 7)
    assert load.statuses == {200: 50}
    assert all(s >= 0.01 for s in load.latencies)
    assert load.per_s == pytest.approx(50 / load.seconds)
    assert load.check("server") is load


def test_chunked_and_closing_replies_are_read_whole() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    answers = [chunked, whole(b"closing", "200 OK", "connection: close"), early + whole(b"after a hint"), whole(b"")]
    with listening(lambda n, _: answers[n]) as there:
        load = drive(Order(there.url, bodies_of(4), in_flight=1, requests=4, keep=True))
    assert load.bodies == {0: b"abcde", 1: b"closing", 2: b"after a hint", 3: b""}
    assert there.connections == 2


def test_failures_are_counted_and_never_sent_again() -> None:
    answers = [
        whole(b"busy", "503 Service Unavailable"),
        whole(b"good"),
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
    ]
    answers += [b"no HTTP at all\r\n\r\n", whole(b"good")]
    close = b"connection: close"
    answers[3] = answers[3].replace(b"content-length", close + b"\r\ncontent-length")
    with listening(lambda n, _: answers[n]) as there:
        load = drive(Order(there.url, bodies_of(6), in_flight=1, requests=6, keep=True))
        assert len(there.bodies) == 6
    assert load.statuses == {200: 2, 503: 1, NO_REPLY: 3}
    assert set(load.bodies) == {1, 5}
    assert len(load.latencies) == 2
    with pytest.raises(WildRewardError, match=r"4 of 6 requests to the service failed.*request 0 got 503: busy"):
        load.check("service")


def test_a_server_that_is_not_there_is_a_failure_of_every_request() -> None:
    with listening(echo) as there:
        url = there.url
    load = drive(Order(url.replace("127.0.0.1", "127.0.0.2"), bodies_of(1), in_flight=2, requests=5))
    assert load.statuses == {NO_REPLY: 5}


def test_a_load_ends_with_its_time_and_waits_for_what_is_in_flight() -> None:
    with listening(echo, delay_s=0.05) as there:
        load = drive(Order(there.url, bodies_of(3), in_flight=2, seconds=0.3))
    assert load.statuses[200] == len(there.bodies) >= 6
    assert 0.3 <= load.seconds < 2
    with pytest.raises(ValueError, match="without an end"):
        Order("http://x", [b""], 1)


def test_no_requests_at_all_are_no_success() -> None:
    with pytest.raises(WildRewardError, match="0 of 0"):
        Load().check("service")


def test_percentiles_are_in_milliseconds() -> None:
    load = Load(seconds=2.0)
    for number in range(1, 101):
        load.note(number, 200, number / 1000, b"", keep=False)
    assert load.percentile_ms(50) == pytest.approx(50.5)
    assert load.percentile_ms(99) == pytest.approx(99.01)
    assert load.per_s == 50


def test_the_constant_server_in_its_own_process_answers_a_generator_in_another() -> None:
    with server(serve_constant, 4) as url, Generator() as generator:
        load = generator.send(Order(f"{url}/v1/score", requests_of([{}, {}]), in_flight=3, requests=20, keep=True))
    assert scores_of(load.check("server").bodies) == [2.5] * 20


def test_a_server_that_ends_before_it_listens_is_an_error() -> None:
    # Without its second argument it can't run.
    with pytest.raises(WildRewardError, match="serve_constant ended with code 1"), server(serve_constant):
        pytest.fail("it is not up")


@pytest.mark.parametrize("levels", [2, 4, 5])
def test_the_constant_reward_is_that_of_logits_of_zero(levels: int) -> None:
    p_gt = ordinal.p_gt(np.zeros((1, levels - 1), np.float32))
    reward = constant_reward(levels)
    assert reward.score == ordinal.score(p_gt)[0]
    assert reward.p_gt == p_gt[0].tolist()
    assert reward.level_probs == pytest.approx(ordinal.level_probs(p_gt)[0].tolist())


def contexts(count: int) -> list[Context]:
    return [Context((), f"prompt {i}", f"reply {i}") for i in range(count)]


def test_groups_hold_the_own_reply_first_and_other_conversations_replies_after() -> None:
    items = grouped(contexts(9), 8)
    assert items == grouped(contexts(9), 8)
    assert len(items) == 72
    for number in range(9):
        group = items[8 * number : 8 * number + 8]
        assert {item["prompt"] for item in group} == {f"prompt {number}"}
        replies = [item["response"] for item in group]
        assert replies[0] == f"reply {number}"
        assert len(set(replies)) == 8
        assert set(replies) <= {f"reply {i}" for i in range(9)}


@pytest.fixture
def encoder(llama_tokenizer: PreTrainedTokenizerFast) -> InputEncoder:
    return InputEncoder(llama_tokenizer, RewardTemplate(HISTORY), 128)


def test_the_newest_history_that_fits_is_kept(encoder: InputEncoder) -> None:
    history = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4 w5"}]
    length = count_tokens(encoder, encoder.template.render(history, "w6", ""))
    assert newest_history(encoder, history, "w6", length) == history
    assert newest_history(encoder, history, "w6", length - 1) == history[1:]
    assert newest_history(encoder, history, "w6", 4) == []
    assert newest_history(encoder, history, "w6 w7 w8", 4) is None


def write_logs(file: Path, conversations: int, *, reply: str = "w{i} w2 w3") -> str:
    rows = [
        {
            "id": str(i),
            "conversations": [
                {"from": "human", "value": f"w{i} w9"},
                {"from": "gpt", "value": reply.format(i=i)},
                {"from": "human", "value": "w5"},
            ],
        }
        for i in range(conversations)
    ]
    file.write_text(json.dumps(rows), encoding="utf-8")
    return str(file)


def test_measured_texts_fit_the_model_and_share_no_prompt_with_the_warm_up(
    encoder: InputEncoder, tmp_path: Path
) -> None:
    plan = ingest.plan((write_logs(tmp_path / "logs.json", 20),), "sharegpt", strict=True)
    section = ServeBench(group_size=4, context_tokens=16, reply_tokens=4)
    texts = read_texts(plan, encoder, section, 20)
    assert (len(texts.items), len(texts.inputs)) == (20, 20)
    assert [item["prompt"] for item in texts.items[::4]] == [f"w{i} w9" for i in range(8, 13)]
    assert not {i["prompt"] for i in texts.items} & {i["prompt"] for i in texts.warm_up}
    assert all(len(ids) <= 16 + 4 + 2 for ids in texts.inputs)
    assert texts.inputs[5] == encoder.encode([], texts.items[5]["prompt"], texts.items[5]["response"])
    assert texts.context_tokens + texts.reply_tokens == np.mean([len(ids) for ids in texts.inputs])
    assert texts.reply_tokens == 3
    assert len(read_texts(plan, encoder, section, None).items) == 4 * (20 - 8)


def test_too_few_texts_and_too_long_ones_are_user_errors(encoder: InputEncoder, tmp_path: Path) -> None:
    plan = ingest.plan((write_logs(tmp_path / "logs.json", 10),), "sharegpt", strict=True)
    section = ServeBench(group_size=4, context_tokens=16, reply_tokens=4)
    with pytest.raises(UserError, match=r"10 conversations have .* 13 are needed"):
        read_texts(plan, encoder, section, 20)
    long = ingest.plan((write_logs(tmp_path / "long.json", 20, reply="w1 w2 w3 w4 w{i}"),), "sharegpt", strict=True)
    with pytest.raises(UserError, match="0 conversations"):
        read_texts(long, encoder, section, 20)
    with pytest.raises(UserError, match="more than the model's 128"):
        read_texts(plan, encoder, section.model_copy(update={"context_tokens": 120}), 20)


def test_growth_is_that_after_the_first_tenth() -> None:
    samples = [
        (n, {"api": 100 + (50 if n > 1000 else 0) + n * 0.002, "engine": 300.0}) for n in range(1000, 20_001, 1000)
    ]
    samples[0][1]["api"] = 20.0
    found = growth(samples)
    assert found["api"] == {
        "at_10_percent": pytest.approx(154),
        "at_end": pytest.approx(190),
        "per_10k": pytest.approx(20),
    }
    assert found["engine"]["per_10k"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:wildreward:RewardApi.handle_request", "api"),
        ("ray::ServeReplica:wildreward-engine-0f3:RewardEngine", "engine"),
        ("VLLM::EngineCore", "engine_core"),
        ("ray::ProxyActor", "proxy"),
        ("haproxy -f /tmp/haproxy.cfg", "proxy"),
        ("ray::ServeController.listen_for_change", "controller"),
        ("ray::IDLE", None),
    ],
)
def test_processes_are_known_by_what_they_call_themselves(command: str, role: str | None) -> None:
    assert role_of(command) == role


def test_only_descendants_are_processes_of_the_service() -> None:
    # The shell in between keeps running, so the replica is a grandchild; its own command line must not hold the name.
    name = {"NAME": "ray::ServeReplica:wildreward:RewardApi"}
    command = ["bash", "-c", '(exec -a "$NAME" sleep 30); true']
    with subprocess.Popen(command, env={**os.environ, **name}, stderr=subprocess.DEVNULL) as shell:
        try:
            deadline = time.monotonic() + 10
            while not (found := service_processes(os.getpid())) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert [process.role for process in found] == ["api"]
            assert found[0].mib > 0
            assert found[0].pid != shell.pid
            assert service_processes(found[0].pid) == []
        finally:
            for process in service_processes(shell.pid):
                os.kill(process.pid, 15)


def test_ratios_are_given_only_between_parts_that_were_measured() -> None:
    assert bench_serve.ratios({"service_per_s": 9.0}, {"service": [1.0]}) == {}
    found = bench_serve.ratios(
        {"service_per_s": 9.0, "offline_per_s": 10.0, "plain_per_s": 1.5},
        {"service": [1.5, 2.002], "offline": [1.5, 2.0]},
    )
    assert found["service_over_offline"] == 0.9
    assert found["service_over_plain"] == 6.0
    assert found["service_score_difference_max"] == pytest.approx(0.002)
    assert found["score_spread"] == 0.25


def test_parts_are_given_as_words_or_with_commas() -> None:
    for given in (["http,memory"], ["http", "memory"], "http,memory"):
        assert BenchConfig.load(None, {"serve.parts": given}).serve.parts == ("http", "memory")
    with pytest.raises(UserError, match="htpt"):
        BenchConfig.load(None, {"serve.parts": ["htpt"]})


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(llama_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
        num_labels=3,
        problem_type="multi_label_classification",
        pad_token_id=llama_tokenizer.eos_token_id,
    )
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    reward = RewardConfig(levels=4, template=HISTORY, max_length=64)
    save_checkpoint(LlamaForSequenceClassification(config), tokenizer, reward, folder)
    return str(folder)


def asked(model: str, items: list[dict[str, Any]], *, null: bool) -> list[dict[str, Any]]:
    """What the plain server answers to one request."""
    app = plain_app(ScorerSection(model=model, engine="transformers"), null=null)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plain") as http:
            return await http.post("/v1/score", json={"items": items})

    reply = asyncio.run(ask())
    assert reply.status_code == 200, reply.text
    scores: list[dict[str, Any]] = reply.json()["scores"]
    return scores


def test_the_plain_server_gives_the_scores_of_the_engine(reward_model: str) -> None:
    items = [{"history": [{"role": "user", "content": "w7"}], "prompt": f"w{i}", "response": "w1 w2"} for i in range(5)]
    scorer = load_scorer(ScorerSection(model=reward_model, engine="transformers"))
    expected = scorer.score(scorer.encoder.encode_batch([(i["history"], i["prompt"], i["response"]) for i in items]))  # type: ignore[misc]
    found = asked(reward_model, items, null=False)
    assert [entry["score"] for entry in found] == pytest.approx(expected.score.tolist(), abs=1e-4)
    assert expected.score.std() > 0.01
    assert asked(reward_model, items, null=True) == [constant_reward(4)._asdict()] * 5


def test_the_null_engine_answers_every_input_with_a_valid_reward(reward_model: str) -> None:
    engine = NullEngine(ServeConfig(model=reward_model))
    card = asyncio.run(engine.card())
    assert (card.engine, card.levels, card.max_length) == ("null", 4, 64)
    assert asyncio.run(engine.score([[1], [2, 3]])) == [constant_reward(4)] * 2


def test_a_bench_of_real_processes_finds_the_same_scores_and_writes_its_figures(
    reward_model: str, tmp_path: Path
) -> None:
    logs, output = write_logs(tmp_path / "logs.json", 40), tmp_path / "figures.json"
    settings = {
        "stage": "serve",
        "input": [logs],
        "limit": 32,
        "output": str(output),
        "serve.parts": "offline,plain",
        "serve.model": reward_model,
        "serve.engine": "transformers",
        "serve.group_size": 4,
        "serve.context_tokens": 16,
        "serve.reply_tokens": 4,
        "serve.in_flight": 4,
        "serve.plain_seconds": 0.5,
    }
    found = bench.run(BenchConfig.load(None, settings))
    assert json.loads(output.read_text()) == found
    assert (found["stage"], found["items"], found["reply_tokens_mean"]) == ("serve", 32, 3)
    assert found["offline_per_s"] > 0
    assert found["plain_items"] > 0
    assert found["plain_p99_ms"] >= found["plain_p50_ms"] > 0
    assert found["score_spread"] > 0
    assert not {"service_per_s", "http_per_s", "service_over_plain"} & found.keys()


def test_another_version_of_a_model_is_the_same_model_and_leaves_the_first_alone(
    reward_model: str, tmp_path: Path
) -> None:
    before = checkpoint_version(reward_model)
    other = new_version(reward_model, tmp_path)
    assert checkpoint_version(reward_model) == before != checkpoint_version(str(other))
    inputs = [[10, 11], [12]]
    scores = [
        load_scorer(ScorerSection(model=path, engine="transformers")).score(inputs).score.tolist()
        for path in (reward_model, str(other))
    ]
    assert scores[0] == scores[1]


def test_a_soak_counts_wrong_scores_and_nan_among_them() -> None:
    record = Record()
    record.answered(0.1, [1.5, 2.0], [1.5005, 2.0])
    assert record.summary()["clean"]
    record.answered(0.1, [1.5, 2.0], [1.502, 2.0])
    record.answered(0.1, [float("nan")], [2.0])
    found = record.summary()
    assert (found["clean"], found["requests"], found["items"], found["wrong"]) == (False, 3, 5, 2)
    with pytest.raises(ValueError, match="longer"):
        record.answered(0.1, [1.0], [1.0, 2.0])


@pytest.mark.parametrize(("status", "clean"), [(400, True), (422, True), (503, True), (200, False), (500, False)])
def test_a_soak_knows_what_a_bad_request_may_get(status: int, clean: bool) -> None:
    record = Record()
    record.refused(status, "empty")
    assert record.summary()["clean"] is clean
    assert record.summary()["failed"] == (0 if clean else 1)


def test_a_soak_is_told_by_the_minute(tmp_path: Path) -> None:
    now = [100.0]
    record = Record(lambda: now[0])
    record.answered(0.2, [1.0], [1.0])
    record.sample(1, 0, {"engine": 100.0})
    now[0] += 130
    record.incident("killed 1 of 2 replicas")
    record.sample(2, 1, {"engine": 190.0, "api": 50.0})
    record.sample(1, 0, {"engine": 180.0})
    record.failed(503, "gave up")
    record.write(tmp_path)
    minutes = json.loads((tmp_path / "soak.json").read_text())["minutes"]
    assert [m["requests"] for m in minutes] == [1, 0, 0]
    assert minutes[0]["p50_s"] == 0.2
    assert minutes[1]["replicas"] is None
    assert minutes[2]["replicas"] == [1, 2]
    assert minutes[2]["mib"] == {"api": 50, "engine": 190}
    assert (minutes[2]["orphans"], minutes[2]["failed"], minutes[2]["statuses"]) == (1, 1, {"503": 1})
    assert minutes[2]["incidents"] == ["killed 1 of 2 replicas"]
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
