"""Starts the workers' process group of torch.distributed, listening only at the address that each node has in Ray.

By default, PyTorch's store listens on every interface of a machine without a key. Gloo listens at the address of the
host's name, which on many machines (Debian's, for one) is 127.0.1.1, where no other machine reaches it. NCCL chooses a
network interface itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from library.errors import StriateError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_SHUTDOWN_S = 30
#: Linux's request for the IPv4 address of an interface; the address begins at byte 20 of the reply.
_SIOCGIFADDR, _NAME_BYTES, _REQUEST_BYTES, _ADDRESS_AT = 0x8915, 16, 256, 20

#: The first worker's store, which lives in its process as long as the group.
_stores: list[TCPStore] = []


class _CurrentDevice:
    """Makes the worker's GPU, if it has one, the current device of CUDA while the training function runs."""

    def __enter__(self) -> None:
        import torch

        if torch.cuda.is_available():
            from ray.train.torch import get_device

            device = get_device()
            if device.type == "cuda":
                torch.cuda.set_device(device)

    def __exit__(self, *_: object) -> None: ...


@dataclass
class NodeGroupConfig(BackendConfig):
    """Configures workers of PyTorch that listen at their nodes' addresses only.

    Takes the place of Ray Train's `TorchConfig`, with which the driver and Ray Train's controller would import torch;
    that takes seconds of each before a worker is started.

    Attributes:
        timeout_s: seconds after which an operation of the group fails.
    """

    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The class that starts and ends the workers' process group."""
        return _NodeBackend

    @property
    def train_func_context(self) -> type[_CurrentDevice]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The context in which Ray Train calls the training function."""
        return _CurrentDevice


class _NodeBackend(Backend):
    """Takes the place of Ray Train's backend, which opens the store on all interfaces."""

    #: A worker sees the GPUs of all workers of its node, as in Ray Train's backend: NCCL connects them directly.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, NodeGroupConfig)
        size, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        store = worker_group.execute_single(0, _open_store, size, timeout)
        joining = [
            worker_group.execute_single_async(rank, _join, backend, store, rank, size, timeout) for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        # A worker that waits for a lost one cannot leave the group; its process ends with the worker group.
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=_SHUTDOWN_S)


def _open_store(size: int, timeout: timedelta) -> tuple[str, int]:
    """Opens the store in the first worker; returns its host and port."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
        _stores[:] = [
            TCPStore(
                address,
                port,
                size,
                is_master=True,
                timeout=timeout,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        ]
    return address, port


def _join(backend: str, store: tuple[str, int], rank: int, size: int, timeout: timedelta) -> None:
    from torch.distributed import TCPStore, init_process_group  # pyright: ignore[reportPrivateImportUsage]

    if "gloo" in backend and _GLOO_INTERFACE not in os.environ:
        address = ray.util.get_node_ip_address()
        name = interface_with(address)
        if name is not None:
            os.environ[_GLOO_INTERFACE] = name
        elif size > 1 and sys.platform.startswith("linux"):
            raise StriateError(
                f"no network interface of this node has {address}, its address in Ray, as its first IPv4 address; set "
                f"{_GLOO_INTERFACE} on each node to the interface by which other nodes reach it"
            )
    process_store = _stores[0] if rank == 0 else TCPStore(*store, size, timeout=timeout, wait_for_workers=False)
    init_process_group(backend, store=process_store, rank=rank, world_size=size, timeout=timeout)


def _leave() -> None:
    from torch.distributed import destroy_process_group

    destroy_process_group()


def interface_with(address: str) -> str | None:
    """Returns the network interface whose first IPv4 address is `address`; None if there is none, or not on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack(f"{_REQUEST_BYTES}s", name.encode()[: _NAME_BYTES - 1])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(reply[_ADDRESS_AT : _ADDRESS_AT + 4]) == address:
                return name
    return None
