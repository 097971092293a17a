"""`striate submit`, `striate jobs`, `striate logs` and `striate stop`: commands as jobs of a cluster."""

from __future__ import annotations

import json as json_lines
import shlex
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cluster.connection.token import find_token
from cluster.console import Json, say
from library.errors import StriateError

if TYPE_CHECKING:  # both import Ray
    from ray.job_submission import JobDetails

    from cluster.submit.client import Jobs

JobAddress = Annotated[
    str | None,
    typer.Option(
        help="Ray's dashboard, http://HOST:8265; RAY_API_SERVER_ADDRESS does the same.",
        show_default="http://127.0.0.1:8265",
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        help="File with the cluster's token. Default: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job, as `striate jobs` shows it.")]
_LINE = "{id:<26}  {status:<9}  {exit_code:>9}  {started:<25}  {seconds:>8}  {command}"


def submit_command(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Any striate command, after two dashes.")],
    address: JobAddress = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and do not wait for its end.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="Variable for the job, or a pattern such as 'AWS_*' for this shell's variables, except those that "
            "name files of this machine. Repeatable. Everyone who can list jobs can read the values.",
        ),
    ] = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Run a striate command on a cluster: upload this folder, follow the log, exit with the command's exit code.

    The command runs in the uploaded copy of the current folder, without the files that .gitignore and .rayignore name.
    More than 32 MiB are refused: data belongs in a bucket. Ctrl-C leaves the job running.

        striate submit --address http://head:8265 -- filter s3://b/raw s3://b/edges --steps "edges"

        striate submit --detach -- train jobs/recipes/lenet-mnist.yaml --out s3://b/lenet --workers 4
    """
    from cluster.submit import submitted_command
    from cluster.submit.client import Jobs, find_address, job_environment
    from cluster.submit.upload import working_tree

    inner = submitted_command.parse(context.find_root(), command)
    environment = job_environment(env or ())
    where, token = find_address(address), find_token(token_file)
    tree = working_tree(".")
    submitted_command.check(inner, tree)
    jobs = Jobs(where, token)
    job = jobs.submit(inner.entrypoint, tree, environment)
    _report(f"{job}: {len(tree.files):,} files, {tree.bytes / 1e6:.1f} MB, sent to {jobs.address}")
    if not detach:
        _end_with(jobs, job, json)
    say(json_lines.dumps({"id": job, "address": jobs.address, "command": inner.entrypoint}) if json else job)
    _report(_next_steps(jobs, job))


def jobs_command(address: JobAddress = None, token_file: TokenFile = None, json: Json = False) -> None:
    """List the jobs of a cluster, the latest first.

    striate jobs --address http://head:8265
    """
    jobs = [_document(job) for job in _jobs(address, token_file).all()]
    if json:
        say(json_lines.dumps(jobs, indent=1))
        return
    heading = {name: name.replace("_", " ") for name in ("id", "status", "exit_code", "started", "seconds", "command")}
    for job in (heading, *jobs):
        say(_LINE.format_map({name: "" if value is None else value for name, value in job.items()}))


def logs_command(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow the log until the job ends, and exit with its exit code.")
    ] = False,
    address: JobAddress = None,
    token_file: TokenFile = None,
) -> None:
    """Print the output of a job.

    striate logs raysubmit_4LamXRuQpYdSMg7J --follow
    """
    jobs = _jobs(address, token_file)
    if follow:
        _end_with(jobs, job, as_json=False)
    say(jobs.log(job), end="")


def stop_command(job: JobId, address: JobAddress = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Stop a job as Ctrl-C would: finished work is kept, and the same command resumes it.

    striate stop raysubmit_4LamXRuQpYdSMg7J
    """
    from cluster.submit.client import end_message

    details = _jobs(address, token_file).stop(job)
    say(json_lines.dumps(_document(details)) if json else end_message(details))


def _jobs(address: str | None, token_file: str | None) -> Jobs:
    from cluster.submit.client import Jobs, find_address

    return Jobs(find_address(address), find_token(token_file))


def _end_with(jobs: Jobs, job: str, as_json: bool) -> NoReturn:
    """Follows a job to its end, and exits with its exit code."""
    from cluster.submit.client import Lost, end_message, exit_code

    out = sys.stderr if as_json else sys.stdout
    try:
        details = jobs.follow(job, lambda piece: say(piece, file=out, end="", flush=True))
    except KeyboardInterrupt:
        _report(f"{job} is still running there\n{_next_steps(jobs, job)}")
        raise typer.Exit(130) from None
    except Lost as error:
        raise StriateError(f"{error}\n{job} may still be running there\n{_next_steps(jobs, job)}") from error
    if as_json:
        say(json_lines.dumps(_document(details)))
    _report(end_message(details))
    raise typer.Exit(exit_code(details))


def _next_steps(jobs: Jobs, job: str) -> str:
    where = f"--address {shlex.quote(jobs.address)}"
    return f"  follow it: striate logs {job} --follow {where}\n  stop it:   striate stop {job} {where}"


def _document(details: JobDetails) -> dict[str, Any]:
    from cluster.submit.client import exit_code

    start, end = details.start_time, details.end_time
    return {
        "id": details.submission_id,
        "status": str(details.status),
        "exit_code": exit_code(details) if details.status.is_terminal() else None,
        "started": None if start is None else datetime.fromtimestamp(start / 1000, UTC).isoformat(timespec="seconds"),
        "seconds": round((end - start) / 1000, 1) if start is not None and end is not None else None,
        "command": details.entrypoint,
    }


def _report(line: str) -> None:
    say(line, file=sys.stderr, flush=True)
