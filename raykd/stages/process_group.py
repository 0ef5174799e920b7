"""How the workers of a training find each other: over the interface that their nodes joined Ray with.

Gloo asks what the machine's own name means, and where that is 127.0.1.1, as Debian and Ubuntu install it, workers on
two nodes would never meet.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

SIOCGIFADDR = 0x8915  # Linux' own question


class OverRaysInterface(TorchConfig):
    """Ray Train's process group, whose CPU half listens on the interface with the node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return ByAddress


class ByAddress(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def name_interface() -> None:
    """Tell gloo its interface, unless the user has; in each worker, before its process group is made."""
    import ray.util

    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_of(ray.util.get_node_ip_address())):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_of(address: str) -> str | None:
    """The name of this machine's interface with that IPv4 address, such as eth0; None when there is none.

    Example:
        >>> interface_of("127.0.0.1")
        'lo'
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without such an address
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
