"""What shard reports say together."""

from __future__ import annotations

import random

from library.dataset.manifest import REJECTS, FileEntry, ShardReport, Tally
from library.dataset.totals import Totals


def _report(number: int) -> ShardReport:
    stem, classes = f"part-{number:06d}", {f"class {number % 7}": 3, "every": 1}
    rejects = FileEntry(name=f"{REJECTS}/{stem}.parquet", rows=1, bytes=9, digest="r") if number % 5 == 0 else None
    return ShardReport(
        stem=stem,
        input_digest="i",
        work_digest="w",
        output=FileEntry(name=f"{stem}.parquet", rows=4, bytes=number, digest="o"),
        rejects=rejects,
        tally=Tally(rows_in=6, rows_out=4, dropped={"blank": 1}, rejected={"truncated": 1}, classes=classes),
        seconds={"read": 0.25, "write": 0.5},
    )


def test_the_sum_is_that_of_all_reports_whatever_their_number_and_order() -> None:
    reports = [_report(number) for number in range(1000)]
    random.Random(7).shuffle(reports)
    made = Totals.of(reports)
    in_order = sorted(reports, key=lambda report: report.stem)
    assert made.shards == 1000
    assert made.tally == Tally.total(report.tally for report in reports)
    assert made.outputs == [report.output for report in in_order]
    assert made.rejects == [report.rejects for report in in_order if report.rejects]
    assert made.seconds == {"read": 250, "write": 500}
    assert made.histograms is None


def test_nothing_adds_up_to_nothing() -> None:
    made = Totals()
    assert (made.shards, made.tally, made.outputs, made.rejects) == (0, Tally(), [], [])
