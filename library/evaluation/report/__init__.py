"""A self-contained web page about a classifier, without scripts or external resources.

page = render(content)       # index.html
numbers = summary(content)   # the same numbers, for JSON
"""

from library.evaluation.report.content import Content, Counts, Subject, Throughput, account, leaks_line, speed, summary
from library.evaluation.report.page import PAGE, check_report, render

__all__ = [
    "PAGE",
    "Content",
    "Counts",
    "Subject",
    "Throughput",
    "account",
    "check_report",
    "leaks_line",
    "render",
    "speed",
    "summary",
]
