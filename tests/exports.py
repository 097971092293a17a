"""Exports to the formats of other tools, without Ray."""

from __future__ import annotations

from pathlib import Path

from jobs.exchange.convert import ConvertResults, plan_convert
from library.exchange.exports import ExportRecord, Target, claim_export
from library.exchange.finishing import finish_export


def convert(source: str, destination: Path, to: Target, *, overwrite: bool = False) -> ExportRecord:
    """Converts without Ray."""
    plan = plan_convert(source, str(destination), to, overwrite=overwrite)
    claim_export(plan.destination, list(plan.jobs), overwrite=overwrite)
    results = ConvertResults()
    for task in results.resume(plan):
        results.add(task, plan.work.run(task, lambda _: None).model_dump_json())
    return finish_export(plan.destination, plan.jobs, to, plan.work.classes, results.totals)
