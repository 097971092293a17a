"""What an autoscaler may bring, as the environment says it."""

from __future__ import annotations

import pytest

from cluster.nodes import VARIABLE, autoscaled
from library.errors import UsageError


def test_each_node_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert autoscaled() == []
    monkeypatch.setenv(VARIABLE, '[{"count": 2, "CPU": 7}, {"count": 1, "CPU": 8, "GPU": 1, "memory": 5e10}]')
    assert autoscaled() == [{"CPU": 7.0}, {"CPU": 7.0}, {"CPU": 8.0, "GPU": 1.0, "memory": 5e10}]


@pytest.mark.parametrize("text", ["many", "{}7", '{"count": 2}', '[{"CPU": 7}]', '[{"count": 1, "CPU": "all"}]', "[3]"])
def test_what_cannot_be_read_is_told_with_an_example(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=f"{VARIABLE} is not as it should be.*an example"):
        autoscaled()
