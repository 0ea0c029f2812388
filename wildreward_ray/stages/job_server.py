"""The job server of a Ray cluster: which jobs there are, how they are, what they printed. Jobs are begun by `submit`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from wildreward_ray.cluster.storage import first_line
from wildreward_ray.core.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_FLAG = "--address"
# What Ray's client raises where a server can't be reached or gives no answer that it understands.
_FAILURES = (OSError, RuntimeError, ValueError, KeyError, AssertionError, RayError)


class JobServer:
    """A client of a job server.

    Args:
        address: as `--address`; None for what the environment names, or the cluster on this machine.

    Raises:
        UserError: no job server answers there, or not to us.
    """

    def __init__(self, address: str | None) -> None:
        from ray.job_submission import JobSubmissionClient

        self._named = address or address_here() or "this machine"
        try:
            headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "{}"))
            with _instead_of_the_environment(address):
                self._client = JobSubmissionClient(address, headers=headers)
        except _FAILURES as e:
            raise self._error("no job server answers", e) from e

    def states(self) -> dict[str, str]:
        """Status of every job the cluster knows of, by submission id.

        Raises:
            UserError: the server can't be asked.
        """
        try:
            return {job.submission_id: job.status.value for job in self._client.list_jobs() if job.submission_id}
        except _FAILURES as e:
            raise self._error("can't list the jobs", e) from e

    def details(self, job: str) -> JobDetails | None:
        """What the server says of a job; None where it knows of none of that name.

        Raises:
            UserError: the server can't be asked.
        """
        try:
            return self._client.get_job_info(job)
        except _FAILURES as e:
            if "status code 404" in str(e):
                return None
            raise self._error(f"can't ask about job {job!r}", e) from e

    def log_tail(self, job: str, lines: int) -> list[str]:
        """The last lines that a job printed.

        Raises:
            UserError: the server can't be asked.
        """
        try:
            printed: list[str] = self._client.get_job_logs(job).splitlines()
        except _FAILURES as e:
            raise self._error(f"can't read the log of job {job!r}", e) from e
        return printed[max(0, len(printed) - lines) :]

    def _error(self, what: str, error: BaseException) -> UserError:
        return UserError(
            f"{what} at {self._named}: {first_line(error) or type(error).__name__}",
            flag=_FLAG,
            hint="give the address of the cluster's dashboard, and set RAY_AUTH_MODE=token if it asks for a token",
        )


def address_here() -> str | None:
    """The job server that the environment names, as Ray reads it."""
    return next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)


@contextlib.contextmanager
def _instead_of_the_environment(address: str | None) -> Iterator[None]:
    """Ray lets its variables win over an address that is given; here the address that is given wins."""
    if address is None:
        yield
        return
    name = ADDRESS_VARIABLES[0]
    before: Any = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
