"""What becomes of a prompt, and of a run, whose rewards don't come; against a real local server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.test_reward_source import POSTED, Answer, Request, Server, always, serving, source
from wildreward_ray.cluster.reward_dialects import SPEECHES
from wildreward_ray.core.config.online_dpo import RewardClientSection
from wildreward_ray.core.errors import RewardBrokenError, RewardRefusedError, RewardUnavailableError
from wildreward_ray.policy.pairs import Sample, SampleReward
from wildreward_ray.stages.dpo_scoring import Scorer, Unscored, check_unscored, unscored_share
from wildreward_ray.stages.prompts import Prompt

Result = list[SampleReward | None] | Unscored
SYSTEM = ({"role": "system", "content": "Be brief."},)


def prompt(text: str = "How?") -> Prompt:
    return Prompt(SYSTEM, text, (1, 2))


def sample(text: str) -> Sample:
    return Sample(text, (3,), finished=True)


PAIR = [sample("reply 0"), sample("reply 1")]


def score(
    server: Server, *asked: tuple[Prompt, list[Sample]], protocol: str = "native", **settings: Any
) -> list[Result]:
    """The results of prompts that are scored at the same time."""

    async def main() -> list[Result]:
        async with source(server.url, protocol, **settings) as made:
            scorer = Scorer(made)
            return list(await asyncio.gather(*(scorer.score(*one) for one in asked)))

    return asyncio.run(main())


def score_one(server: Server, protocol: str = "native", **settings: Any) -> Result:
    (result,) = score(server, (prompt(), PAIR), protocol=protocol, **settings)
    return result


def values(result: Result) -> list[float | None]:
    assert isinstance(result, list)
    return [None if reward is None else round(reward.score, 6) for reward in result]


def unscored(result: Result) -> Unscored:
    assert isinstance(result, Unscored)
    return result


def but_well(answer: Callable[[Request, int], Answer]) -> Callable[[Request, int], Answer]:
    """The answers of a service that says it is well."""
    return lambda request, number: Answer() if request.path == "/healthz" else answer(request, number)


def scored_requests(server: Server) -> int:
    return sum(request.path != "/healthz" for request in server.asked)


@pytest.mark.parametrize("protocol", SPEECHES)
def test_samples_get_their_rewards_in_order(protocol: str) -> None:
    with serving() as server:
        assert values(score_one(server, protocol)) == [1.0, 1.003]
    if protocol in POSTED:
        assert [(request.path, request.body) for request in server.asked] == [POSTED[protocol]]


def test_level_probabilities_reach_the_pairs() -> None:
    with serving() as server:
        result = score_one(server)
    assert isinstance(result, list)
    assert result == [SampleReward(1.0, (1.0, 0.0, 0.0, 0.0)), SampleReward(1.003, (0.999, 0.0, 0.0, 0.001))]


def test_blank_samples_are_not_sent_and_get_no_reward() -> None:
    samples = [sample(" \n"), sample("reply 2"), sample(""), sample("reply 1")]
    with serving() as server:
        (result,) = score(server, (prompt(), samples))
    assert values(result) == [None, 1.006, None, 1.003]
    assert [item["response"] for item in server.bodies()[0]["items"]] == ["reply 2", "reply 1"]


def test_a_prompt_with_blank_samples_only_is_not_asked_for() -> None:
    with serving() as server:
        assert score(server, (prompt(), [sample(""), sample("\t")]), (prompt(), [])) == [[None, None], []]
    assert server.asked == []


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_refused_prompt_stays_unscored_and_the_others_get_their_rewards(protocol: str, status: int) -> None:
    def refuse_long(request: Request, number: int) -> Answer:
        return Answer(status if b"a long story" in request.body else 200)

    with serving(refuse_long) as server:
        first, second, third = score(
            server, (prompt(), PAIR), (prompt("a long story"), PAIR), (prompt("Why?"), PAIR), protocol=protocol
        )
    assert values(first) == values(third) == [1.0, 1.003]
    assert unscored(second).reason == "refused"
    assert re.search(rf"HTTP {status} test: told to fail", unscored(second).problem)


def test_a_prompt_that_json_can_not_hold_stays_unscored_and_the_others_get_their_rewards() -> None:
    with serving() as server:
        first, second = score(server, (prompt("\udc00"), PAIR), (prompt(), PAIR))
    assert unscored(first).reason == "refused"
    assert "can't be sent as JSON" in unscored(first).problem
    assert values(second) == [1.0, 1.003]


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_service_that_flickers_gives_scores_in_the_end(protocol: str) -> None:
    with serving(lambda request, number: Answer(503 if number < 2 else 200)) as server:
        assert values(score_one(server, protocol, concurrency=1)) == [1.0, 1.003]


@pytest.mark.parametrize("body", [{"error": "out of memory"}, {"scores": [float("nan")] * 2}, b"<html></html>", []])
def test_a_broken_reply_is_asked_for_once_more_and_then_ends_the_run(body: Any) -> None:
    with serving(but_well(always(200, body))) as server:
        with pytest.raises(RewardBrokenError, match="can be resumed") as e:
            score_one(server)
        assert "without usable scores" in str(e.value)
        assert e.value.last_status == 200
    assert scored_requests(server) == 2


@pytest.mark.parametrize("protocol", SPEECHES)
def test_one_broken_reply_alone_is_no_harm(protocol: str) -> None:
    with serving(lambda request, number: Answer(200, {"error": "busy"} if number == 0 else None)) as server:
        assert values(score_one(server, protocol, concurrency=1)) == [1.0, 1.003]


def test_too_few_rewards_are_never_matched_with_samples() -> None:
    with serving(always(200, {"rewards": [1.0]})) as server, pytest.raises(RewardBrokenError, match="1 entries for 2"):
        score_one(server, "get_reward")


@pytest.mark.parametrize(("status", "requests"), [(503, 6), (500, 2), (424, 2)])
def test_a_prompt_that_a_well_service_fails_at_is_asked_for_once_more_and_stays_unscored(
    status: int, requests: int
) -> None:
    with serving(but_well(always(status))) as server:
        result = unscored(score_one(server, retries=2))
    assert result.reason == "unavailable"
    assert f"HTTP {status}" in result.problem
    assert scored_requests(server) == requests


def test_a_prompt_that_a_well_service_failed_at_may_be_scored_the_second_time() -> None:
    with serving(but_well(lambda request, number: Answer(500 if number == 0 else 200))) as server:
        assert values(score_one(server)) == [1.0, 1.003]


def test_a_foreign_service_that_scores_another_sample_is_well() -> None:
    def fail_here(request: Request, number: int) -> Answer:
        return Answer(500 if b"How?" in request.body else 200)

    with serving(fail_here) as server:
        assert unscored(score_one(server, "classify")).reason == "unavailable"


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_service_that_is_not_well_ends_the_run(protocol: str) -> None:
    with serving(always(503)) as server:
        with pytest.raises(RewardUnavailableError, match=r"asked how it is: .* can be resumed") as e:
            score_one(server, protocol, retries=1, concurrency=1)
        assert (type(e.value), e.value.last_status, e.value.attempts) == (RewardUnavailableError, 503, 2)


@pytest.mark.parametrize("protocol", SPEECHES)
def test_a_dead_service_ends_the_run(protocol: str) -> None:
    with serving() as server:
        pass
    with pytest.raises(RewardUnavailableError, match=r"ConnectError.*can be resumed"):
        score_one(server, protocol, retries=1)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405])
def test_an_answer_about_the_whole_service_ends_the_run_as_it_is(status: int) -> None:
    with serving(but_well(always(status))) as server, pytest.raises(RewardRefusedError) as e:
        score_one(server)
    assert e.value.status == status
    assert scored_requests(server) == 1


def section(max_unscored: float) -> RewardClientSection:
    return RewardClientSection(max_unscored=max_unscored)


def test_a_step_may_leave_as_many_prompts_unscored_as_the_settings_say_and_not_one_more() -> None:
    failed = [Unscored("refused", "HTTP 422: too long"), Unscored("unavailable", "HTTP 500")]
    check_unscored(failed, 8, section(0.25))
    with pytest.raises(RewardUnavailableError) as e:
        check_unscored(failed, 7, section(0.25))
    for told in ("2 of 7 prompts", "28.6%", "25.0%", "--reward.max-unscored", "refused: HTTP 422: too long"):
        assert told in str(e.value)


def test_the_limits_of_unscored_prompts_hold() -> None:
    one = [Unscored("refused", "no")]
    check_unscored([], 8, section(0.0))
    check_unscored([], 0, section(0.0))
    check_unscored(one, 1, section(1.0))
    with pytest.raises(RewardUnavailableError):
        check_unscored(one, 1000, section(0.0))
    assert (unscored_share(one, 4), unscored_share([], 0)) == (0.25, 0.0)


def test_no_request_names_another_prompt_s_samples() -> None:
    asked = [(prompt(f"prompt {n}"), [sample(f"reply {n}"), sample(f"reply {n + 500}")]) for n in range(40)]
    with serving() as server:
        results = score(server, *asked, concurrency=4)
    assert [values(result) for result in results] == [
        [round(1 + 0.003 * n, 6), round(2.5 + 0.003 * n, 6)] for n in range(40)
    ]
    sent = {item["prompt"]: body for body in server.bodies() for item in body["items"]}
    assert json.dumps(sent["prompt 7"]["items"][1]["response"]) == '"reply 507"'
    assert len(server.asked) == len(sent) == 40
