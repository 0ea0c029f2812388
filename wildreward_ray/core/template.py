"""Rendering (history, prompt, response) into the one text a reward model reads.

Training, serving, batch scoring, evaluation and online DPO all call `RewardTemplate.render` with the template text stored
in the checkpoint's `reward_config.json`, so the bytes can't drift apart. Templates are Jinja and run in a sandbox:
conversation text is data and is never evaluated as a template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, str]

# The response comes last: replies to one prompt share all of their prefix, which an engine's prefix cache then reuses, and
# cutting the oldest text never touches the response.
DEFAULT_TEMPLATE = """\
{%- for message in history -%}
{{ message.role }}: {{ message.content }}
{% endfor -%}
user: {{ prompt }}
### How well does this reply serve the user?
assistant: {{ response }}"""

_PROBE = {"prompt": "probe-prompt-5f1c", "response": "probe-response-9ab2", "history": "probe-history-77d0"}


class RewardTemplate:
    """A compiled reward-input template.

    Args:
        text: Jinja text with the variables `history` (list of role/content), `prompt` and `response`.

    Raises:
        UserError: the text isn't valid Jinja, or leaves out the prompt or the response.
    """

    def __init__(self, text: str = DEFAULT_TEMPLATE) -> None:
        self.text = text
        probe = self.render([{"role": "user", "content": _PROBE["history"]}], _PROBE["prompt"], _PROBE["response"])
        for part in ("prompt", "response"):
            if _PROBE[part] not in probe:
                raise UserError(
                    f"the reward template drops the {part}", flag="--template", hint=f"use {{{{ {part} }}}}"
                )

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
        try:
            return env.from_string(self.text)
        except TemplateError as e:
            raise UserError(f"the reward template is not valid Jinja: {e}", flag="--template") from e

    def render(self, history: Sequence[Message], prompt: str, response: str) -> str:
        """The text a reward model reads for `response` as the reply to `prompt` after `history`."""
        from jinja2 import TemplateError

        try:
            return self._compiled.render(history=history, prompt=prompt, response=response)
        except TemplateError as e:
            raise UserError(f"the reward template failed: {e}", flag="--template") from e

    def __reduce__(self) -> tuple[type[RewardTemplate], tuple[str]]:
        return (RewardTemplate, (self.text,))


def split_messages(messages: Sequence[Message]) -> tuple[list[Message], str, str]:
    """Split chat messages that end with an assistant reply into (history, prompt, response).

    Raises:
        UserError: fewer than two messages, or the last two are not a user message and an assistant reply.
    """
    if len(messages) < 2 or messages[-1].get("role") != "assistant" or messages[-2].get("role") != "user":
        roles = [m.get("role") for m in messages[-3:]]
        raise UserError(f"messages ending in roles {roles}: the last two must be a user message and an assistant reply")
    return list(messages[:-2]), messages[-2]["content"], messages[-1]["content"]
