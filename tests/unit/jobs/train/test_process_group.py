"""The network interface that Gloo uses in training workers."""

from __future__ import annotations

import sys

import pytest

from jobs.train.process_group import interface_with

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="on other systems Gloo chooses")


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_with("127.0.0.1") == "lo"


def test_an_unknown_address_has_no_interface() -> None:
    assert interface_with("203.0.113.77") is None
