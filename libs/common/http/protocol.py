"""HTTP/1.1 on a connection, with limits on what a client may send, keep and leave unread."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import Any, Literal, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.errors import MindWeaveError, RateLimited, Unavailable
from common.http.body import BODY_SECONDS
from common.http.connections import Connections
from common.http.problems import (
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    TargetTooLong,
    problem,
)
from common.ids import uuid7

HEADER_BYTES = 32 * 1024
HEADER_FIELDS = 100
HEADER_SECONDS = 10.0
TARGET_BYTES = 8 * 1024
# As long as a body may take that is read; where others need the connection it goes before.
LINGER_SECONDS = BODY_SECONDS
LINGER_BYTES = 64 * 1024 * 1024
MOST_PIPELINED = 32
# uvicorn's line for each request that is none would let anybody fill the log.
CLIENT_FAULTS = "uvicorn.error.clients"

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_VERSIONS = ("1.0", "1.1")


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, stricter about HTTP and with limits.

    A request's head has ``HEADER_BYTES`` and ``HEADER_SECONDS``, its target ``TARGET_BYTES``; at
    most ``MOST_PIPELINED`` requests wait for the answer to another. Trailer fields are dropped. A
    body that still arrives when its answer has been sent is read away for a moment, so that the
    client sees the answer, not a reset.
    """

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger(CLIENT_FAULTS)
        self._among = connections
        self._stage: Literal["between", "head", "body"] = "between"
        self._done_reading = False
        self._partial_bytes = 0
        self._field_bytes = 0
        self._spare_bytes = 0
        self._refusal: MindWeaveError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if self._among.admit(self):
            self._arm(HEADER_SECONDS)
        else:
            self._refuse(Unavailable("Too many connections are open.", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.leave(self)
        self._disarm()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def make_room(self) -> None:
        self._close_for(RequestTimeout("Others waited for this connection."))

    def data_received(self, data: bytes) -> None:
        if self._done_reading or self.transport.is_closing():
            return
        began_in_body = self._stage == "body"
        super().data_received(data)
        if self._stage == "body" or self.transport.is_closing():
            return
        if self._stage == "head" and not began_in_body:
            self._partial_bytes += len(data)
            if self._partial_bytes > HEADER_BYTES:
                self._refuse(HeadersTooLarge())
        if self._timer is None and self._is_free():
            # Whatever it was began no request: empty lines, the rest of a body.
            self._arm(HEADER_SECONDS)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_PIPELINED:
            raise self._found(RateLimited("Too many requests wait on this connection."))
        super().on_message_begin()
        self._stage = "head"
        self._partial_bytes = self._field_bytes = self._spare_bytes = 0
        if self._is_free():
            self._among.wait(self)
        self._arm(HEADER_SECONDS)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > TARGET_BYTES:
            raise self._found(TargetTooLong(f"It may have {TARGET_BYTES} bytes at most."))
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == "head":
            super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._disarm()
        fault = self._fault()
        if fault:
            raise self._found(MalformedRequest(fault))
        super().on_headers_complete()
        self._stage = "body"
        if self.parser.should_upgrade():
            # What follows would be of the other protocol, which is not spoken here.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            super().on_body(body)
            return
        self._spare_bytes += len(body)
        if self._spare_bytes > LINGER_BYTES:
            self.transport.close()

    def on_message_complete(self) -> None:
        self._stage = "between"
        self._disarm()
        super().on_message_complete()
        if not self._is_free():
            self._among.work(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()
        if self._is_free():
            self._among.wait(self)
            if self._stage == "body":
                self._arm(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedRequest("This is no valid HTTP request."))

    def _is_free(self) -> bool:
        """Whether no request waits for its answer."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _found(self, refusal: MindWeaveError) -> MindWeaveError:
        self._refusal = refusal
        return refusal

    def _fault(self) -> str:
        """What makes a well-formed head no valid request (RFC 9112); empty for none."""
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            return "The version must be HTTP/1.1 or HTTP/1.0."
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (version == "1.1" and not hosts):
            return "There must be one Host field."
        if not all(_HOST.fullmatch(host) for host in hosts):
            return "The Host field is no host."
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            return "HTTP/1.0 has no Transfer-Encoding."
        return "The target must not have a fragment." if b"#" in self.url else ""

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > HEADER_BYTES or len(self.headers) > HEADER_FIELDS:
            raise self._found(HeadersTooLarge())

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self._is_free():
            self._close_for(RequestTimeout("The header fields did not arrive in time."))
        else:
            # Nothing is read while earlier requests wait for their answers.
            self._arm(HEADER_SECONDS)

    def _close_for(self, error: MindWeaveError) -> None:
        """Close; a client in the middle of a request is told why."""
        if self._stage == "between":
            self.transport.close()
        else:
            self._refuse(error)

    def _refuse(self, error: MindWeaveError) -> None:
        """Answer what never became a whole request, as far as HTTP allows that, and close."""
        if self._stage != "body" and not self._is_free():
            # What came before it is answered yet.
            self._done_reading = True
            self.cycle.keep_alive = False
            return
        if not self.transport.is_closing() and self._may_answer():
            answer = problem(error, instance="", correlation_id=str(uuid7()))
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
            fields = [b"%s: %s\r\n" % field for field in answer.raw_headers]
            self.transport.write(
                b"".join([head, *fields, b"connection: close\r\n\r\n", bytes(answer.body)])
            )
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether an answer to what is read now may come next on the connection."""
        if self._is_free():
            return self._stage != "body"
        if self.pipeline or self.cycle.response_started:
            return False
        # Its handler waits for the rest of the body; what it still says goes nowhere.
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True
