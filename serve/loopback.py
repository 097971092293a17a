"""Serve's own ports, kept to this machine where Ray is."""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica


def keep_to_loopback() -> None:
    """Called in a replica before it is ready: Serve then opens a port for calls between deployments, on all interfaces
    whatever the host (ray 2.60, `[::]:0`), and has no setting for it. Where Ray's address is this machine's own, as of
    a Ray that `striate serve` starts, nobody else has any business there."""
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    serve_replica: Any = replica
    add_port = serve_replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    serve_replica.add_port_to_grpc_server = add_loopback_port
