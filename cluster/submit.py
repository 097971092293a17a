"""A striate command as a job of a cluster: sent with the working tree, followed, and ended with its own exit code.

On the cluster the command is run as `striate ...`, as the jobs of Kubernetes are. Ray unpacks the tree on every node,
makes it the current folder, and puts it first in PYTHONPATH: before the packages that are installed there, for the
command and for Ray's workers alike. So the code that was sent is the code that runs, and the installed one gives its
dependencies, its version, and the command itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.upload import Tree
from library.errors import StriateError, UsageError

if TYPE_CHECKING:  # Ray takes a second to import, and a wrong command line is refused before
    from ray.job_submission import JobDetails, JobSubmissionClient

#: Passed on by `--aws`, where they are set. A profile is a file of this machine, and stays here.
AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_DISABLED"),
    *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
)
#: Ray reads these in the process that runs the command: it is stopped as by Ctrl-C, and may end its work.
_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "15"}
#: Exit code of a job that was stopped, as striate's own after Ctrl-C.
STOPPED_CODE = 130

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Silence after which the log is asked for anew, as nothing tells of a connection that is dead; how long a cluster may
# be away; how often a job is asked for its state.
_QUIET_S, _AWAY_S, _POLL_S = 60, 300, 0.5


class Lost(StriateError):
    """The cluster does not answer; it may answer again, and its jobs may go on."""


def find_address(address: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the job API that is meant: `--address`, else Ray's variables, else a Ray on this machine.

    Raises:
        UsageError: when it is not an http address.
    """
    named = {"--address": address} | {name: environment.get(name) for name in (_ADDRESS_VARIABLE, "RAY_ADDRESS")}
    for name, value in named.items():
        if value or (value is not None and name == "--address"):
            try:
                parts = urlsplit(value)
                if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                    return value.rstrip("/")
            except ValueError:
                pass
            raise UsageError(f"{name} {value}: jobs go to Ray's dashboard, as --address http://HOST:8265")
    return "http://127.0.0.1:8265"


def passed_on(names: Sequence[str], *, aws: bool, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return variables for the job: of this process by name, or written out as NAME=VALUE; with `aws` those of AWS.

    Raises:
        UsageError: when one is not set here, or Ray would change its value.
    """
    passed: dict[str, str] = {}
    if aws:
        passed = {name: environment[name] for name in AWS_VARIABLES if environment.get(name)}
        if "AWS_SECRET_ACCESS_KEY" not in passed:
            raise UsageError(
                "--aws: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set here; of a profile, "
                '`eval "$(aws configure export-credentials --format env)"` sets them'
            )
    for written in names:
        name, equals, value = written.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"--env '{written}': write NAME, or NAME=VALUE")
        if not equals and name not in environment:
            raise UsageError(f"--env {name}: it is not set here; write --env {name}=VALUE")
        passed[name] = value if equals else environment[name]
    for name, value in passed.items():
        if "$" in value:
            raise UsageError(f"--env {name}: Ray replaces what follows a $ in a value, and there is no way round it")
    return passed


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`, through Ray's client.

    Args:
        address: see `find_address`.
        token: see `cluster.ray_token.find_token`.

    Raises:
        Lost: when it does not answer.
        StriateError: when the token is missing or wrong.
    """

    def __init__(self, address: str, token: str | None) -> None:
        from ray.job_submission import JobSubmissionClient

        # Notes on what it packs and on connections.
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        with self.asked(), _only(address):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            self._client = JobSubmissionClient(address, headers=headers)

    @contextmanager
    def asked(self) -> Generator[JobSubmissionClient]:
        """Give Ray's client, and turn what it raises into what, where, and what would work."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield getattr(self, "_client", None)  # pyright: ignore[reportReturnType] -- none only while it is made
        except AuthenticationError as error:
            how = "set RAY_AUTH_TOKEN, or name a file that holds it: --token-file FILE"
            what = "refuses the token" if "Authentication failed" in error.message else "wants a token"
            raise StriateError(f"{self.address} {what}: {how}") from error
        except (requests.RequestException, aiohttp.ClientError, OSError, KeyError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if "status code 404" in reason:
                raise StriateError(f"{self.address}: {reason}; `striate jobs` lists the jobs there") from error
            raise Lost(
                f"{self.address} does not answer as Ray's dashboard does ({reason}); is the cluster up, is that the "
                "port of its dashboard (8265), is it forwarded?"
            ) from error

    def all(self) -> list[JobDetails]:
        """The jobs that were submitted, the latest first."""
        with self.asked() as client:
            jobs = [job for job in client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def details(self, job: str) -> JobDetails:
        """A job by its id."""
        with self.asked() as client:
            return client.get_job_info(job)

    def log(self, job: str) -> str:
        """What a job has written so far."""
        with self.asked() as client:
            return client.get_job_logs(job)

    def submit(self, entrypoint: str, tree: Tree, environment: Mapping[str, str]) -> str:
        """Upload the tree, where the cluster does not have it yet, start the command, and return the job's id."""
        variables = _STOP | dict(environment)
        with self.asked() as client:
            return client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": tree.root, "excludes": list(tree.excludes), "env_vars": variables},
            )

    def follow(self, job: str, write: Callable[[str], object], report: Callable[[str], object]) -> JobDetails:
        """Write the job's log as it grows until the job has ended; a connection that is lost is made again.

        Args:
            job: its id.
            write: takes pieces of the log.
            report: takes what happens to the connection.

        Returns:
            The job as it ended.

        Raises:
            Lost: when the cluster is away for minutes; the job may go on there.
            StriateError: when there is no such job.
        """
        details, written, heard, reported = self.details(job), 0, time.monotonic(), False

        async def tail() -> None:
            """Ray sends the whole log each time."""
            nonlocal written, heard, reported
            at, pieces = 0, aiter(self._client.tail_job_logs(job))
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces, None), _QUIET_S)
                except TimeoutError:
                    return
                if piece is None:
                    return
                heard, reported = time.monotonic(), False
                write(piece[max(0, written - at) :])
                at += len(piece)
                written = max(written, at)

        while True:
            try:
                with self.asked():
                    asyncio.run(tail())
                details = self.details(job)
                if details.status.is_terminal():
                    return details
                heard, reported = time.monotonic(), False
            except Lost as error:
                if time.monotonic() - heard > _AWAY_S:
                    raise
                if not reported:
                    report(f"{error}; the job may go on, trying for {_AWAY_S} s")
                reported = True
            time.sleep(_POLL_S)  # the log may end before the job has its status

    def stop(self, job: str, seconds: float = 60) -> tuple[JobDetails, bool]:
        """Ask the job to stop, and wait until it has: it has 15 s, and is killed then.

        Returns:
            The job as it ended, and whether it was this that stopped it.

        Raises:
            StriateError: when there is no such job, or it is still there after `seconds`.
        """
        details = self.details(job)
        if details.status.is_terminal():
            return details, False
        with self.asked() as client:
            client.stop_job(job)
        end = time.monotonic() + seconds
        while not (details := self.details(job)).status.is_terminal():
            if time.monotonic() > end:
                raise StriateError(f"{job} was asked to stop {seconds:.0f} s ago, and is still {details.status}")
            time.sleep(_POLL_S)  # the job API answers questions and tells nothing by itself
        return details, str(details.status) == "STOPPED"


def exit_code(details: JobDetails) -> int:
    """Return what the command itself ended with; 128 and the signal where one killed it, as a shell says it."""
    code = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED_CODE}.get(str(details.status), 1)


def ended(details: JobDetails) -> str:
    """Return `raysubmit_...: FAILED, exit code 2, 12 s`, and why where the command never ran."""
    line = f"{details.submission_id}: {details.status}, exit code {exit_code(details)}"
    if details.start_time is not None and details.end_time is not None:
        line += f", {(details.end_time - details.start_time) / 1000:.0f} s"
    if str(details.status) == "FAILED" and details.driver_exit_code is None and details.message:
        line += f"\n{details.message.strip()}"
    return line


@contextmanager
def _only(address: str) -> Generator[None]:
    """Ray lets this variable, or RAY_ADDRESS, override the address that it is given."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[_ADDRESS_VARIABLE]
        if before is not None:
            os.environ[_ADDRESS_VARIABLE] = before
