"""A self-contained web page about a classifier, without scripts or external resources.

    from library.evaluation.report.content import summary
    from library.evaluation.report.page import render

    page = render(content)       # index.html
    numbers = summary(content)   # the same numbers, for JSON

Nothing is imported here: `templates`, which pages of other subjects use, needs no package of an extra.
"""
