"""Errors that a person can act on.

Every error names the value that was met, the rule it breaks and, where there is one, the flag that changes it. The command
line prints a `WildRewardError` as one line and leaves with `exit_code`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable


class WildRewardError(Exception):
    """A failure the program understands. `exit_code` is what the command line leaves with."""

    exit_code = 1


class UserError(WildRewardError):
    """Input, configuration or environment that the user can mend.

    Args:
        problem: what was met, with the value, and the rule it breaks.
        flag: the command-line flag that changes it, e.g. `--input`.
        hint: what to do instead.
    """

    exit_code = 2

    def __init__(self, problem: str, *, flag: str | None = None, hint: str | None = None) -> None:
        self.problem = problem
        self.flag = flag
        self.hint = hint
        text = problem
        if hint:
            text += f"; {hint}"
        if flag:
            text += f" ({flag})"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders in Ray; keyword-only arguments need their own recipe for that.
        return (_rebuild_user_error, (type(self), self.problem, self.flag, self.hint))


def _rebuild_user_error(cls: type[UserError], problem: str, flag: str | None, hint: str | None) -> UserError:
    return cls(problem, flag=flag, hint=hint)


class StorageError(UserError):
    """A URI that can't be read or written, or a directory that isn't a whole artefact."""


class ResourceError(UserError):
    """The cluster can't hold what a stage asks for."""


class RewardUnavailableError(WildRewardError):
    """The reward service could not give every score that was asked for. It is never turned into a number.

    Args:
        problem: what was met.
        attempts: how often the request was sent; 0 where no service was asked.
        last_status: HTTP status of the last reply; None where none came.
    """

    def __init__(self, problem: str, *, attempts: int = 0, last_status: int | None = None) -> None:
        self.attempts, self.last_status = attempts, last_status
        super().__init__(problem)


class RewardRefusedError(RewardUnavailableError):
    """The reward service refused a request that it would refuse again, however often it is sent.

    Args:
        problem: what was met.
        status: HTTP status.
        code: the service's word for the reason; None where it gave none.
        detail: what the service says.
        field: where in the items that were given, e.g. `items[3].response`; None where the service did not say.
        attempts: how often the request was sent.
    """

    def __init__(
        self,
        problem: str,
        *,
        status: int,
        code: str | None = None,
        detail: str = "",
        field: str | None = None,
        attempts: int = 1,
    ) -> None:
        self.status, self.code, self.detail, self.field = status, code, detail, field
        super().__init__(problem, attempts=attempts, last_status=status)

    def __reduce__(self) -> tuple[object, ...]:
        again = functools.partial(
            type(self),
            str(self),
            status=self.status,
            code=self.code,
            detail=self.detail,
            field=self.field,
            attempts=self.attempts,
        )
        return (again, ())


class RewardBrokenError(RewardUnavailableError):
    """The reward service said that all is well and gave scores that can't be believed: too few, no numbers, no JSON."""


class RunStoppedError(WildRewardError):
    """A signal asked the run to stop; its state is saved and the same command goes on."""

    exit_code = 130


class JudgeUnavailableError(WildRewardError):
    """The judge could not give the verdicts that were asked for. It is never turned into a label; the run can be resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known name closest to `name`, or listing all known names where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
