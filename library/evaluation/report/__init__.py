"""A self-contained web page about a classifier: no script, nothing fetched from anywhere.

page = render(content)       # index.html
numbers = summary(content)   # the same numbers, for JSON
"""

from library.evaluation.report.content import Content, Counts, Subject, account, speed, summary
from library.evaluation.report.page import render

__all__ = ["Content", "Counts", "Subject", "account", "render", "speed", "summary"]
