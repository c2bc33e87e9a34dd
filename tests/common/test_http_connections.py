"""How many connections a server keeps, which go for others, and what waits on one of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.http import protocol
from common.http import server as http_server
from common.http.connections import Connections
from common.http.server import HttpServer
from tests.common.waiting import eventually

pytestmark = pytest.mark.rpc

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


class Held:
    """An app whose requests wait until they are let go; a POST is answered with its body."""

    def __init__(self) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.held = b"held"
        self.seen: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        self.seen.append(dict(request.headers))
        body = await request.body() if request.method == "POST" else self.held
        self.entered.set()
        await self.leave.wait()
        await Response(body)(scope, receive, send)


@asynccontextmanager
async def serving(app: Held, connections: int) -> AsyncIterator[int]:
    server = HttpServer(app, "127.0.0.1:0", drain=1, connections=connections)
    yield int((await server.start()).rpartition(":")[2])
    await server.stop()


async def opened(stack: AsyncExitStack, port: int, sent: bytes = b"") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(sent)
    return reader


async def heard(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 10)


async def test_who_waits_longest_goes_for_another_one() -> None:
    app = Held()
    app.leave.set()
    async with serving(app, 2) as port, AsyncExitStack() as stack:
        first = await opened(stack, port)
        second = await opened(stack, port, GET)
        assert b"200 OK" in await second.readuntil(b"held")
        third = await opened(stack, port, GET)
        assert await heard(first) == b""
        assert b"200 OK" in await third.readuntil(b"held")


async def test_whoever_is_in_the_middle_of_a_request_is_told_that_it_was_too_slow() -> None:
    app = Held()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        for half in (GET[:-2], POST + b"Content-Length: 9\r\n\r\n{"):
            slow = await opened(stack, port, half)
            await opened(stack, port)
            assert (await heard(slow)).startswith(b"HTTP/1.1 408 ")


async def test_a_request_that_is_being_answered_never_goes() -> None:
    app = Held()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        working = await opened(stack, port, GET)
        await app.entered.wait()
        refused = await heard(await opened(stack, port, GET))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in refused
        app.leave.set()
        assert b"held" in await working.readuntil(b"held")
        assert b"held" in await (await opened(stack, port, GET)).readuntil(b"held")


async def test_only_so_many_requests_wait_for_the_answer_to_another() -> None:
    app = Held()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        reader = await opened(stack, port, GET * 1_000)
        await app.entered.wait()
        app.leave.set()
        answers = (await heard(reader)).count(b"HTTP/1.1 200 OK")
        assert answers == len(app.seen) == protocol.MOST_PIPELINED + 1


async def test_what_came_before_nonsense_is_answered_and_then_the_connection_ends() -> None:
    app = Held()
    app.leave.set()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        answer = await heard(await opened(stack, port, GET + b"nonsense\r\n\r\n" + GET))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer


async def test_a_body_that_turns_out_to_be_none_is_a_400() -> None:
    app = Held()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        sent = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nano chunk"
        head, _, body = (await heard(await opened(stack, port, sent))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["code"] == "malformed_request"


async def test_trailer_fields_are_no_header_fields() -> None:
    app = Held()
    app.leave.set()
    async with serving(app, 1) as port, AsyncExitStack() as stack:
        sent = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Late: b\r\n\r\n"
        await (await opened(stack, port, sent)).readuntil(b"\r\n\r\na")
        assert "x-late" not in app.seen[0]


async def test_empty_lines_do_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    app = Held()
    app.leave.set()
    async with serving(app, 1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for sent in (GET, b"\r\n", GET, b"\r\n"):
            writer.write(sent)
            if sent == GET:
                await reader.readuntil(b"held")
        assert await heard(reader) == b""
        writer.close()


async def test_a_client_that_takes_nothing_of_its_answer_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "UNREAD_SECONDS", 1)
    app = Held()
    app.leave.set()
    app.held = b"x" * 20_000_000
    async with serving(app, 1) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()
        writer.write(GET)
        await app.entered.wait()
        await eventually(lambda: _open(port) == 0)
        writer.transport.abort()


def _open(port: int) -> int:
    """How many connections a server of this process has there."""
    found = psutil.Process().net_connections("tcp")
    return sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in found)


class _Someone:
    def __init__(self) -> None:
        self.went = False

    def make_room(self) -> None:
        self.went = True


def test_a_connection_that_has_left_is_waited_for_no_more() -> None:
    connections = Connections(1)
    first, second = _Someone(), _Someone()
    assert connections.admit(first)
    connections.leave(first)
    connections.wait(first)
    assert connections.admit(second)
    assert (first.went, len(connections)) == (False, 1)
