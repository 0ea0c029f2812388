"""Joining or starting Ray, and refusing a graph that the cluster can't hold instead of waiting for it for ever."""

from __future__ import annotations

import copyreg
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, UserCodeException

from wildreward_ray.cluster.artifact import storage_error_of
from wildreward_ray.cluster.growth import current_growth, live_nodes
from wildreward_ray.cluster.preflight import ActorRequest, missing
from wildreward_ray.cluster.stopping import sigterm_as_interrupt
from wildreward_ray.core import errors
from wildreward_ray.core.errors import UserError, WildRewardError

__all__ = ["ActorRequest", "check_resources", "ray_errors", "start_ray"]

logger = logging.getLogger(__name__)

# Messages about every dataset and deployment drown the stage's own lines.
_QUIET = {
    "ray.data": logging.WARNING,
    # What fails is raised: its traceback would only bury the one line that tells what to do.
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.execution": logging.CRITICAL,
    "ray.data._internal.progress": logging.ERROR,
    "ray.serve": logging.WARNING,
}


def start_ray(*, join: bool = False) -> None:
    """Join the cluster that `RAY_ADDRESS` names (a job has it set), or start one on this machine.

    Args:
        join: don't start one; without `RAY_ADDRESS`, join the one that runs on this machine.

    Raises:
        UserError: there is no cluster to join.
    """
    if ray.is_initialized():
        return
    # Processes of the cluster inherit it; Serve's proxy is one of them.
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "wildreward_ray.stages.serve_proxy:middlewares")
    kwargs: dict[str, object] = {}
    if not os.environ.get("RAY_ADDRESS"):
        kwargs = {"address": "auto"} if join else {"address": "local", "include_dashboard": False}
    # Workers' own output (model loading bars, engine chatter) stays in Ray's session logs unless it is asked for.
    try:
        _init(logging_level=logging.WARNING, log_to_driver=logger.isEnabledFor(logging.DEBUG), **kwargs)
    except ConnectionError as e:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise UserError(
            f"no Ray cluster answers at {where}",
            hint="set RAY_ADDRESS to its address, and RAY_AUTH_MODE=token if it asks for a token",
        ) from e
    sigterm_as_interrupt()
    data = ray.data.DataContext.get_current()
    data.print_on_execution_start = False
    data.enable_progress_bars = False  # `Progress` prints one line a stage instead
    # The graph is checked before it runs; if it still can't move for so long, an error is better than waiting.
    data.execution_no_progress_timeout_s = 1800
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    total = ray.cluster_resources()
    logger.info("Ray %s: %.0f CPUs, %.0f GPUs", ray.__version__, total.get("CPU", 0), total.get("GPU", 0))


def _init(**kwargs: object) -> None:
    """`ray.init`, once more where Ray gave its own node up: it waits for 30 s, which a busy machine may need."""
    try:
        ray.init(**kwargs)
    except Exception as e:
        # Ray raises a bare Exception here.
        if "timed out during startup" not in str(e):
            raise
        logger.warning("Ray did not start within 30 s on this machine; trying once more")
        ray.shutdown()
        ray.init(**kwargs)


def check_resources(requests: Sequence[ActorRequest], *, task_cpus: float = 1.0) -> None:
    """Raise unless all actors fit together, with one task beside them, on what the cluster has or can grow to.

    Args:
        task_cpus: what the largest plain task of the graph needs.

    Raises:
        ResourceError: see `preflight.missing`; names what is asked, what there is and can be, and the flag.
    """
    have: Mapping[str, float] = ray.cluster_resources()
    error = missing(requests, have, current_growth(have), live_nodes(), task_cpus)
    if error is not None:
        raise error


@contextmanager
def ray_errors(output: str) -> Iterator[None]:
    """Turn a failure inside a Ray task or actor back into the error that a person can act on.

    Ray wraps what a task raises, often several times; the cause is what says which value and which flag.
    """
    try:
        yield
    except Exception as e:
        if not (isinstance(e, RayError) or hasattr(e, "worker_failures")):
            raise
        for cause in _causes(e):
            # Ray may join its own class and the task's into one, whose text is a traceback of many lines.
            if isinstance(cause, WildRewardError) and not isinstance(cause, RayError):
                raise _as_raised(cause) from e
            if isinstance(cause, ActorDiedError) and (told := _told_by(cause)) is not None:
                raise told from e
        space = storage_error_of(e, output)
        if space is not None:
            raise space from e
        raise


def _as_raised(error: WildRewardError) -> WildRewardError:
    """An error without what Ray Data writes behind its text: advice on Ray's own retries."""
    if not isinstance(error, UserError):
        error.args = (str(error).partition("\nFailed to apply UDF")[0],)
    return error


def _told_by(error: ActorDiedError) -> WildRewardError | None:
    """What an actor's constructor raised; Ray keeps only the text of it, at the end of a traceback."""
    found = re.findall(rf"^{re.escape(errors.__name__)}\.(\w+): (.+)$", str(error), re.MULTILINE)
    kind = getattr(errors, found[-1][0], None) if found else None
    if not (isinstance(kind, type) and issubclass(kind, WildRewardError)):
        return None
    parts = re.fullmatch(r"(.*?)(?: \((--\S+)\))?", found[-1][1])
    if issubclass(kind, UserError) and parts:
        return kind(parts[1], flag=parts[2])
    return kind(found[-1][1])


def _with_cause(error: UserCodeException) -> tuple[Any, ...]:
    cause = error.__cause__ if isinstance(error.__cause__, (WildRewardError, OSError)) else None
    return _caused_by, (type(error), error.args, cause)


def _caused_by(kind: type[UserCodeException], args: tuple[Any, ...], cause: BaseException | None) -> UserCodeException:
    error = kind(*args)
    error.__cause__ = cause
    return error


# Ray Data wraps what a function of ours raises, and pickling drops the cause of an exception on its way to the driver.
copyreg.pickle(UserCodeException, _with_cause)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None)  # of a Ray Train run, by rank
        waiting += failures.values() if isinstance(failures, Mapping) else ()
        waiting += [getattr(current, "cause", None), current.__cause__, current.__context__]
