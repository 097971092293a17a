"""`striate submit`, `striate jobs`, `striate logs` and `striate stop`: commands as jobs of a cluster."""

from __future__ import annotations

import json as json_lines
import shlex
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cluster.console import Terminal, say
from cluster.options import Json
from cluster.ray_token import find_token
from library.errors import StriateError

if TYPE_CHECKING:  # they import Ray, sooner or later
    from ray.job_submission import JobDetails

    from cluster.submit import Jobs

_PIPED_WIDTH = 200

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
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job, as `striate jobs` shows it.")]


def submit_command(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="Any striate command, after two dashes.")],
    address: JobAddress = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id, and do not wait for it.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Variable that the job gets; may be given several times."),
    ] = None,
    aws: Annotated[
        bool,
        typer.Option(
            "--aws", help="Give the job the AWS keys and endpoint of this shell; whoever lists jobs can read them."
        ),
    ] = False,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Run a striate command on a cluster: send this folder, follow the log, end with the command's own exit code.

    The current folder is what the command runs in; what .gitignore and .rayignore name stays here, and so do pictures
    and shards, which belong in a bucket. Ctrl-C asks whether to stop the job; without a terminal it goes on.

        striate submit --address http://head:8265 -- filter s3://b/raw s3://b/edges --steps "edges"

        striate submit --detach -- train jobs/recipes/lenet-mnist.yaml --out s3://b/lenet --workers 4
    """
    from cluster import inner_command
    from cluster.submit import Jobs, find_address, passed_on
    from cluster.upload import working_tree

    inner = inner_command.parse(context.find_root(), command)
    environment = passed_on(env or (), aws=aws)
    where, token = find_address(address), find_token(token_file)
    tree = working_tree(".")
    inner_command.check(inner, tree)
    jobs = Jobs(where, token)
    job = jobs.submit(inner.entrypoint, tree, environment)
    _tell(f"{job}: {len(tree.files):,} files, {tree.bytes / 1e6:.1f} MB, sent to {jobs.address}")
    if not detach:
        _end_with(jobs, job, json)
    say(json_lines.dumps({"id": job, "address": jobs.address, "command": inner.entrypoint}) if json else job)
    _tell(_handles(jobs, job))


def jobs_command(address: JobAddress = None, token_file: TokenFile = None, json: Json = False) -> None:
    """List the jobs of a cluster, the latest first.

    striate jobs --address http://head:8265
    """
    rows = [_document(job) for job in _jobs(address, token_file).all()]
    if json:
        say(json_lines.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    # Whole, however narrow the terminal is: `striate logs` wants it.
    table.add_column("id", no_wrap=True, min_width=max((len(row["id"]) for row in rows), default=2))
    for heading in ("status", "exit code", "started", "seconds"):
        table.add_column(heading, justify="right" if heading in ("exit code", "seconds") else "left", no_wrap=True)
    table.add_column("command")
    for row in rows:
        cells = (row["id"], row["status"], row["exit_code"], row["started"], row["seconds"], row["command"])
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
    console = Terminal()
    # Who reads a pipe has room for all of it.
    console.print(table, width=None if console.is_terminal else _PIPED_WIDTH)


def logs_command(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job ends, and end with its exit code.")] = False,
    address: JobAddress = None,
    token_file: TokenFile = None,
) -> None:
    """Print what a job has written.

    striate logs raysubmit_4LamXRuQpYdSMg7J --follow
    """
    jobs = _jobs(address, token_file)
    if follow:
        _end_with(jobs, job, as_json=False)
    say(_lines(jobs.log(job)), end="")


def stop_command(job: JobId, address: JobAddress = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Stop a job as Ctrl-C would: finished work is kept, and the same command resumes it.

    striate stop raysubmit_4LamXRuQpYdSMg7J
    """
    from cluster.submit import ended

    details, by_us = _jobs(address, token_file).stop(job)
    if json:
        say(json_lines.dumps(_document(details) | {"stopped": by_us}))
    else:
        say(ended(details) if by_us else f"{job} had ended already: {details.status}")


def _jobs(address: str | None, token_file: str | None) -> Jobs:
    from cluster.submit import Jobs, find_address

    return Jobs(find_address(address), find_token(token_file))


def _end_with(jobs: Jobs, job: str, as_json: bool) -> NoReturn:
    """Follow a job to its end, and end as it did."""
    from cluster.submit import Lost, ended, exit_code

    out = sys.stderr if as_json else sys.stdout
    try:
        details = jobs.follow(job, lambda piece: say(_lines(piece), file=out, end="", flush=True), _tell)
    except KeyboardInterrupt:
        _interrupted(jobs, job)
        raise typer.Exit(130) from None
    except Lost as error:
        raise StriateError(f"{error}\n{job} may go on there\n{_handles(jobs, job)}") from error
    if as_json:
        say(json_lines.dumps(_document(details)))
    _tell(ended(details))
    raise typer.Exit(exit_code(details))


def _interrupted(jobs: Jobs, job: str) -> None:
    from cluster.submit import ended

    if sys.stdin.isatty() and sys.stderr.isatty():
        try:
            stops = typer.confirm(f"\nStop the job {job} too?", default=False, err=True)
        except (typer.Abort, KeyboardInterrupt):
            stops = False
        if stops:
            _tell(ended(jobs.stop(job)[0]))
            return
    _tell(f"{job} goes on there\n{_handles(jobs, job)}")


def _handles(jobs: Jobs, job: str) -> str:
    where = f"--address {shlex.quote(jobs.address)}"
    return f"  follow it: striate logs {job} --follow {where}\n  stop it:   striate stop {job} {where}"


def _lines(log: str) -> str:
    return log.replace("\r\n", "\n").replace("\r", "\n")


def _document(details: JobDetails) -> dict[str, Any]:
    from cluster.submit import exit_code

    ended = details.status.is_terminal()
    start, end = details.start_time, details.end_time
    return {
        "id": details.submission_id,
        "status": str(details.status),
        "exit_code": exit_code(details) if ended else None,
        "started": None if start is None else datetime.fromtimestamp(start / 1000, UTC).isoformat(timespec="seconds"),
        "seconds": round((end - start) / 1000, 1) if start is not None and end is not None else None,
        "command": details.entrypoint,
    }


def _tell(line: str) -> None:
    say(line, file=sys.stderr, flush=True)
