"""The HTTP server of a process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.errors import MindWeaveError
from common.http.problems import HeadersTooLarge, MalformedRequest, RequestTimeout, problem
from common.ids import uuid7
from common.settings import parse_address

HEADER_BYTES = 32 * 1024
HEADER_FIELDS = 100
HEADER_SECONDS = 10.0
LINGER_SECONDS = 3.0
LINGER_BYTES = 64 * 1024 * 1024
_IDLE_SECONDS = 75
_BACKLOG = 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits on what a client may send and how slowly.

    A request's head has ``HEADER_BYTES`` and ``HEADER_SECONDS``. A body that still arrives when its
    answer has been sent is read away for a moment, so that the client sees the answer, not a reset.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_message = False
        self._partial_bytes = 0
        self._field_bytes = 0
        self._spare_bytes = 0
        self._refusal: MindWeaveError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._arm(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_in_head = self._in_head
        super().data_received(data)
        if began_in_head and self._in_head and not self.transport.is_closing():
            self._partial_bytes += len(data)
            if self._partial_bytes > HEADER_BYTES:
                self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._partial_bytes = self._field_bytes = self._spare_bytes = 0
        self._arm(HEADER_SECONDS)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            super().on_body(body)
            return
        self._spare_bytes += len(body)
        if self._spare_bytes > LINGER_BYTES:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and self.cycle.response_complete:
            self._arm(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedRequest("This is no valid HTTP request."))

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > HEADER_BYTES or len(self.headers) > HEADER_FIELDS:
            self._refusal = HeadersTooLarge()
            raise self._refusal

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._in_head and self._in_message:
            self._refuse(RequestTimeout("The header fields did not arrive in time."))
        else:
            self.transport.close()

    def _refuse(self, error: MindWeaveError) -> None:
        """Answer what never became a request, and close."""
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            answer = problem(error, instance="", correlation_id=str(uuid7()))
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
            fields = [b"%s: %s\r\n" % field for field in answer.raw_headers]
            self.transport.write(
                b"".join([head, *fields, b"connection: close\r\n\r\n", bytes(answer.body)])
            )
        self.transport.close()


class HttpServer:
    """Serves an ASGI app in the running event loop.

    Args:
        app: usually an ``Edge``.
        listen: "host:port"; port 0 takes a free one.
        drain: seconds that open requests have to end after ``stop``.
        trusted_proxies: addresses or networks whose X-Forwarded-For names the client.
    """

    def __init__(
        self,
        app: ASGIApp,
        listen: str,
        *,
        drain: float = 20.0,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        self._listen = listen
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
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
