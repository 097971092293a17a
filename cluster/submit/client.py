"""Submits, follows and stops jobs of a cluster through Ray's client, which packs and uploads the working tree.

This module adds what Ray's client and `ray job` lack (tried on Ray 2.60): following a log after its connection was cut
or fell silent (Ray stops, or waits forever), the command's own exit code (Ray's is 1, and 0 for `ray job logs`), errors
of one sentence, and lists without the variables of jobs, which may be secrets.

On the cluster the command runs as `striate ...`, like the jobs of Kubernetes. Ray unpacks the tree on every node,
makes it the current folder, and puts it first in PYTHONPATH, before the installed packages, for the command and for
Ray's workers. So the uploaded code runs, and the installed package provides the dependencies, the version and the
`striate` command.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cluster.console import say
from cluster.ray_internals import check
from cluster.submit.upload import Tree
from library.errors import StriateError, UsageError

if TYPE_CHECKING:  # Ray takes a second to import; a wrong command line is refused earlier
    from ray.job_submission import JobDetails

#: Ray reads these in the process that runs the command, and stops it as Ctrl-C would, with time to finish.
_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "15"}
#: Exit code of a job that was stopped; the same as striate's own after Ctrl-C.
STOPPED_CODE = 130

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: Patterns do not match these: they name files and profiles of this machine, which the cluster's nodes do not have.
_OF_THIS_MACHINE = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CA_BUNDLE",
    "AWS_*_FILE",
    "AZURE_*_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
# The log is requested again after this long without a line, because a dead connection is not reported.
_QUIET_S = 60
# How long a cluster may be unreachable.
_AWAY_S = 300
# How long a stopped job may take to end; Ray kills it after 15 s.
_STOP_S = 60
# The pause between requests.
_PAUSE_S = 0.5


def is_job() -> bool:
    """Returns whether this process runs a submitted command, whose SIGINT comes from `striate stop`."""
    return os.environ.get("RAY_JOB_STOP_SIGNAL") == _STOP["RAY_JOB_STOP_SIGNAL"]


class Lost(StriateError):
    """Raised when the cluster does not answer; it may answer again, and its jobs may still be running."""


def find_address(address: str | None) -> str:
    """Returns the address of the dashboard: `--address`, else that of Ray's variables, else that of this machine.

    Raises:
        UsageError: when it is not an http address.
    """
    named = {"--address ": address} | {f"{name}=": os.environ.get(name) for name in _ADDRESS_VARIABLES}
    source, value = next(((source, value) for source, value in named.items() if value), ("", "http://127.0.0.1:8265"))
    if not re.match(r"https?://[\w\[]", value):
        what = "is the address of Ray itself" if source == "RAY_ADDRESS=" else "is not an http address"
        raise UsageError(
            f"{source}{value} {what}: jobs are sent to Ray's dashboard; set RAY_API_SERVER_ADDRESS=http://HOST:8265 or "
            "--address http://HOST:8265"
        )
    return value.rstrip("/")


def job_environment(options: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the job's variables for the `--env` options: NAME or a pattern like AWS_* copies variables of this
    process, NAME=VALUE sets one.

    A pattern skips variables that name files of this machine.

    Raises:
        UsageError: when a variable is not set here, when a pattern matches an AWS profile but there are no keys, or
            when Ray would change a value.
    """
    passed: dict[str, str] = {}
    for each in options:
        name, equals, value = each.partition("=")
        variables = {name: value} if equals else _matching(name, environment)
        if not variables or not name:
            raise UsageError(f"--env '{each}': it is not set here; write NAME=VALUE, or the name of one that is set")
        passed |= variables
    for name, value in passed.items():
        if "$" in value:
            raise UsageError(f"--env {name}: its value contains a $, which Ray would replace; pass it another way")
    return passed


def _matching(pattern: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that match a name or a pattern."""
    if pattern in environment:
        return {pattern: environment[pattern]}
    names = [name for name in environment if fnmatchcase(name, pattern)]
    if {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"} & {*names} and not environment.get("AWS_SECRET_ACCESS_KEY"):
        raise UsageError(
            f"--env '{pattern}': AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set here, and a profile is a file "
            'of this machine; `eval "$(aws configure export-credentials --format env)"` sets them from the profile'
        )
    sent = (name for name in names if not any(fnmatchcase(name, each) for each in _OF_THIS_MACHINE))
    return {name: environment[name] for name in sent}


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`.

    Args:
        address: see `find_address`.
        token: see `cluster.connection.token.find_token`.

    Raises:
        Lost: when it does not answer.
        StriateError: when the token is missing or wrong, or striate does not support this version of Ray.
    """

    def __init__(self, address: str, token: str | None) -> None:
        check("submit")
        from ray.job_submission import JobSubmissionClient

        # They log details of packing and of connections.
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        # In Ray, these variables override the `address` argument.
        set_here = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
        try:
            with self._request():
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                self._client = JobSubmissionClient(address, headers=headers)
        finally:
            os.environ.update(set_here)

    def all(self) -> list[JobDetails]:
        """Returns the submitted jobs, the latest first."""
        with self._request():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def log(self, job: str) -> str:
        """Returns the output of a job so far."""
        with self._request():
            return self._client.get_job_logs(job)

    def submit(self, entrypoint: str, tree: Tree, environment: Mapping[str, str]) -> str:
        """Uploads the tree if the cluster does not have it yet, starts the command, and returns the job's id.

        Raises:
            UsageError: when a file cannot be packed.
        """
        runtime = {"working_dir": tree.root, "excludes": list(tree.excludes), "env_vars": _STOP | dict(environment)}
        with self._request():
            try:
                return self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime)
            except OSError as error:
                if error.errno is None or isinstance(
                    error, ConnectionError
                ):  # requests raises these for network errors
                    raise
                advice = ": make it readable, or name it in .rayignore" if error.filename else ""
                what = f"{error.filename or tree.root} cannot be packed ({error.strerror}){advice}"
                raise UsageError(f"nothing was submitted, as {what}") from error

    def stop(self, job: str) -> JobDetails:
        """Stops the job and returns its details after its end; Ray kills it after 15 s.

        Raises:
            StriateError: when it has not ended after a minute.
        """
        with self._request():
            self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_S
        while True:
            with self._request():
                details = self._client.get_job_info(job)
            if details.status.is_terminal():
                return details
            if time.monotonic() > deadline:
                raise StriateError(
                    f"{job} was asked to stop and is still {details.status} after {_STOP_S} s; `striate jobs` shows "
                    "when it has ended"
                )
            time.sleep(_PAUSE_S)  # the job API can only be polled

    def follow(self, job: str, write: Callable[[str], object]) -> JobDetails:
        """Passes the job's log to `write` as it grows, and returns the job's details when it has ended.

        Errors of `write` are raised here. If the log of a job that has ended cannot be read, that is reported, and not
        raised.

        Raises:
            Lost: when the cluster does not answer for minutes; the job may still be running there.
            StriateError: when there is no such job.
        """
        details: JobDetails | None = None
        written, last_answer, reported = 0, time.monotonic(), False

        async def tail() -> None:
            """Writes the part of the log that is not yet written; Ray sends the whole log each time."""
            nonlocal written, last_answer, reported
            at, pieces = 0, aiter(self._client.tail_job_logs(job))
            while True:
                piece = None
                with self._request(), contextlib.suppress(TimeoutError):
                    piece = await asyncio.wait_for(anext(pieces, None), _QUIET_S)
                last_answer, reported = time.monotonic(), False
                if piece is None:
                    return
                write(piece[max(0, written - at) :])
                at += len(piece)
                written = max(written, at)

        while True:
            before = written
            try:
                with self._request():
                    details = self._client.get_job_info(job)
                asyncio.run(tail())
                if details.status.is_terminal():  # it had ended before its log was requested, so the log is complete
                    return details
            except Lost as error:
                if details is not None and details.status.is_terminal() and written == before:
                    say(f"the log of {job}, which has ended, cannot be read: {error}", file=sys.stderr, flush=True)
                    return details
                if time.monotonic() - last_answer > _AWAY_S:
                    raise
                if not reported:
                    say(f"{error}; the job may still be running, trying for {_AWAY_S} s", file=sys.stderr, flush=True)
                reported = True
            time.sleep(_PAUSE_S)  # the log may end before the job has its status

    @contextlib.contextmanager
    def _request(self) -> Generator[None]:
        """Turns errors of Ray's client into messages that say what would work."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise StriateError(
                f"{self.address} requires a token, and got none or a wrong one: set RAY_AUTH_TOKEN, or name a file "
                "that contains the token: --token-file FILE"
            ) from error
        except (requests.RequestException, aiohttp.ClientError, OSError, KeyError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if "status code 404" in reason:
                raise StriateError(f"{self.address}: {reason}; `striate jobs` lists the jobs there") from error
            raise Lost(
                f"{self.address} does not answer as Ray's dashboard does ({reason}); check that the cluster is up, "
                "that this is the port of its dashboard (8265), and that it is forwarded"
            ) from error


def exit_code(details: JobDetails) -> int:
    """Returns the exit code of the command itself; 128 plus the signal if one killed it, as in a shell."""
    code = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED_CODE}.get(str(details.status), 1)


def end_message(details: JobDetails) -> str:
    """Returns `raysubmit_...: FAILED, exit code 2`, and the reason if the command never ran."""
    line = f"{details.submission_id}: {details.status}, exit code {exit_code(details)}"
    never_ran = str(details.status) == "FAILED" and details.driver_exit_code is None
    return f"{line}\n{details.message.strip()}" if never_ran and details.message else line
