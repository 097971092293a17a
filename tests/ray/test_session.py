"""A process that is connected already."""

from __future__ import annotations

import pytest
import ray

from cluster.session import connect
from library.errors import UsageError


def test_another_address_than_the_connected_one_is_refused() -> None:
    refused = r"--address 127.0.0.1:9: this process is connected to Ray at .+ already"
    with pytest.raises(UsageError, match=refused), connect("127.0.0.1:9"):
        pass
    with connect(ray.get_runtime_context().gcs_address) as session:
        assert session.cpus == 2
