"""`wildreward submit`: a stage as a job of a Ray cluster, by the `ray job submit` of this environment.

Nothing is hidden: the line that is run is printed, and works when it is typed. Around it stand the checks that Ray leaves out:
a name that is taken, a job of the same name that still runs, a job that was stopped and not finished, files that stay behind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import wildreward_ray
from wildreward_ray.core.config.submit import SubmitConfig
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages.job_files import for_the_job
from wildreward_ray.stages.job_server import JobServer
from wildreward_ray.stages.submit_line import Line, default_name, entrypoint, line

_ACTIVE = ("PENDING", "RUNNING")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTERRUPTED = 130
# So long `ray` may take to end after Ctrl-C before it is told again.
_ENDS_IN_S = 5.0


class JobEndedError(WildRewardError):
    """A job did not come to a good end, or nobody watches it any more.

    Args:
        exit_code: what the command line leaves with: the job's own where it has one.
    """

    def __init__(self, problem: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(problem)

    def __reduce__(self) -> tuple[object, ...]:
        return (JobEndedError, (str(self), self.exit_code))


def run(config: SubmitConfig) -> None:
    """Print the command, run it, follow the job.

    Raises:
        UserError: files that the job would not have, a variable that isn't set, a name that is taken, no job server.
        JobEndedError: the job failed or was stopped, or Ctrl-C ended the following of it.
    """
    _check_variables(config.env)
    working_dir = _working_dir(config)
    arguments = for_the_job(config.arguments, working_dir)
    name = config.submission_id or default_name(config.stage, config.arguments)
    if config.dry_run:
        print(line(config, name, working_dir, arguments).shown)
        return
    program = _ray()
    server = JobServer(config.address)
    job = free_name(name, server.states(), chosen=config.submission_id is not None)
    if job != name:
        print(f"{name!r} has run before: this submission is {job!r}", file=sys.stderr)
    command = line(config, job, working_dir, arguments)
    print(command.shown, flush=True)
    try:
        code = _run(program, command)
    except KeyboardInterrupt:
        raise _interrupted(config, server, job) from None
    _conclude(config, server, job, code)


def free_name(name: str, states: Mapping[str, str], *, chosen: bool) -> str:
    """`name`, or where an earlier job has it `name-2`, `name-3`, ...

    Args:
        states: status of all jobs by submission id.
        chosen: whether the user gave the name; it is then not changed.

    Raises:
        UserError: a job of that name still runs, or the user's name is taken.
    """
    taken = [found for found in states if re.fullmatch(rf"{re.escape(name)}(-\d+)?", found)]
    if chosen:
        if name in states:
            raise UserError(
                f"the cluster has a job {name!r} already ({states[name]})",
                flag="--submission-id",
                hint="give another name, or none: then one is found",
            )
        return name
    for found in taken:
        if states[found] in _ACTIVE:
            raise UserError(
                f"job {found!r} has the same stage and flags and is {states[found]}: two would write to one output",
                flag="--submission-id",
                hint=f"stop it with `ray job stop {found}`, or give a name to submit it nevertheless",
            )
    number = 2
    while name in states and f"{name}-{number}" in states:
        number += 1
    return f"{name}-{number}" if name in states else name


def _check_variables(names: Sequence[str]) -> None:
    for name in names:
        if not _VARIABLE.fullmatch(name):
            # What stands behind a `=` may be a secret, and is not repeated.
            raise UserError(
                f"{name.partition('=')[0]!r}…: a variable is given by its name alone",
                flag="--env",
                hint="its value is taken from the environment",
            )
        if name not in os.environ:
            raise UserError(f"the environment has no variable {name!r}", flag="--env")
        if re.search(r'["\\\x00-\x1f]', os.environ[name]):
            print(
                f"{name} holds a quote, a backslash or a control character: the job gets it as it is, but where the line "
                "below is typed by hand it has to be escaped",
                file=sys.stderr,
            )


def _working_dir(config: SubmitConfig) -> str:
    """The directory whose files the job gets, as it is written in the command.

    Raises:
        UserError: it is none, or lacks the stage's entrypoint.
    """
    needed = entrypoint(config.stage)
    given = config.working_dir
    if given is not None and ("://" in given or given.endswith(".zip")):
        return given
    here, repository = Path.cwd(), Path(wildreward_ray.__file__).parents[1]
    folders = [Path(given)] if given is not None else [here, repository]
    for folder in folders:
        if (folder / needed).is_file():
            return "." if folder.resolve() == here.resolve() else str(folder)
    where = " nor ".join(repr(str(folder)) for folder in folders)
    raise UserError(f"no {needed!r} in {where}", flag="--working-dir", hint="give the directory of the repository")


def _ray() -> str:
    """The `ray` beside this interpreter, else the one that the shell would find."""
    beside = Path(sys.executable).parent / "ray"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("ray")
    if found is None:
        raise UserError(f"there is no `ray` beside {sys.executable} or in PATH", hint="install ray[default]")
    return found


def _run(program: str, command: Line) -> int:
    """Run the command to its end. Returns its exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C; `ray` has ended as well.
    """
    process = subprocess.Popen(
        [program, *command.words],
        env={**os.environ, **command.environment},
        stdin=None if command.stdin is None else subprocess.PIPE,
        text=True,
    )
    try:
        process.communicate(command.stdin)
    except KeyboardInterrupt:
        _end(process)
        raise
    return process.returncode


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for a process that a terminal has interrupted together with this one; where nothing has, interrupt it."""
    for told in (signal.SIGINT, signal.SIGKILL):
        try:
            process.wait(_ENDS_IN_S)
            return
        except subprocess.TimeoutExpired:
            process.send_signal(told)
    process.wait()


def _interrupted(config: SubmitConfig, server: JobServer, job: str) -> JobEndedError:
    """What Ctrl-C leaves behind: it ends the following of a job and never the job."""
    try:
        details = server.details(job)
    except UserError as e:
        return JobEndedError(
            f"interrupted; job {job!r} may go on, {e.problem}: {_next_steps(config, job)}", _INTERRUPTED
        )
    if details is None:
        return JobEndedError(f"interrupted before job {job!r} was submitted", _INTERRUPTED)
    if details.status.value not in _ACTIVE:
        return JobEndedError(f"interrupted; job {job!r} is {details.status.value}", _INTERRUPTED)
    return JobEndedError(f"interrupted, but job {job!r} goes on: {_next_steps(config, job)}", _INTERRUPTED)


def _conclude(config: SubmitConfig, server: JobServer, job: str, code: int) -> None:
    """Return if all went well, after `ray job submit` ended with `code`: 0 also for a job that was stopped.

    Raises:
        JobEndedError: it didn't.
    """
    try:
        details = server.details(job)
    except UserError as e:
        raise JobEndedError(
            f"`ray job submit` ended with exit code {code}, and what became of job {job!r} isn't known: {e.problem}",
            code or 1,
        ) from e
    if details is None:
        raise JobEndedError(
            f"`ray job submit` ended with exit code {code}, and there is no job {job!r}: see what it printed above",
            code or 1,
        )
    state = details.status.value
    if state == "FAILED":
        own = details.driver_exit_code
        why = f"ended with exit code {own}" if own is not None else details.message or "no exit code is known"
        raise JobEndedError(f"job {job!r} failed: {why}", _exit_code(own))
    if state == "STOPPED":
        raise JobEndedError(f"job {job!r} was stopped; submitted again, it goes on from its last state", _INTERRUPTED)
    if state in _ACTIVE and (code or not config.no_wait):
        raise JobEndedError(
            f"`ray job submit` ended with exit code {code}, but job {job!r} goes on: {_next_steps(config, job)}",
            code or 1,
        )
    if config.no_wait:
        print(f"job {job!r} is {state}: {_next_steps(config, job)}", file=sys.stderr)


def _exit_code(of_the_driver: int | None) -> int:
    """An exit code for a shell: that of the job, 128 + n where signal n ended it, 1 where none is known."""
    if not of_the_driver:
        return 1
    return of_the_driver if of_the_driver > 0 else 128 - of_the_driver


def _next_steps(config: SubmitConfig, job: str) -> str:
    address = f"--address {shlex.quote(config.address)} " if config.address else ""
    return (
        f"`wildreward status {address}{job}` shows it, `ray job logs {address}--follow {job}` follows it, "
        f"`ray job stop {address}{job}` stops it"
    )
