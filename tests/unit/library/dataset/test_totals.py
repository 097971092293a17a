"""The sum of shard reports."""

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


def test_totals_are_the_sum_of_all_reports_in_any_order() -> None:
    reports = [_report(number) for number in range(1000)]
    random.Random(7).shuffle(reports)
    totals = Totals.of(reports)
    in_order = sorted(reports, key=lambda report: report.stem)
    assert totals.shards == 1000
    assert totals.tally == Tally.total(report.tally for report in reports)
    assert totals.outputs == [report.output for report in in_order]
    assert totals.rejects == [report.rejects for report in in_order if report.rejects]
    assert totals.seconds == {"read": 250, "write": 500}
    assert totals.histograms is None


def test_totals_of_no_reports_are_empty() -> None:
    totals = Totals()
    assert (totals.shards, totals.tally, totals.outputs, totals.rejects) == (0, Tally(), [], [])
