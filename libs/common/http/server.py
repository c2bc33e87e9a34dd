"""The HTTP server of a process."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from common.http.connections import Connections
from common.http.protocol import CLIENT_FAULTS, BoundedProtocol
from common.settings import parse_address

CONNECTIONS = 4000
UNREAD_SECONDS = 30
_IDLE_SECONDS = 75
_BACKLOG = 1024
# For databases, brokers, calls and files beside the clients' connections.
_OTHER_DESCRIPTORS = 256


class HttpServer:
    """Serves an ASGI app in the running event loop.

    Args:
        app: usually an ``Edge``.
        listen: "host:port"; port 0 takes a free one.
        drain: seconds that open requests have to end after ``stop``.
        trusted_proxies: addresses or networks whose X-Forwarded-For names the client.
        connections: how many are open at once, as far as the process may have so many files open.
    """

    def __init__(
        self,
        app: ASGIApp,
        listen: str,
        *,
        drain: float = 20.0,
        trusted_proxies: Sequence[str] = (),
        connections: int = CONNECTIONS,
    ) -> None:
        self._listen = listen
        among = Connections(min(connections, _room_for_connections()))
        logging.getLogger(CLIENT_FAULTS).setLevel(logging.ERROR)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=cast(Any, partial(BoundedProtocol, connections=among)),
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=round(drain),
                reset_contextvars=True,
            )
        )
        self._socket: socket.socket | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen.

        Returns:
            The address that was taken, "host:port".

        Raises:
            OSError: it cannot be taken.
        """
        host, port = parse_address(self._listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        _give_up_unread(self._socket)
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._socket])
        self._ticking = asyncio.create_task(self._server.main_loop())
        taken = self._socket.getsockname()[1]
        return f"[{host}]:{taken}" if ":" in host else f"{host}:{taken}"

    async def stop(self) -> None:
        """Take no new connection, let open requests end, close."""
        if self._ticking is None or self._socket is None:
            return
        self._server.should_exit = True
        await self._ticking
        self._ticking = None
        await self._server.shutdown(sockets=[self._socket])


def _room_for_connections() -> int:
    """How many the process may have open once it takes all the descriptors it is allowed."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(most - _OTHER_DESCRIPTORS, most // 2)


def _give_up_unread(listening: socket.socket) -> None:
    """A client that takes nothing of its answer for so long loses its connection (Linux)."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        listening.setsockopt(socket.IPPROTO_TCP, option, UNREAD_SECONDS * 1000)
