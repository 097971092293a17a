"""The report on the figures of a benchmark: goals, and tables on stdout."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.measuring import RATE, STEADY

_REACHED = {True: "yes", False: "NO", None: ""}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns minimum, median and maximum, rounded to four digits."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def goal(
    what: str,
    values: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    judged_by: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, Any]:
    """Returns the entry of one comparison in the result: what is compared, the goal, the values and `reached`.

    Args:
        what: description of the comparison.
        values: one for each round; empty where it was not measured.
        at_least: the goal; with neither this nor `at_most` there is none.
        at_most: the goal, as an upper limit.
        judged_by: returns the value that is compared with the goal.

    Returns:
        `what`, `at_least` or `at_most`, `ratio` (the spread of the values, or None), `reached` (None without a goal or
        without values).
    """
    bound = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
    reached = None
    if values and at_most is not None:
        reached = judged_by(values) <= at_most
    elif values and at_least is not None:
        reached = judged_by(values) >= at_least
    return {"what": what, **bound, "ratio": spread(values) if values else None, "reached": reached}


def summary(what: str, rounds: Sequence[Mapping[str, Any]] | str) -> dict[str, Any]:
    """Returns one contestant's entry in the result: its rates over the rounds, and each round as measured."""
    if isinstance(rounds, str):
        return {"what": what, "not_run": rounds}
    steady = [figures[STEADY] for figures in rounds if figures.get(STEADY)]
    return {
        "what": what,
        RATE: spread([figures[RATE] for figures in rounds]),
        **({STEADY: spread(steady)} if steady else {}),
        "rounds": [dict(figures) for figures in rounds],
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> None:
    """Prints a table on stdout.

    Args:
        title: line above the table; none where it is empty.
        columns: titles of the columns.
        rows: texts and numbers; None leaves a cell empty, and a float is shown with four significant digits.
        left: number of columns whose text begins at the left; numbers end at the right.
    """
    table = Table(box=None, pad_edge=False, title=f"\n{title}" if title else None, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*map(_text, row))
    Console(width=140, highlight=False, markup=False).print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return "" if value is None else str(value)


def print_goals(goals: Sequence[Mapping[str, Any]]) -> None:
    """Prints the entries of `goal` that have values."""
    rows: list[Sequence[str]] = []
    for goal in goals:
        if goal["ratio"] is not None:
            least, most = goal.get("at_least"), goal.get("at_most")
            bound = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else ""
            spread = (f"{goal['ratio'][name]:.2f}" for name in ("min", "median", "max"))
            rows.append((goal["what"], *spread, bound, _REACHED[goal["reached"]]))
    if rows:
        print_table("comparisons, over the rounds", ("", "min", "median", "max", "goal", "reached"), rows)


def median_of(rounds: Sequence[Mapping[str, Any]], figure: str, digits: int) -> str:
    """Returns the median of one figure over the rounds in which it was measured, as text; empty if in none."""
    values = [figures[figure] for figures in rounds if figures.get(figure) is not None]
    return f"{statistics.median(values):,.{digits}f}" if values else ""


def print_rounds(result: Mapping[str, Any]) -> None:
    """Prints the goals, and all figures of each contestant as medians over the rounds."""
    rows = [
        (name, figure, median_of(rounds, figure, 4))
        for name, rounds in result["contestants"].items()
        for figure in rounds[0]
    ]
    print_table("", ("contestant", "figure", "median"), rows, left=2)
    print_goals(result["goals"])
