"""Names, variables and exit codes of jobs."""

from __future__ import annotations

import shlex
import time
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from cluster.submit import Submission, ended, exit_code, job_id, passed_on
from cluster.upload import Tree
from library.errors import UsageError


def test_a_job_is_named_for_what_it_does_and_when_and_is_unique() -> None:
    sent = time.struct_time((2026, 1, 31, 14, 25, 1, 5, 31, 0))
    first, second = job_id("filter", sent), job_id("filter", sent)
    assert first.startswith("filter-20260131-142501-")
    assert first != second


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "é", "x" * 64])
def test_a_name_must_do_in_a_url(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        job_id(name)


def test_a_shell_on_the_cluster_reads_the_words_as_they_were_written() -> None:
    words = ["filter", "s3://b/raw", "s3://b/x", "--steps", "grayscale | edges(direction='vertical')"]
    entrypoint = Submission(words, Tree("/", {}), "job").entrypoint
    assert entrypoint.startswith("striate filter s3://b/raw s3://b/x --steps ")
    assert shlex.split(entrypoint) == ["striate", *words]


def test_variables_go_along_only_when_told() -> None:
    here = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_PROFILE": "me", "A": "1", "B": "2"}
    assert passed_on([], aws=False, environment=here) == {}
    assert passed_on(["A", "C=x=y", "D="], aws=False, environment=here) == {"A": "1", "C": "x=y", "D": ""}
    assert passed_on([], aws=True, environment=here) == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}


@pytest.mark.parametrize(("written", "told"), [("E", "not set"), ("a-b=1", "NAME=VALUE"), ("A=$HOME", r"\$")])
def test_a_variable_that_would_not_arrive_is_refused(written: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        passed_on([written], aws=False, environment={})


def test_a_profile_is_no_key() -> None:
    with pytest.raises(UsageError, match="export-credentials"):
        passed_on([], aws=True, environment={"AWS_PROFILE": "me"})


def details(status: str, code: int | None = None, **more: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="job",
        status=JobStatus(status),
        entrypoint="striate",
        driver_exit_code=code,
        **more,
    )


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (details("SUCCEEDED", 0), 0),
        (details("FAILED", 2), 2),
        (details("FAILED", -9), 137),
        (details("FAILED", None), 1),
        (details("STOPPED", None), 130),
        (details("SUCCEEDED", None), 0),
    ],
)
def test_submit_ends_as_the_command_did(job: JobDetails, code: int) -> None:
    assert exit_code(job) == code


def test_why_a_command_never_ran_is_told() -> None:
    told = ended(details("FAILED", message="runtime_env setup failed", start_time=1000, end_time=13_000))
    assert told == "job: FAILED, exit code 1, 12 s\nruntime_env setup failed"
