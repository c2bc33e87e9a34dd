"""The HTTP server: limits on heads and bodies, idle connections, draining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import MindWeaveError, RateLimited
from common.http import protocol
from common.http.body import read_body
from common.http.problems import problem
from common.http.server import HttpServer

pytestmark = pytest.mark.rpc

Handler = Callable[[Request], Awaitable[Response]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def app_of(handler: Handler) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await handler(Request(scope, receive, send))
        except MindWeaveError as error:
            response = problem(error, instance=scope["path"], correlation_id="c")
        await response(scope, receive, send)

    return app


@asynccontextmanager
async def serving(handler: Handler, drain: float = 1.0) -> AsyncIterator[tuple[str, int]]:
    server = HttpServer(app_of(handler), "127.0.0.1:0", drain=drain)
    host, _, port = (await server.start()).rpartition(":")
    yield host, int(port)
    await server.stop()


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(*address)
    yield reader, writer
    writer.close()


async def hello(_: Request) -> Response:
    return Response("hello")


async def answer_of(connection: Connection) -> tuple[int, dict[str, str], bytes]:
    reader, _ = connection
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    first, *lines = head.strip().split("\r\n")
    fields = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    return int(first.split(" ")[1]), fields, body


async def test_one_connection_carries_many_requests() -> None:
    async with serving(hello) as address, connected(address) as connection:
        for _ in range(3):
            connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await answer_of(connection))[0] == 200
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        for _ in range(5):
            assert (await answer_of(connection))[2] == b"hello"


async def test_an_address_that_is_taken_is_an_error() -> None:
    async with serving(hello) as (host, port):
        with pytest.raises(OSError, match="in use"):
            await HttpServer(app_of(hello), f"{host}:{port}").start()


async def test_ipv6_addresses_are_written_in_brackets() -> None:
    server = HttpServer(app_of(hello), "[::1]:0", drain=1)
    address = await server.start()
    assert address.startswith("[::1]:")
    await server.stop()
    await server.stop()


async def test_a_head_that_does_not_arrive_in_time_is_a_408(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    async with serving(hello) as address, connected(address) as connection:
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        status, fields, body = await answer_of(connection)
        assert (status, fields["connection"]) == (408, "close")
        assert json.loads(body)["code"] == "request_timeout"
        assert await connection[0].read() == b""


async def test_a_connection_on_which_nothing_comes_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    async with serving(hello) as address, connected(address) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_second_head_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    async with serving(hello) as address, connected(address) as connection:
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer_of(connection))[0] == 200
        await asyncio.sleep(0.4)
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert (await answer_of(connection))[0] == 408


async def test_a_body_that_does_not_arrive_in_time_is_a_408() -> None:
    async def read(request: Request) -> Response:
        return Response(await read_body(request, seconds=0.2))

    async with serving(read) as address, connected(address) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection[1].write(head + b"Content-Length: 10\r\n\r\n{")
        status, _, body = await answer_of(connection)
        assert (status, json.loads(body)["code"]) == (408, "request_timeout")


async def test_a_handler_says_which_bodies_it_takes() -> None:
    async def read(request: Request) -> Response:
        body = await read_body(
            request, limit=10, media_types=("application/x-protobuf",), encodings=("gzip",)
        )
        return Response(body)

    async with serving(read) as address, connected(address) as connection:

        async def status_of(body: bytes, kind: str, more: str = "") -> int:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}"
            connection[1].write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            return (await answer_of(connection))[0]

        assert await status_of(b"0123456789", "application/x-protobuf") == 200
        assert await status_of(b"0123456789a", "application/x-protobuf") == 413
        assert await status_of(b"{}", "application/json") == 415
        zstd = "Content-Encoding: zstd\r\n"
        assert await status_of(b"{}", "application/x-protobuf", zstd) == 415
        assert await status_of(b"", "text/plain") == 200


class Shelf:
    """Room for ten bytes."""

    def __init__(self) -> None:
        self.taken = 0

    def expect(self, size: int) -> None:
        if self.taken + size > 10:
            raise RateLimited("No room.", retry_after=1.0)

    def take(self, size: int) -> None:
        self.expect(size)
        self.taken += size


async def test_a_body_for_which_there_is_no_room_is_refused_before_a_byte_of_it_came() -> None:
    shelf = Shelf()

    async def read(request: Request) -> Response:
        return Response(await read_body(request, room=shelf))

    async with serving(read) as address, connected(address) as connection:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection[1].write(head + b"Content-Length: 11\r\n\r\n")
        assert ((await answer_of(connection))[0], shelf.taken) == (429, 0)
    async with serving(read) as address, connected(address) as connection:
        connection[1].write(head + b"Content-Length: 8\r\n\r\n12345678")
        assert ((await answer_of(connection))[0], shelf.taken) == (200, 8)
        chunked = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        connection[1].write(head + chunked)
        assert ((await answer_of(connection))[0], shelf.taken) == (429, 8)


async def test_a_body_that_nobody_read_is_read_away_and_the_connection_lives_on() -> None:
    async with serving(hello) as address, connected(address) as connection:
        connection[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await answer_of(connection))[0] == 200
        connection[1].write(b"x" * 1_000_000 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer_of(connection))[0] == 200


async def test_a_body_that_nobody_read_and_that_does_not_end_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    async with serving(hello) as address, connected(address) as connection:
        connection[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        assert (await answer_of(connection))[0] == 200
        assert await asyncio.wait_for(connection[0].read(), 10) == b""


async def test_stopping_lets_an_open_request_end_and_takes_no_other() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> Response:
        entered.set()
        await leave.wait()
        return Response("done")

    server = HttpServer(app_of(slow), "127.0.0.1:0", drain=5)
    host, _, port = (await server.start()).rpartition(":")
    idle = await asyncio.open_connection(host, int(port))
    async with connected((host, int(port))) as connection:
        connection[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        stopping = asyncio.create_task(server.stop())
        assert await asyncio.wait_for(idle[0].read(), 10) == b""
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection(host, int(port))
        leave.set()
        status, fields, body = await answer_of(connection)
        assert (status, fields["connection"], body) == (200, "close", b"done")
        await stopping
    idle[1].close()


async def test_the_address_of_the_client_comes_from_a_trusted_proxy_alone() -> None:
    async def address(request: Request) -> Response:
        return Response(request.client.host if request.client else "")

    seen = []
    for trusted in ((), ("127.0.0.1",), ("10.0.0.0/8",)):
        server = HttpServer(app_of(address), "127.0.0.1:0", drain=1, trusted_proxies=trusted)
        host, _, port = (await server.start()).rpartition(":")
        async with connected((host, int(port))) as connection:
            connection[1].write(
                b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.9, 203.0.113.7\r\n\r\n"
            )
            seen.append((await answer_of(connection))[2])
        await server.stop()
    assert seen == [b"127.0.0.1", b"203.0.113.7", b"127.0.0.1"]
