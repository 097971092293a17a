"""Which network interface the workers of a training are told to use."""

from __future__ import annotations

import sys

import pytest

from jobs.train.rendezvous import interface_with

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere Gloo decides")


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_with("127.0.0.1") == "lo"


def test_there_is_none_for_an_address_that_no_interface_has() -> None:
    assert interface_with("203.0.113.77") is None
