"""The jobs of a cluster, through Ray's client, which packs and sends the working tree and gives jobs their ids.

What Ray's client and `ray job` lack was tried on Ray 2.60 and is here: a log that is followed on when its connection is
cut or silent (Ray's ends, or waits for ever), the command's own exit code (theirs is 1, and 0 for `ray job logs`),
errors of one sentence, and lists without the variables of jobs, which may be secrets.

On the cluster the command is run as `striate ...`, as the jobs of Kubernetes are. Ray unpacks the tree on every node,
makes it the current folder, and puts it first in PYTHONPATH: before the packages that are installed there, for the
command and for Ray's workers alike. So the code that was sent is the code that runs, and the installed one gives its
dependencies, its version, and the command itself.
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

if TYPE_CHECKING:  # Ray takes a second to import, and a wrong command line is refused before
    from ray.job_submission import JobDetails

#: Ray reads these in the process that runs the command: it is stopped as by Ctrl-C, and may end its work.
_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "15"}
#: Exit code of a job that was stopped, as striate's own after Ctrl-C.
STOPPED_CODE = 130

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
#: Patterns do not take these: they name files and profiles of this machine, which the cluster's nodes do not have.
_OF_THIS_MACHINE = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CA_BUNDLE",
    "AWS_*_FILE",
    "AZURE_*_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
# Silence after which the log is asked for anew, as nothing tells of a connection that is dead; how long a cluster may
# be away; how long a job may take to end after it was asked to, which Ray kills after 15 s; the pause between requests.
_QUIET_S, _AWAY_S, _STOP_S, _PAUSE_S = 60, 300, 60, 0.5


def is_job() -> bool:
    """Whether this process runs a command that `striate submit` sent: its SIGINT comes from `striate stop`."""
    return os.environ.get("RAY_JOB_STOP_SIGNAL") == _STOP["RAY_JOB_STOP_SIGNAL"]


class Lost(StriateError):
    """The cluster does not answer; it may answer again, and its jobs may still be running."""


def find_address(address: str | None) -> str:
    """Return the dashboard that is meant: `--address`, else the one of Ray's variables, else of this machine.

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


def passed_on(wanted: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for the job: of this process by NAME or by a pattern as AWS_*, or written out as NAME=VALUE.

    A pattern leaves out what names files of this machine.

    Raises:
        UsageError: when one is not set here, when a pattern takes a profile of AWS for keys, or when Ray would change a
            value.
    """
    passed: dict[str, str] = {}
    for each in wanted:
        name, equals, value = each.partition("=")
        variables = {name: value} if equals else _matching(name, environment)
        if not variables or not name:
            raise UsageError(f"--env '{each}': it is not set here; write NAME=VALUE, or the name of one that is set")
        passed |= variables
    for name, value in passed.items():
        if "$" in value:
            raise UsageError(f"--env {name}: Ray replaces what follows a $ in a value, and there is no way round it")
    return passed


def _matching(pattern: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a name or a pattern takes."""
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
        StriateError: when the token is missing or wrong, or this Ray is another than striate is installed for.
    """

    def __init__(self, address: str, token: str | None) -> None:
        check("submit")
        from ray.job_submission import JobSubmissionClient

        # Notes on what it packs and on connections.
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        # Ray lets these override the address that it is given.
        set_here = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
        try:
            with self._asked():
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                self._client = JobSubmissionClient(address, headers=headers)
        finally:
            os.environ.update(set_here)

    def all(self) -> list[JobDetails]:
        """Return the jobs that were submitted, the latest first."""
        with self._asked():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def log(self, job: str) -> str:
        """Return what a job has written so far."""
        with self._asked():
            return self._client.get_job_logs(job)

    def submit(self, entrypoint: str, tree: Tree, environment: Mapping[str, str]) -> str:
        """Upload the tree, where the cluster does not have it yet, start the command, and return the job's id.

        Raises:
            UsageError: when a file cannot be packed.
        """
        runtime = {"working_dir": tree.root, "excludes": list(tree.excludes), "env_vars": _STOP | dict(environment)}
        with self._asked():
            try:
                return self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime)
            except OSError as error:
                if error.errno is None or isinstance(error, ConnectionError):  # of the network, as requests raises it
                    raise
                advice = ": make it readable, or name it in .rayignore" if error.filename else ""
                what = f"{error.filename or tree.root} cannot be packed ({error.strerror}){advice}"
                raise UsageError(f"nothing was submitted, as {what}") from error

    def stop(self, job: str) -> JobDetails:
        """Ask the job to stop and return it as it ended: it has 15 s, and is killed then.

        Raises:
            StriateError: when it has not ended in a minute.
        """
        with self._asked():
            self._client.stop_job(job)
        deadline = time.monotonic() + _STOP_S
        while True:
            with self._asked():
                details = self._client.get_job_info(job)
            if details.status.is_terminal():
                return details
            if time.monotonic() > deadline:
                raise StriateError(
                    f"{job} was asked to stop and is still {details.status} after {_STOP_S} s; `striate jobs` shows "
                    "when it has ended"
                )
            time.sleep(_PAUSE_S)  # the job API can only be asked

    def follow(self, job: str, write: Callable[[str], object]) -> JobDetails:
        """Give `write` the job's log as it grows, and return the job when it has ended.

        What `write` raises is raised here. That the log of a job that has ended cannot be read is reported, and is no
        error.

        Raises:
            Lost: when the cluster is away for minutes; the job may still be running there.
            StriateError: when there is no such job.
        """
        details: JobDetails | None = None
        written, heard, reported = 0, time.monotonic(), False

        async def tail() -> None:
            """Ray sends the whole log each time."""
            nonlocal written, heard, reported
            at, pieces = 0, aiter(self._client.tail_job_logs(job))
            while True:
                piece = None
                with self._asked(), contextlib.suppress(TimeoutError):
                    piece = await asyncio.wait_for(anext(pieces, None), _QUIET_S)
                heard, reported = time.monotonic(), False
                if piece is None:
                    return
                write(piece[max(0, written - at) :])
                at += len(piece)
                written = max(written, at)

        while True:
            before = written
            try:
                with self._asked():
                    details = self._client.get_job_info(job)
                asyncio.run(tail())
                if details.status.is_terminal():  # and so before its log was asked for, which is whole
                    return details
            except Lost as error:
                if details is not None and details.status.is_terminal() and written == before:
                    say(f"the log of {job}, which has ended, cannot be read: {error}", file=sys.stderr, flush=True)
                    return details
                if time.monotonic() - heard > _AWAY_S:
                    raise
                if not reported:
                    say(f"{error}; the job may still be running, trying for {_AWAY_S} s", file=sys.stderr, flush=True)
                reported = True
            time.sleep(_PAUSE_S)  # the log may end before the job has its status

    @contextlib.contextmanager
    def _asked(self) -> Generator[None]:
        """Turn what Ray's client raises into what, where, and what would work."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise StriateError(
                f"{self.address} asks for a token, and was given none or another cluster's: set RAY_AUTH_TOKEN, or "
                "name a file that holds it: --token-file FILE"
            ) from error
        except (requests.RequestException, aiohttp.ClientError, OSError, KeyError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if "status code 404" in reason:
                raise StriateError(f"{self.address}: {reason}; `striate jobs` lists the jobs there") from error
            raise Lost(
                f"{self.address} does not answer as Ray's dashboard does ({reason}); is the cluster up, is that the "
                "port of its dashboard (8265), is it forwarded?"
            ) from error


def exit_code(details: JobDetails) -> int:
    """Return what the command itself ended with; 128 and the signal where one killed it, as a shell says it."""
    code = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED_CODE}.get(str(details.status), 1)


def ended(details: JobDetails) -> str:
    """Return `raysubmit_...: FAILED, exit code 2`, and why where the command never ran."""
    line = f"{details.submission_id}: {details.status}, exit code {exit_code(details)}"
    never_ran = str(details.status) == "FAILED" and details.driver_exit_code is None
    return f"{line}\n{details.message.strip()}" if never_ran and details.message else line
