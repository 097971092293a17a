"""A striate command as a job of a cluster: sent with the working tree, followed, and ended with its own exit code.

On the cluster the command is run as `striate ...`, as the jobs of Kubernetes are. Ray unpacks the tree on every node,
makes it the current folder, and puts it first in PYTHONPATH: before the packages that are installed there, for the
command and for Ray's workers alike. So the code that was sent is the code that runs, and the installed one gives its
dependencies, its version, and the command itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.job_server import JobServer, Lost
from cluster.upload import Tree
from library.errors import StriateError, UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

#: Passed on by `--aws`, where they are set. A profile is a file of this machine, and stays here.
AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_DISABLED"),
    *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
)

#: Ray reads these in the process that runs the command: it is stopped as by Ctrl-C, and may end its work.
_STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "15"}

#: Of a job that was stopped, as striate's own after Ctrl-C.
STOPPED_CODE = 130

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Silence after which the connection is tried, and the longest time that a cluster may be away.
_QUIET_S = 30
_AWAY_S = 300
_POLL_S = 0.5


@dataclass(frozen=True)
class Submission:
    """What is sent.

    Attributes:
        command: words of the striate command, without `striate`.
        tree: the folder it runs in.
        job: submission id, readable and unique.
        environment: variables of the job beside the cluster's own.
    """

    command: Sequence[str]
    tree: Tree
    job: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def entrypoint(self) -> str:
        return shlex.join(["striate", *self.command])


def job_id(name: str, now: time.struct_time | None = None) -> str:
    """`filter-20260131-142501-9f3a`: what it is, when it was sent (UTC), and four digits that make it unique.

    Raises:
        UsageError: when the name would not do in a URL and a file's name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name '{name}': up to 63 letters, digits, dots, - and _, a letter or digit first")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', now or time.gmtime())}-{secrets.token_hex(2)}"


def passed_on(names: Sequence[str], *, aws: bool, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the job: of this process by name, or written out as NAME=VALUE; with `aws` those of AWS.

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


def submit(server: JobServer, submission: Submission) -> None:
    """Upload the tree, where the cluster does not have it yet, and start the job.

    Raises:
        StriateError: when the cluster does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="striate-") as folder:
        archive = os.path.join(folder, "tree.zip")
        submission.tree.pack(archive)
        try:
            server.ask(
                lambda client: client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.job,
                    runtime_env={"working_dir": archive, "env_vars": _STOP | dict(submission.environment)},
                    metadata={"job_name": submission.job},
                )
            )
        except Lost:
            # The answer may have been lost, and not the request.
            try:
                server.details(submission.job)
            except StriateError:
                pass
            else:
                return
            raise


def follow(server: JobServer, job: str, write: Callable[[str], object], told: Callable[[str], None]) -> JobDetails:
    """Write the job's log as it grows, until the job has ended; a connection that is lost is made again.

    Args:
        server: the cluster.
        job: submission id.
        write: takes pieces of the log.
        told: takes what happens to the connection.

    Returns:
        The job as it ended.

    Raises:
        Lost: when the cluster is away for minutes; the job may go on there.
        Unknown: when there is no such job.
    """
    written = 0
    away_since: float | None = None

    async def tail() -> None:
        """The whole log is sent each time."""
        nonlocal written, away_since
        at = 0
        async for piece in _alive(server, job):
            away_since = None
            new = piece[max(0, written - at) :]
            at += len(piece)
            if new:
                write(new)
                written = at

    while True:
        try:
            with server.explained():
                asyncio.run(tail())
            details = server.details(job)
            away_since = None
            if details.status.is_terminal():
                return details
        except Lost as error:
            if away_since is None:
                away_since = time.monotonic()
                told(f"{error}; the job may go on, trying for {_AWAY_S} s")
            elif time.monotonic() - away_since > _AWAY_S:
                raise
        time.sleep(_POLL_S)  # the log may end before the job has its status


async def _alive(server: JobServer, job: str) -> AsyncIterator[str]:
    """Pieces of the log. Nothing tells of a connection that is dead, so after some silence the server is asked."""
    pieces = aiter(server.client.tail_job_logs(job))
    while True:
        waiting = asyncio.ensure_future(anext(pieces, None))
        while not (await asyncio.wait({waiting}, timeout=_QUIET_S))[0]:
            await asyncio.to_thread(server.details, job)
        piece = waiting.result()
        if piece is None:
            return
        yield piece


def stop(server: JobServer, job: str, seconds: float = 60) -> tuple[JobDetails, bool]:
    """Ask the job to stop, and wait until it has: it has 15 s, and is killed then.

    Returns:
        The job as it ended, and whether it was this that stopped it.

    Raises:
        Unknown: when there is no such job.
        StriateError: when it is still there after `seconds`.
    """
    details = server.details(job)
    if details.status.is_terminal():
        return details, False
    server.ask(lambda client: client.stop_job(job))
    end = time.monotonic() + seconds
    while not (details := server.details(job)).status.is_terminal():
        if time.monotonic() > end:
            raise StriateError(f"{job} was asked to stop {seconds:.0f} s ago, and is still {details.status}")
        time.sleep(_POLL_S)  # the job API answers questions and tells nothing by itself
    return details, str(details.status) == "STOPPED"


def exit_code(details: JobDetails) -> int:
    """What the command itself ended with; 128 and the signal where one killed it, as a shell says it."""
    code = details.driver_exit_code
    if code is not None:
        return code if code >= 0 else 128 - code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED_CODE}.get(str(details.status), 1)


def ended(details: JobDetails) -> str:
    """`filter-...: FAILED, exit code 2, 12 s`, and why where the command never ran."""
    line = f"{details.submission_id}: {details.status}, exit code {exit_code(details)}"
    if details.start_time is not None and details.end_time is not None:
        line += f", {(details.end_time - details.start_time) / 1000:.0f} s"
    if str(details.status) == "FAILED" and details.driver_exit_code is None and details.message:
        line += f"\n{details.message.strip()}"
    return line
