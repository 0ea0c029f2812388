"""The judges: prompts of `feedback` asked of an engine or an endpoint of `cluster`, and their answers read as verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.cluster.judge_backends import Answer, Judge, Task, Usage, Verdict
from wildreward_ray.cluster.judge_endpoint import TOP_LOGPROBS, EndpointClient
from wildreward_ray.cluster.vllm_engine import PrefixCacheCount, sample_answers, start_llm, verdict_logprobs
from wildreward_ray.core.config.judge import JudgeSection
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.feedback.judge import SPECS, JudgePrompt, PromptSpec, TextPrompt, style_of
from wildreward_ray.feedback.verdict import listed_logprobs, parse_verdict, votes_to_logprobs

_TASKS: tuple[Task, ...] = ("feedback", "refusal")
# Tokens, at most about, that asking again adds to a prompt: the end of the answer and the reminder.
_REMINDED = 280


def start_judge(section: JudgeSection, *, flag: str = "--judge", disarm: bool = True) -> Judge:
    """The judge of these settings: an engine started in this process, or a server.

    Args:
        flag: beginning of the command-line flags that errors name.
        disarm: whether spans that imitate the prompt or instruct the judge are taken out of conversation texts.

    Raises:
        UserError: the engine can't be started with these settings.
    """
    if section.backend == "endpoint":
        return EndpointJudge(section, flag=flag, disarm=disarm)
    llm = start_llm(section.model, section.engine, flag=f"{flag}.model")
    return VllmJudge(llm, section, flag=flag, disarm=disarm)


class VllmJudge:
    """A judge on a vLLM engine in this process; see `Judge`.

    Args:
        llm: a `vllm.LLM`.
        flag: beginning of the command-line flags that errors name.
        disarm: whether spans that imitate the prompt or instruct the judge are taken out of conversation texts.

    Raises:
        UserError: the verdict words can't be told apart in this model's vocabulary, or the engine can't hold a long prompt.
    """

    def __init__(self, llm: Any, section: JudgeSection, *, flag: str = "--judge", disarm: bool = True) -> None:
        self.usage = Usage()
        self._llm, self._section = llm, section
        style, tokenizer = style_of(section), llm.get_tokenizer()
        self._prompts = {task: JudgePrompt(SPECS[task, style], style, tokenizer, disarm=disarm) for task in _TASKS}
        written = max(section.reasoning.max_tokens, _REMINDED) if section.mode == "reasoning" else 1
        needed = max(prompt.longest for prompt in self._prompts.values()) + written
        if needed > section.engine.max_model_len:
            raise UserError(
                f"the judge's longest prompt and answer are {needed} tokens, its engine holds {section.engine.max_model_len}",
                flag=f"{flag}.engine.max-model-len",
            )

    def verdicts(self, task: Task, fields: Sequence[Mapping[str, str]]) -> list[Verdict]:
        """One verdict for each mapping of field names to texts, in order."""
        if not fields:
            return []
        prompt, count = self._prompts[task], PrefixCacheCount()
        prompts, masked = [], []
        for one in fields:
            before = prompt.masked
            prompts.append(prompt.token_ids(one))
            masked.append(prompt.masked - before)
        if self._section.mode == "reasoning":
            found = self._reasoned(prompt, prompts, count)
        else:
            self.usage.requests += len(prompts)
            found = [Verdict(row.tolist()) for row in verdict_logprobs(self._llm, prompts, prompt.verdict_ids, count)]
        self.usage += Usage(
            prompt_tokens=count.prompt_tokens,
            cached_tokens=count.cached_tokens,
            output_tokens=count.output_tokens,
            masked=sum(masked),
        )
        for verdict, spans in zip(found, masked, strict=True):
            verdict.masked = spans
        return found

    def prompt_text(self, task: Task) -> str:
        """The prompt as text, `{fields}` standing for the case to judge."""
        return self._prompts[task].text

    def _reasoned(self, prompt: JudgePrompt, prompts: list[list[int]], count: PrefixCacheCount) -> list[Verdict]:
        section = self._section.reasoning
        answers = self._sample(prompts, section.votes, [section.seed] * len(prompts), count)
        for attempt in range(section.retries):
            void = [
                (i, j) for i, votes in enumerate(answers) for j, a in enumerate(votes) if _vote(prompt.spec, a) is None
            ]
            if not void:
                break
            self.usage.reasked += len(void)
            again = [prompt.asked_again(prompts[i], answers[i][j].text) for i, j in void]
            seeds = [_seed(section.seed, (attempt + 1) * section.votes + j) for _, j in void]
            for (i, j), (answer,) in zip(void, self._sample(again, 1, seeds, count), strict=True):
                answers[i][j] = answer
        return [_tally(prompt.spec, votes, self.usage) for votes in answers]

    def _sample(
        self, prompts: list[list[int]], n: int, seeds: Sequence[int | None], count: PrefixCacheCount
    ) -> list[list[Answer]]:
        section = self._section.reasoning
        self.usage.requests += n * len(prompts)
        return sample_answers(
            self._llm,
            prompts,
            n=n,
            temperature=section.temperature,
            max_tokens=section.max_tokens,
            seeds=seeds,
            count=count,
        )


class EndpointJudge:
    """A judge on an OpenAI-compatible server; see `Judge`.

    Every vote is a request of its own: many servers give one answer a request, whatever number is asked for.

    Args:
        flag: beginning of the command-line flags that errors name.
        disarm: whether spans that imitate the prompt or instruct the judge are taken out of conversation texts.
    """

    def __init__(self, section: JudgeSection, *, flag: str = "--judge", disarm: bool = True) -> None:
        self.usage = Usage()
        self._section, self._flag = section, flag
        self._style = style_of(section)
        self._prompts = {task: TextPrompt(SPECS[task, self._style], disarm=disarm) for task in _TASKS}

    def verdicts(self, task: Task, fields: Sequence[Mapping[str, str]]) -> list[Verdict]:
        """One verdict for each mapping of field names to texts, in order. Must not be called from a running event loop."""
        prompt = self._prompts[task]
        found = asyncio.run(self._all(prompt, fields)) if fields else []
        self.usage.masked += sum(verdict.masked for verdict in found)
        return found

    def prompt_text(self, task: Task) -> str:
        """The prompt as text, `{fields}` standing for the case to judge."""
        return self._prompts[task].outline(self._style)

    async def _all(self, prompt: TextPrompt, fields: Sequence[Mapping[str, str]]) -> list[Verdict]:
        ask = self._reasoned if self._section.mode == "reasoning" else self._likelihood
        async with EndpointClient(self._section.endpoint, self._section.model, self.usage, flag=self._flag) as client:
            try:
                # The first failure for good ends all requests: the chunk is asked again as a whole, or not at all.
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(ask(client, prompt, f)) for f in fields]
            except ExceptionGroup as e:
                raise _first(e) from None
        return [task.result() for task in tasks]

    async def _likelihood(self, client: EndpointClient, prompt: TextPrompt, fields: Mapping[str, str]) -> Verdict:
        before = prompt.masked
        if self._style == "completion":
            text = prompt.text(fields)
            masked = prompt.masked - before
            found = await client.complete(text, max_tokens=1, temperature=0, logprobs=TOP_LOGPROBS)
        else:
            messages = prompt.messages(fields)
            masked = prompt.masked - before
            found = await client.chat(messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=TOP_LOGPROBS)
        listed = listed_logprobs(found.tokens, prompt.spec.verdicts)
        if listed is None:
            return Verdict(None, "no_verdict_token", masked=masked)
        self.usage.censored += listed.censored
        return Verdict(listed.logprobs, masked=masked)

    async def _reasoned(self, client: EndpointClient, prompt: TextPrompt, fields: Mapping[str, str]) -> Verdict:
        before = prompt.masked
        messages = prompt.messages(fields)
        masked = prompt.masked - before
        async with asyncio.TaskGroup() as group:
            votes = [
                group.create_task(self._answer(client, prompt, messages, vote))
                for vote in range(self._section.reasoning.votes)
            ]
        verdict = _tally(prompt.spec, [vote.result() for vote in votes], self.usage)
        verdict.masked = masked
        return verdict

    async def _answer(
        self, client: EndpointClient, prompt: TextPrompt, messages: list[dict[str, str]], vote: int
    ) -> Answer:
        """One vote's answer: the first, or the first with a verdict of those asked for after it."""
        section = self._section.reasoning
        options: dict[str, Any] = {"temperature": section.temperature, "max_tokens": section.max_tokens}
        chat = messages
        for attempt in range(section.retries + 1):
            seed = _seed(section.seed, attempt * section.votes + vote)
            found = await client.chat(chat, **options, **({} if seed is None else {"seed": seed}))
            if attempt == section.retries or _vote(prompt.spec, found.answer) is not None:
                break
            self.usage.reasked += 1
            chat = prompt.asked_again(messages, found.answer.text)
        return found.answer


def _vote(spec: PromptSpec, answer: Answer) -> int | None:
    return parse_verdict(answer.text, len(spec.verdicts)) if answer.whole else None


def _tally(spec: PromptSpec, answers: Sequence[Answer], usage: Usage) -> Verdict:
    """The verdict of several answers. Those without one are no votes; they are counted."""
    votes = [vote for answer in answers if (vote := _vote(spec, answer)) is not None]
    usage.unparseable += len(answers) - len(votes)
    texts = [answer.text for answer in answers]
    if not votes:
        return Verdict(None, "unparseable_verdict", texts)
    return Verdict(votes_to_logprobs(votes, len(spec.verdicts)), None, texts)


def _seed(first: int | None, offset: int) -> int | None:
    return None if first is None else first + offset


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The error to show of several at once: one that says what to change, if there is one."""
    found: list[Exception] = []
    for e in group.exceptions:
        found.append(_first(e) if isinstance(e, ExceptionGroup) else e)
    return next((e for e in found if isinstance(e, WildRewardError)), found[0])
