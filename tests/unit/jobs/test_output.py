"""Facts printed for people: counts, tables and lists as text, never as Python values."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("out/raw", "out/raw"),
        ({"cat": 2, "dog": 1000}, "dog 1,000, cat 2"),
        ({"out/raw": {"shards": 1, "pictures": 16}}, "out/raw: shards 1, pictures 16"),
        (["url", "licence"], "url, licence"),
        ([], "none"),
        ({"epoch": 3, "val_loss": 0.123456789}, "epoch: 3, val_loss: 0.1235"),
    ],
)
def test_a_fact_is_printed_as_text(value: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.facts({"some_name": value}, as_json=False)
    assert capsys.readouterr().out == f"{'some name':16} {text}\n"
