"""Ports of the loopback interface that nothing listens on now."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

HOST = "127.0.0.1"
# Below the range from which systems choose ports for clients, so that none of them sits there.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """One that the system chooses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def free_ports(neighbours: int = 0) -> Iterator[int]:
    """Those of ``PORTS``, each once, from anywhere on.

    Args:
        neighbours: how many ports after each are free as well.

    Raises:
        OSError: there are no more.
    """
    first = secrets.randbelow(len(PORTS))
    for port in (*PORTS[first:], *PORTS[:first]):
        if all(is_free(port + more) for more in range(neighbours + 1)):
            yield port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
