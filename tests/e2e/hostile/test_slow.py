"""Clients that take their time: each is given up within its limit, and no other one waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.e2e.hostile.wire import Heard, request, talk

pytestmark = pytest.mark.e2e

JSON = "Content-Type: application/json"
LOGIN = "POST /auth/login"


async def drip(part: bytes) -> AsyncIterator[bytes]:
    while True:
        yield part
        await asyncio.sleep(1)


async def stream(part: bytes) -> AsyncIterator[bytes]:
    while True:
        yield part
        await asyncio.sleep(0.01)


async def asks_meanwhile(address: str, attacks: asyncio.Future[list[Heard]]) -> int:
    """How often another client was answered, always well, while the attacks went on."""
    count = 0
    async with httpx.AsyncClient(base_url=address, timeout=30) as other:
        while not attacks.done():
            answer = await other.get("/.well-known/jwks.json")
            assert answer.status_code == 200, answer.text
            count += 1
            await asyncio.sleep(0.2)
    return count


async def test_whoever_sends_slowly_is_given_up_and_delays_nobody(address: str) -> None:
    begun = b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: "
    length = request(LOGIN, JSON, "Content-Length: 1000")
    chunked = request(LOGIN, JSON, "Transfer-Encoding: chunked")
    attacks = {
        "half a head, then nothing": talk(address, begun),
        "a head byte by byte": talk(address, begun, then=drip(b"a")),
        "half a body, then nothing": talk(address, length + b'{"email":'),
        "a body byte by byte": talk(address, length, then=drip(b" ")),
        "a chunk byte by byte": talk(address, chunked + b"1000\r\n", then=drip(b" ")),
        "a chunk size without end": talk(address, chunked + b"1;a=", then=drip(b"b")),
        "an answer, then half a head": talk(address, request("GET /health/live") + begun),
        "the rest of a body that was refused": talk(
            address, request("POST /orgs", JSON, "Content-Length: 900000"), then=drip(b" ")
        ),
        "a chunk extension": talk(address, chunked + b"1;a=", then=stream(b"b" * 1000)),
        "trailers": talk(address, chunked + b"0\r\n", then=stream(b"A: b\r\n")),
    }
    together = asyncio.gather(*attacks.values())
    answered = await asks_meanwhile(address, together)
    heard = dict(zip(attacks, await together, strict=True))
    statuses = {name: one.statuses for name, one in heard.items()}
    assert answered > 10
    late = [[408], []]
    for name in [*attacks][:6]:
        assert statuses[name] in late, (name, statuses)
    assert statuses["an answer, then half a head"] in ([200], [200, 408]), statuses
    assert statuses["the rest of a body that was refused"] == [401], statuses
    for name in ("a chunk extension", "trailers"):
        assert statuses[name] in ([], [400], [408], [413], [422], [431]), (name, statuses)
    for one in heard.values():
        assert all(answer.problem() for answer in one.answers if answer.status != 200)
