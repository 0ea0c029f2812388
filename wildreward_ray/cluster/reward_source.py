"""Where a trainer's rewards come from: any service, in any of the protocols, with every reply checked.

Importing this needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from wildreward_ray.cluster.reward_client import AsyncRequests
from wildreward_ray.cluster.reward_dialects import SPEECHES, ServiceReward, Speech
from wildreward_ray.cluster.reward_http import Part
from wildreward_ray.cluster.reward_retry import Backoff
from wildreward_ray.core.config.online_dpo import RewardClientSection
from wildreward_ray.core.errors import UserError
from wildreward_ray.core.wire import Health

Render = Callable[[Sequence[Mapping[str, str]], str, str], str]
"""(history, prompt, response) as the one text that some protocols take."""


class RewardSource:
    """A reward service, for any number of tasks of one event loop. Close it in that loop.

    Args:
        url: base URL of the service.
        section: the protocol, and how patiently it is asked. A reply may take `timeout_s`, a request is sent again as
            `RewardClient` says, and `concurrency` requests are in flight at most.
        render: makes the one text of the protocols that take no conversation; the others don't use it.
        flag: the command-line flag that the URL came by.
        backoff: how long to wait before a request is sent again.

    Raises:
        UserError: the URL is not one of a service, or the token is missing or can't be sent.
    """

    def __init__(
        self,
        url: str,
        section: RewardClientSection,
        render: Render,
        *,
        flag: str = "--reward-url",
        backoff: Backoff | None = None,
    ) -> None:
        self._section, self._speech = section, SPEECHES[section.protocol]
        self._path = section.path or self._speech.path
        self._render, self._flag, self._backoff = render, flag, backoff
        with self._named_by_its_flag():
            self._client = self._new_client(url)
        self.url = self._client.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def check(self) -> Health | None:
        """Whether the service gives scores now, asked once; what it says of itself, where its protocol has words for that.

        The native service is asked for its health. No other protocol has a path for it that all servers know, so the others
        are sent one short sample to score. May be awaited in an event loop of its own, before that of the run.

        Raises:
            UserError: there is no such service at the URL, it can't give scores now, or it refuses this client.
        """
        # A connection of its own: one of the pool could not be used in another event loop later, or be dead already.
        with self._named_by_its_flag():
            async with self._new_client(self.url) as client:
                if self._section.protocol == "native":
                    return await client.health()
                try:
                    await client.first_scores(Part([self._item([], "Say hello.", "Hello.")], "samples"))
                except UserError as e:
                    asked = f"asked for {self._section.protocol} (--reward.protocol) at {self._path} (--reward.path)"
                    raise UserError(e.problem, flag=e.flag, hint=f"{e.hint}; {asked}" if e.hint else asked) from e
                return None

    async def score(
        self, history: Sequence[Mapping[str, str]], prompt: str, responses: Sequence[str]
    ) -> list[ServiceReward]:
        """One reward a response to one prompt, in order; all in one request where the protocol allows it.

        Args:
            history: messages before the prompt, a system message included.
            prompt: the user message that is answered.
            responses: the replies to score.

        Raises:
            RewardRefusedError: the service refused a request for good.
            RewardBrokenError: the service gave a reply with status 200 that lacks a usable score.
            RewardUnavailableError: a request failed too often.
            UserError: a text can't be sent as JSON.
        """
        items = [self._item(history, prompt, response) for response in responses]
        size = self._speech.most or max(1, len(items))
        parts = [Part(items[start : start + size], "samples", start) for start in range(0, len(items), size)]
        return [reward for rewards in await self._client.ask(parts) for reward in rewards]

    def _new_client(self, url: str) -> _Client:
        section = self._section
        return _Client(
            url,
            self._speech,
            path=self._path,
            timeout_s=section.timeout_s,
            retries=section.retries,
            concurrency=section.concurrency,
            token_env=section.token_env,
            backoff=self._backoff,
        )

    def _item(self, history: Sequence[Mapping[str, str]], prompt: str, response: str) -> dict[str, Any]:
        if self._speech.rendered:
            return {"text": self._render(history, prompt, response)}
        return {"history": [dict(message) for message in history], "prompt": prompt, "response": response}

    @contextmanager
    def _named_by_its_flag(self) -> Iterator[None]:
        try:
            yield
        except UserError as e:
            if e.flag != "--reward-url" or self._flag == e.flag:
                raise
            raise UserError(e.problem, flag=self._flag, hint=e.hint) from e


class _Client(AsyncRequests[ServiceReward]):
    def __init__(self, url: str, speech: Speech, **settings: Any) -> None:
        self._form = speech
        super().__init__(url, **settings)
