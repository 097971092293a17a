"""Labels of metrics, gauges, and metrics that Ray refuses."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.instruments import Counter, Gauge, Histogram, label_value


@given(st.text(st.characters(exclude_categories=[])))
def test_a_label_is_printable_ascii_and_can_be_decoded(text: str) -> None:
    label = label_value(text)
    assert label.isascii()
    assert label.isprintable()
    assert unquote(label, errors="surrogatepass") == text


@pytest.mark.parametrize(
    ("text", "label"),
    [("cat", "cat"), ("(other)", "(other)"), ("Kätzchen", "K%C3%A4tzchen"), ("犬", "%E7%8A%AC"), ("100%", "100%25")],
)
def test_plain_names_stay_and_others_are_percent_encoded(text: str, label: str) -> None:
    assert label_value(text) == label


def test_a_gauge_is_read_again_each_time_and_missing_labels_end() -> None:
    values = {"old": 1.0, "new": 2.0}
    reads: list[dict[str, float]] = []

    def read() -> list[tuple[dict[str, str], float]]:
        reads.append(dict(values))
        return [({"label": name}, value) for name, value in values.items()]

    gauge = Gauge("striate_tested", "a test", ("label",), read=read)
    gauge.repeat()
    del values["old"]
    gauge.repeat()
    assert reads == [{"old": 1.0, "new": 2.0}, {"new": 2.0}]


def test_a_metric_that_ray_refuses_is_logged_once_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    counter, gauge = Counter("striate_tested", "a test", ("label",)), Gauge("striate_tested_too", "a test", ())
    for _ in range(3):
        counter.add(1)  # without its label
        gauge.set("many")  # pyright: ignore[reportArgumentType]
    Histogram("striate_tested_last", "a test", (), [-1.0]).observe(1)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        "striate_tested",
        "striate_tested_too",
        "striate_tested_last",
    ]
