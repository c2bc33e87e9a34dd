"""Bytes on a socket, as no HTTP library would send them, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.own import GIVEN

PATIENCE = 45.0
# Of the address that was given, which may have to be named; the tests' own platform takes any.
HOST = f"Host: {urlsplit(os.environ.get(GIVEN, 'http://platform')).netloc}\r\n".encode()


@dataclass
class Answer:
    """One HTTP answer as it came."""

    status: int
    fields: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The problem that it tells, checked to be whole."""
        assert self.fields["content-type"] == "application/problem+json", self
        told: dict[str, Any] = json.loads(self.body)
        assert told["status"] == self.status, told
        assert {"type", "title", "detail", "code", "errors", "correlation_id"} <= told.keys()
        return told


@dataclass
class Heard:
    """Everything that a connection gave until the server closed it.

    Attributes:
        answers: in order; an answer 100 is left out.
        cut: whether the connection was reset rather than closed.
    """

    answers: list[Answer] = field(default_factory=list)
    cut: bool = False

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


async def talk(
    address: str, *parts: bytes, then: AsyncIterable[bytes] | None = None, close: bool = False
) -> Heard:
    """Send the parts, then what ``then`` gives, and listen until the server closes.

    Args:
        address: of the REST API.
        parts: sent at once.
        then: sent while answers are read; ends early where the server closes.
        close: end the client's half once all is sent.

    Raises:
        TimeoutError: the server left the connection open for longer than any of its limits.
    """
    reader, writer = await connect(address)
    sending = asyncio.create_task(_send(writer, parts, then, close=close))
    try:
        async with asyncio.timeout(PATIENCE):
            return await _hear(reader)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(address)
    return await asyncio.open_connection(where.hostname, where.port)


async def _send(
    writer: asyncio.StreamWriter,
    parts: Iterable[bytes],
    then: AsyncIterable[bytes] | None,
    *,
    close: bool,
) -> None:
    writer.writelines(parts)
    await writer.drain()
    if then is not None:
        async for part in then:
            writer.write(part)
            await writer.drain()
    if close:
        writer.write_eof()


async def _hear(reader: asyncio.StreamReader) -> Heard:
    heard = Heard()
    try:
        while (answer := await read_answer(reader)) is not None:
            if answer.status != 100:
                heard.answers.append(answer)
    except ConnectionError:
        heard.cut = True
    return heard


async def read_answer(reader: asyncio.StreamReader) -> Answer | None:
    """The next answer; None where the server has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(first.split(" ")[1])
    if fields.get("transfer-encoding") == "chunked":
        body = await _chunks(reader)
    else:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Answer(status, fields, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


def request(line: str, *fields: str, body: bytes | None = None, host: bytes = HOST) -> bytes:
    """A request with these header fields, and a Content-Length where there is a body."""
    head = f"{line} HTTP/1.1\r\n".encode("latin-1") + host
    head += b"".join(f"{field}\r\n".encode("latin-1") for field in fields)
    if body is None:
        return head + b"\r\n"
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def json_request(path: str, body: bytes, *fields: str) -> bytes:
    """A POST that says it carries JSON."""
    return request(f"POST {path}", "Content-Type: application/json", *fields, body=body)
