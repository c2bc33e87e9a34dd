"""Requests that are none, or that two servers could read in two ways: one clear answer each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.e2e.hostile.wire import (
    HOST,
    PATIENCE,
    Heard,
    connect,
    json_request,
    read_answer,
    request,
    talk,
)
from tests.e2e.own import GIVEN

pytestmark = pytest.mark.e2e

LIVE = "GET /health/live"
LOGIN = "/auth/login"
CLOSE = "Connection: close"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def login(*fields: str, body: bytes = b"") -> bytes:
    """A login that nothing counts the bytes of, but what ``fields`` say."""
    return request(f"POST {LOGIN}", JSON, *fields) + body


def live(*fields: str, host: bytes = HOST) -> bytes:
    return request(LIVE, *fields, host=host)


# Whatever HTTP/1.1 is not: refused as a whole, and the connection is over.
MALFORMED = {
    "nonsense": b"NONSENSE\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "HTTP/3.0": b"GET /health/live HTTP/3.0\r\nHost: x\r\n\r\n",
    "an unknown method": request("BREW /health/live"),
    "a tunnel": b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n",
    "no Host": live(host=b""),
    "two Hosts": live(CLOSE, host=b"Host: a\r\nHost: b\r\n"),
    "a Host that is none": live(host=b"Host: a b<c>\r\n"),
    "a target without a path": request("GET http://elsewhere", CLOSE),
    "a fragment": request("GET /health/live#here", CLOSE),
    "NUL in the target": request("GET /orgs/\x00"),
    "bytes past ASCII in the target": request("GET /orgs/\xe9"),
    "a blank in a field's name": live("Bad Name: a"),
    "a blank before the colon": live("X-Name : a"),
    "no field name": live(": a"),
    "NUL in a field": live("X-Name: a\x00b"),
    "CR in a field": live(CLOSE, "X-Name: a\rb"),
    "a folded field": live(CLOSE, "X-Name: a\r\n b"),
    "a negative length": login("Content-Length: -1"),
    "a signed length": login("Content-Length: +2", body=b"{}"),
    "a length past 64 bits": login(f"Content-Length: {'9' * 30}", body=b"{}"),
    "two lengths": login("Content-Length: 2", "Content-Length: 3", body=b"{} "),
    "a list of lengths": login("Content-Length: 2, 3", body=b"{} "),
    "a length and chunks": login("Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "chunks and a length": login(CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"),
    "chunks that are not last": login("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "an unknown coding": login("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "a coding with a blank before the colon": login("Transfer-Encoding : chunked"),
    "a coding behind a control character": login("Transfer-Encoding: \x0bchunked"),
    "chunks in HTTP/1.0": login(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "a chunk of no size": login(CHUNKED, body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk of negative size": login(CHUNKED, body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "a chunk past 64 bits": login(CHUNKED, body=b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk longer than it says": login(CLOSE, CHUNKED, body=b"1\r\n{}\r\n0\r\n\r\n"),
}


# What a proxy in front may make well-formed by itself before it sends it on: it is then answered as
# what it has become.
MENDED = {
    "a tunnel": {404},
    "two Hosts": {200},
    "a target without a path": {404},
    "CR in a field": {200},
    "a folded field": {200},
    "a chunk longer than it says": {422},
}
CLEANED: dict[str, str] = {}
UPGRADED = {200, 400, 403}
# What one that is not our edge may do as well, a mesh's ingress for example.
NOT_OURS = GIVEN in os.environ
if NOT_OURS:
    # Neither Host is the platform's, where the proxy knows what is.
    MENDED |= {"two Hosts": {200, 404}, "a fragment": {200}}
    CLEANED |= {"/auth/%2e%2e/orgs": "/orgs", "//orgs": "/orgs"}
    UPGRADED |= {404}


async def refused(address: str, heard: Heard, *statuses: int) -> None:
    """It is one problem with one of the statuses, and the platform goes on to answer others."""
    assert len(heard.answers) == 1, heard
    assert heard.answers[0].status in statuses, heard
    heard.answers[0].problem()
    async with httpx.AsyncClient(base_url=address, timeout=30) as other:
        assert (await other.get("/health/live")).status_code == 200


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_request_is_a_400_and_ends_the_connection(address: str, name: str) -> None:
    heard, mended = await talk(address, MALFORMED[name]), MENDED.get(name, set())
    if heard.statuses == [200] and 200 in mended:
        return
    await refused(address, heard, 400, *mended)


async def test_http_2_with_prior_knowledge_is_refused_unless_the_proxy_speaks_it(
    address: str,
) -> None:
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
    reader, writer = await connect(address)
    writer.write(preface + settings)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.readexactly(len(settings))
    writer.transport.abort()
    if not (NOT_OURS and answer[3:] == settings[3:]):
        await refused(address, await talk(address, preface), 400)


async def test_nothing_behind_a_malformed_request_is_answered(address: str) -> None:
    for name in ("a length and chunks", "two lengths", "an unknown coding", "a chunk of no size"):
        heard = await talk(address, MALFORMED[name] + live())
        assert heard.statuses == [400], name


async def test_what_came_before_a_malformed_request_is_answered(address: str) -> None:
    heard = await talk(address, live() + live() + MALFORMED["no Host"])
    assert heard.statuses in ([200, 200], [200, 200, 400])


@pytest.mark.parametrize(
    "target",
    ["/" + "a" * 20_000, "/health/live?" + "a" * 20_000, "/orgs?" + "a=b&" * 10_000],
    ids=["path", "query", "10,000 parameters"],
)
async def test_a_target_that_is_too_long_is_refused(address: str, target: str) -> None:
    await refused(address, await talk(address, request(f"GET {target}", CLOSE)), 414, 431)


@pytest.mark.parametrize(
    "head",
    [
        live(*(f"X-{n}: a" for n in range(2_000))),
        live("X-Large: " + "a" * 100_000),
        live("X-Large: " + "a" * 100_000)[:-4],
        live("Cookie: " + "; ".join(f"c{n}={n}" for n in range(10_000))),
        live("X" * 50_000 + ": a"),
    ],
    ids=["many fields", "a large one", "one that never ends", "cookies", "a large name"],
)
async def test_a_flood_of_header_fields_is_a_431(address: str, head: bytes) -> None:
    await refused(address, await talk(address, head), 431)


@pytest.mark.parametrize(
    "path",
    ["/orgs/%00", "/orgs/%2F", "/orgs/..%2f..", "/orgs/%ZZ", "/orgs/%", "/orgs/%ff", "/orgs/%c0%af",
     "/auth/%2e%2e/orgs", "//orgs", "/orgs//members", "/%2e%2e/%2e%2e/etc/passwd", "/orgs;x=1",
     "/ORGS", "/orgs/", "/health/live/..", "/orgs/" + "%41" * 1_000],
)  # fmt: skip
async def test_a_strange_path_is_no_other_route(own_tenant, address: str, path: str) -> None:
    token = own_tenant.owner.tokens["access_token"]
    fields = (CLOSE, f"Authorization: Bearer {token}")
    heard = await talk(address, request(f"GET {path}", *fields))
    if path in CLEANED and heard.statuses == [200]:
        meant = await talk(address, request(f"GET {CLEANED[path]}", *fields))
        assert heard.answers[0].body == meant.answers[0].body
        return
    await refused(address, heard, 400, 404, 422)


async def test_an_absolute_target_means_its_path(address: str) -> None:
    named = address if NOT_OURS else "http://elsewhere.example"
    heard = await talk(address, request(f"GET {named}/health/live", CLOSE))
    assert heard.statuses == [200]
    await refused(address, await talk(address, request(f"GET {named}/auth/me", CLOSE)), 401)


async def test_the_whole_server_as_a_target_is_no_route(address: str) -> None:
    await refused(address, await talk(address, request("OPTIONS *", CLOSE)), 400, 404)


async def test_http_1_0_is_answered_once_or_refused(address: str) -> None:
    heard = await talk(address, b"GET /health/live HTTP/1.0\r\n\r\n" * 2)
    assert heard.statuses in ([200], [400], [426])


@pytest.mark.parametrize("wanted", ["websocket", "h2c", "TLS/1.3"])
async def test_no_other_protocol_is_upgraded_to(address: str, wanted: str) -> None:
    sent = live("Connection: Upgrade, close", f"Upgrade: {wanted}")
    heard = await talk(address, sent)
    assert len(heard.answers) == 1
    assert heard.statuses[0] in UPGRADED, heard


async def test_a_trailer_field_is_no_header_field(own_tenant, address: str) -> None:
    token = own_tenant.owner.tokens["access_token"]
    trailer = f"0\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    sent = request("POST /orgs", JSON, CHUNKED, CLOSE) + b"c\r\n" + b'{"name":"x"}\r\n' + trailer
    await refused(address, await talk(address, sent), 401)


async def test_pipelined_requests_are_answered_in_their_order(address: str) -> None:
    reader, writer = await connect(address)
    writer.write((live() + request("GET /nowhere")) * 8)
    answers = [await read_answer(reader) for _ in range(16)]
    writer.close()
    assert [answer.status if answer else 0 for answer in answers] == [200, 404] * 8


async def test_a_flood_of_pipelined_requests_is_cut_between_two_answers(address: str) -> None:
    heard = await talk(address, live() * 5_000 + live(CLOSE))
    assert 1 <= len(heard.answers) <= 5_001
    assert {*heard.statuses} == {200}
    assert heard.answers[-1].fields["connection"] == "close"


async def test_bytes_past_the_length_that_was_said_are_the_next_request(address: str) -> None:
    heard = await talk(address, json_request(LOGIN, b"{}") + live(CLOSE))
    assert heard.statuses == [422, 200]
    heard = await talk(address, json_request(LOGIN, b"{}") + b'{"more": "of it"}')
    assert heard.statuses in ([422], [422, 400], [422, 408])


async def test_a_body_shorter_than_was_said_never_becomes_a_request(address: str) -> None:
    sent = login("Content-Length: 100", body=b'{"email": "a@example.com"}')
    heard = await talk(address, sent, close=True)
    assert heard.statuses in ([], [400], [408])


async def test_a_body_without_end_is_refused_while_it_is_sent(address: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2_000):
            yield b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    heard = await talk(address, login(CHUNKED), then=chunks())
    assert heard.statuses in ([413], []), heard
    assert heard.answers or heard.cut


async def test_a_body_that_is_too_large_is_a_413_before_it_is_sent(
    own_tenant, address: str
) -> None:
    key = own_tenant.key["key"]
    for path, size in ((LOGIN, 1_000_001), ("/v1/events", 10_000_001), ("/v1/track", 10**12)):
        length = f"Content-Length: {size}"
        sent = request(f"POST {path}", JSON, CLOSE, f"X-API-Key: {key}", length)
        await refused(address, await talk(address, sent), 413)


async def test_no_credential_is_a_401_before_the_body_is_sent(address: str) -> None:
    sent = request("POST /v1/events", JSON, CLOSE, "Content-Length: 9000000")
    await refused(address, await talk(address, sent), 401)
