"""Asking an OpenAI-compatible server: one completion for each request, or an error that says what to change.

The `openai` package sends the requests; trying again is done here. Its own backoff ends at 8 s, gives up at once on a
Retry-After above two minutes, and doesn't tell how often it tried, while a server that loads a large model is away for minutes.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from wildreward_ray.cluster.judge_backends import Answer, Usage
from wildreward_ray.core.config.judge import EndpointSection
from wildreward_ray.core.errors import JudgeUnavailableError, UserError

if TYPE_CHECKING:
    from openai import APIStatusError

# As many as OpenAI's API allows; enough for five verdict words and their spellings.
TOP_LOGPROBS = 20
_FIRST_PAUSE_S = 0.5
_WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})
# A piece of a server's message as long as this that also stands in the prompt is an echo of it.
_ECHO = 24


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer: its text, and the likely first tokens with their log-probabilities where they were asked for."""

    answer: Answer
    tokens: list[tuple[str, float]]


class EndpointClient:
    """An open connection to the server, for use in one event loop as an async context manager.

    Args:
        model: the name the server knows the model by.
        usage: counts tokens, requests and retries.
        flag: beginning of the command-line flags that errors name.
    """

    def __init__(self, section: EndpointSection, model: str, usage: Usage, *, flag: str) -> None:
        from openai import AsyncOpenAI

        if section.base_url is None:
            raise UserError("no judge endpoint is named", flag=f"{flag}.endpoint.base-url")
        self._section, self._model, self._usage, self._flag = section, model, usage, flag
        self._key = os.environ.get(section.api_key_env, "").strip() or "none"
        self._client = AsyncOpenAI(
            base_url=section.base_url, api_key=self._key, timeout=section.timeout_s, max_retries=0
        )
        self._slots = asyncio.Semaphore(section.concurrency)
        self._random = random.Random()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> Completion:
        """The answer to a chat. `options` are those of /chat/completions."""
        create: Any = self._client.chat.completions.create
        choice = await self._choice(
            lambda: create(model=self._model, messages=messages, **options), [m["content"] for m in messages]
        )
        text = getattr(choice.message, "content", None) or ""
        return self._completion(choice, text, wants_tokens="top_logprobs" in options)

    async def complete(self, prompt: str, **options: Any) -> Completion:
        """What follows a text. `options` are those of /completions."""
        create: Any = self._client.completions.create
        choice = await self._choice(lambda: create(model=self._model, prompt=prompt, **options), [prompt])
        return self._completion(choice, choice.text or "", wants_tokens="logprobs" in options)

    async def _choice(self, call: Callable[[], Awaitable[Any]], texts: Sequence[str]) -> Any:
        """The only choice of the reply; waits for a free slot, and for as many tries as are allowed."""
        async with self._slots:
            reply = await self._reply(call, texts)
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise UserError(
                f"{self._section.base_url} sent a reply that is no completion: is this the address of an OpenAI-compatible API?",
                flag=f"{self._flag}.endpoint.base-url",
            )
        self._count(reply.usage)
        return choices[0]

    async def _reply(self, call: Callable[[], Awaitable[Any]], texts: Sequence[str]) -> Any:
        from openai import APIConnectionError, APIStatusError

        failure, tries = "", self._section.retries + 1
        for attempt in range(tries):
            asked_to_wait = None
            try:
                # The package's own timeout is for each read; a reply that trickles in would never end.
                async with asyncio.timeout(self._section.timeout_s):
                    return await call()
            except APIStatusError as e:
                if e.status_code < 500 and e.status_code not in _WORTH_ANOTHER_TRY:
                    raise self._refusal(e, texts) from None
                failure = f"HTTP {e.status_code}: {self._said(e, texts)}"
                asked_to_wait = retry_after(e.response.headers)
            except (TimeoutError, APIConnectionError) as e:
                failure = _connection_failure(e, self._section.timeout_s)
            except json.JSONDecodeError:
                failure = "a reply that is not JSON"
            if attempt + 1 < tries:
                self._usage.retried += 1
                await asyncio.sleep(self._pause(attempt, asked_to_wait))
        raise JudgeUnavailableError(
            f"the judge at {self._section.base_url} failed {tries} times, at last with {failure}"
            f" ({self._flag}.endpoint.base-url, {self._flag}.endpoint.retries)"
        )

    def _pause(self, attempt: int, asked_to_wait: float | None) -> float:
        """Seconds until the next try, never above the longest pause. Jitter keeps those that failed together apart."""
        longest = self._section.max_backoff_s
        if asked_to_wait is not None:
            return min(longest, asked_to_wait * self._random.uniform(1, 1.25))
        return min(longest, _FIRST_PAUSE_S * 2.0**attempt) * self._random.uniform(0.5, 1)

    def _completion(self, choice: Any, text: str, *, wants_tokens: bool) -> Completion:
        tokens = _first_tokens(choice) if wants_tokens else []
        if wants_tokens and choice.logprobs is None and text:
            raise UserError(
                f"{self._section.base_url} gives no log-probabilities for {self._model!r}",
                flag=f"{self._flag}.mode",
                hint="likelihood mode needs them; `reasoning` does without",
            )
        return Completion(
            Answer(text, whole=getattr(choice, "finish_reason", None) not in ("length", "content_filter")), tokens
        )

    def _count(self, used: Any) -> None:
        self._usage.requests += 1
        if used is not None:
            self._usage.prompt_tokens += used.prompt_tokens or 0
            self._usage.output_tokens += used.completion_tokens or 0
            details = getattr(used, "prompt_tokens_details", None)
            self._usage.cached_tokens += getattr(details, "cached_tokens", None) or 0

    def _refusal(self, error: APIStatusError, texts: Sequence[str]) -> UserError:
        """The error of a request that would fail however often it is sent."""
        said, hint = self._said(error, texts), None
        setting = "model"
        if error.status_code in (401, 403):
            setting = "endpoint.api-key-env"
            hint = f"the key is read from the environment variable {self._section.api_key_env!r}"
        elif error.status_code in (404, 405) and "model" not in said.lower():
            setting = "endpoint.base-url"
        elif "logprob" in said.lower():
            setting = "mode"
            hint = f"likelihood mode asks for {TOP_LOGPROBS} log-probabilities (vLLM: --max-logprobs); `reasoning` asks for none"
        url = self._section.base_url
        return UserError(
            f"the judge at {url} refused {self._model!r} with HTTP {error.status_code}: {said}",
            flag=f"{self._flag}.{setting}",
            hint=hint,
        )

    def _said(self, error: APIStatusError, texts: Sequence[str]) -> str:
        """The server's message without the key and without what it echoes of the prompt."""
        said = " ".join(_message(error.body).split())
        if self._key != "none":
            said = said.replace(self._key, "…")
        return _without_echo(said, texts)[:300]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from `retry-after-ms` or `retry-after` (seconds or a date); None without a usable one.

    Source: RFC 9110, section 10.2.3.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            date = email.utils.parsedate_tz(value)
            if date is None:
                continue
            seconds = email.utils.mktime_tz(date) - time.time()
        if seconds >= 0:
            return seconds
    return None


def _first_tokens(choice: Any) -> list[tuple[str, float]]:
    """The likely first tokens, from the shape of /chat/completions or that of /completions."""
    content = getattr(choice.logprobs, "content", None)
    if content:
        return [(t.token, float(t.logprob)) for t in content[0].top_logprobs]
    listed = getattr(choice.logprobs, "top_logprobs", None)
    if listed and listed[0]:
        return [(token, float(value)) for token, value in listed[0].items()]
    return []


def _connection_failure(error: Exception, timeout_s: float) -> str:
    from openai import APITimeoutError

    if isinstance(error, TimeoutError | APITimeoutError):
        return f"no answer within {timeout_s:g} s"
    # The package says "Connection error."; why is in the cause.
    cause = error.__cause__
    return f"{type(cause or error).__name__}: {' '.join(str(cause or error).split())[:200]}"


def _message(body: object) -> str:
    """What a server says in the body of an error; of a list of broken rules, the rules without the values."""
    if isinstance(body, Mapping):
        found = next((body[name] for name in ("message", "detail", "error") if body.get(name)), "")
        return _message(found)
    if isinstance(body, list):
        return "; ".join(str(e.get("msg", "")) for e in body if isinstance(e, Mapping))
    return body if isinstance(body, str) else ""


def _without_echo(message: str, texts: Sequence[str]) -> str:
    shown = [" ".join(text.split()) for text in texts]
    kept, i = [], 0
    while i < len(message):
        end = i + _ECHO
        if end <= len(message) and any(message[i:end] in text for text in shown):
            while end < len(message) and any(message[i : end + 1] in text for text in shown):
                end += 1
            kept.append("…")
            i = end
        else:
            kept.append(message[i])
            i += 1
    return "".join(kept)
