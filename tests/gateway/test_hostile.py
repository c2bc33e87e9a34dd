"""Hostile requests, sent to a real server."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
import zstandard

from common.http.body import MAX_BODY
from tests.gateway.conftest import Platform, running

pytestmark = pytest.mark.rpc

WHOLE = {"email": "user@example.com", "password": "p" * 20, "display_name": "A User"}
JSON = {"Content-Type": "application/json"}
KEYS = "/auth/api-keys"
KEY_BODY = {"name": "n", "scopes": ["events:write"]}


async def post(platform: Platform, body: bytes, path: str = KEYS, **headers: str) -> httpx.Response:
    fields = platform.auth | JSON | {k.replace("_", "-"): v for k, v in headers.items()}
    return await platform.http.post(path, content=body, headers=fields)


def refused(answer: httpx.Response, status: int, code: str = "") -> dict[str, Any]:
    """The problem, checked to be whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["correlation_id"] == answer.headers["x-correlation-id"]
    assert problem["type"] == f"urn:mindweave:problem:{problem['code']}"
    assert {"title", "detail", "instance", "errors"} <= problem.keys()
    if code:
        assert problem["code"] == code
    return problem


def faults(answer: httpx.Response) -> dict[str, str]:
    problem = refused(answer, 422)
    found = {e["pointer"]: e["code"] for e in problem["errors"]}
    shared = set(found.values())
    assert problem["code"] == (shared.pop() if len(shared) == 1 else "invalid")
    return found


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"NaN", b'{"name":NaN}', b'{"name":"a","name":"b"}', b'{"name":"\xff"}',
        b"[" * 100_000, b'{"a":' * 65 + b"1" + b"}" * 65, b"9" * 5000, b"\x00",
        '{"name":"a"}'.encode("utf-16"),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_json_is_a_422(platform: Platform, body: bytes) -> None:
    refused(await post(platform, body), 422, "invalid_json")
    assert platform.services["auth"].asked[1:] == []


async def test_every_wrong_type_is_told_by_its_pointer(platform: Platform) -> None:
    body = {"name": 5, "scopes": ["a", True, None, 1e2], "expires_at": 1, "expiresAt": "x"}
    assert faults(await post(platform, json.dumps(body).encode())) == {
        "/name": "invalid_type",
        "/scopes/1": "invalid_type",
        "/scopes/2": "invalid_type",
        "/scopes/3": "invalid_type",
        "/expires_at": "invalid_type",
        "/expiresAt": "unknown_field",
    }


async def test_camel_case_names_are_unknown_fields(platform: Platform) -> None:
    body = {"email": "a@b.c", "password": "p" * 20, "displayName": "A"}
    assert faults(await post(platform, json.dumps(body).encode(), "/auth/register")) == {
        "/displayName": "unknown_field",
        "/display_name": "missing_field",
    }


async def test_an_update_mask_cannot_be_sent(platform: Platform) -> None:
    answer = await platform.http.patch(
        "/auth/me", json={"display_name": "A", "update_mask": "email"}, headers=platform.auth
    )
    assert faults(answer) == {"/update_mask": "unknown_field"}


async def test_a_field_of_the_path_cannot_be_sent_in_the_body(platform: Platform) -> None:
    org = "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11"
    body = json.dumps({"org_id": org, "user_id": org, "role": "owner"}).encode()
    assert faults(await post(platform, body, f"/orgs/{org}/members")) == {
        "/org_id": "unknown_field"
    }


async def test_a_key_of_many_thousand_characters_is_not_sent_back(platform: Platform) -> None:
    answer = await post(platform, json.dumps({"k" * 500_000: 1}).encode())
    assert len(answer.content) < 2_000


async def test_what_the_rules_of_the_proto_refuse_is_a_422_too(platform: Platform) -> None:
    body = json.dumps({"name": "", "scopes": ["a", "a"]}).encode()
    pointers = {e["pointer"] for e in refused(await post(platform, body), 422)["errors"]}
    assert pointers == {"/name", "/scopes"}


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1",
     "application/jsonp", "multipart/form-data; boundary=x"],
)  # fmt: skip
async def test_another_content_type_is_a_415(platform: Platform, kind: str) -> None:
    answer = await post(platform, json.dumps(KEY_BODY).encode(), Content_Type=kind)
    refused(answer, 415, "unsupported_media_type")


async def test_a_charset_that_is_utf8_is_taken(platform: Platform) -> None:
    body = json.dumps(KEY_BODY).encode()
    kind = 'Application/JSON; charset="UTF-8"'
    assert (await post(platform, body, Content_Type=kind)).status_code == 201


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "gzip, zstd", "x"])
async def test_another_content_encoding_is_a_415(platform: Platform, encoding: str) -> None:
    refused(await post(platform, b"{}", Content_Encoding=encoding), 415)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(json.dumps(KEY_BODY).encode())),
        ("x-gzip", gzip.compress(json.dumps(KEY_BODY).encode())),
        ("zstd", zstandard.compress(json.dumps(KEY_BODY).encode())),
        ("identity", json.dumps(KEY_BODY).encode()),
    ],
)
async def test_a_packed_body_is_unpacked(platform: Platform, encoding: str, packed: bytes) -> None:
    assert (await post(platform, packed, Content_Encoding=encoding)).status_code == 201
    assert platform.services["auth"].asked[-1][1].name == "n"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_body_that_is_not_what_its_encoding_says_is_a_422(
    platform: Platform, encoding: str
) -> None:
    refused(await post(platform, b"{}", Content_Encoding=encoding), 422, "invalid_body")


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", gzip.compress(b" " * 200_000_000, 9)),
        ("zstd", zstandard.ZstdCompressor(level=3).compress(b" " * 200_000_000)),
    ],
)
async def test_a_bomb_is_a_413(platform: Platform, encoding: str, bomb: bytes) -> None:
    assert len(bomb) < MAX_BODY
    refused(await post(platform, bomb, Content_Encoding=encoding), 413, "payload_too_large")


async def test_an_oversize_body_is_a_413_before_it_is_sent(platform: Platform) -> None:
    head = (
        f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nAuthorization: {platform.auth['Authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    )
    assert (await platform.send(head.encode())).startswith(b"HTTP/1.1 413 ")


async def test_an_oversize_body_that_does_not_say_its_size_is_a_413(platform: Platform) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    answer = await platform.http.post(KEYS, content=chunks(), headers=platform.auth | JSON)
    refused(answer, 413, "payload_too_large")


async def test_a_request_that_takes_too_long_is_a_504() -> None:
    async with running(seconds=0.3) as platform:
        head = (
            f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: {platform.auth['Authorization']}\r\nContent-Length: 100\r\n\r\n"
        )
        assert (await platform.send(head.encode(), parts=[b"{"])).startswith(b"HTTP/1.1 504 ")


async def test_no_credential_is_a_401_before_the_body_is_read(platform: Platform) -> None:
    head = f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"
    answer = await platform.send(head.encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'www-authenticate: Bearer realm="mindweave"' in answer


async def test_a_client_that_waits_to_continue_gets_its_401_and_sends_no_body(
    platform: Platform,
) -> None:
    head = f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    assert (await platform.send(head.encode())).startswith(b"HTTP/1.1 401 ")


async def test_an_endless_body_after_an_answer_is_not_read_for_ever(platform: Platform) -> None:
    host, _, port = platform.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")

    async def send_for_ever() -> None:
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await send_for_ever()
    writer.close()


@pytest.mark.parametrize(
    "query",
    ["page_size=1&page_size=2", "page_size=x", "page_size=1e2", "page_size=", "page_size=true",
     "page_size=%ZZ", "page_size=%ff", "page_size=%d9%a5"],
)  # fmt: skip
async def test_a_wrong_query_parameter_is_named(platform: Platform, query: str) -> None:
    answer = await platform.http.get(f"/auth/sessions?{query}", headers=platform.auth)
    assert list(faults(answer)) == ["/page_size"]


async def test_an_unknown_query_parameter_is_a_422(platform: Platform) -> None:
    answer = await platform.http.get("/auth/sessions?pageSize=5", headers=platform.auth)
    assert faults(answer) == {"/pageSize": "unknown_parameter"}
    answer = await post(platform, json.dumps(KEY_BODY).encode(), f"{KEYS}?name=x")
    assert faults(answer) == {"/name": "unknown_parameter"}


async def test_a_huge_query_integer_is_a_422(platform: Platform) -> None:
    answer = await platform.http.get(
        f"/auth/sessions?page_size={'9' * 4000}", headers=platform.auth
    )
    assert list(faults(answer)) == ["/page_size"]


@pytest.mark.parametrize("path", ["/orgs/%ZZ", "/orgs/%", "/orgs/%4", "/orgs/%ff", "/orgs/%c0%af"])
async def test_bad_percent_encoding_in_a_path_is_a_422(platform: Platform, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {platform.auth['Authorization']}\r\n"
    answer = await platform.send(f"{head}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b'"pointer":"/id"' in answer


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/orgs/", "//orgs", "/orgs//members", "/ORGS", "/auth/%2e%2e/orgs", "/orgs/%2F..",
     "/auth/me/", "/%", "/docs/x", "/"],
)  # fmt: skip
async def test_an_unknown_route_is_a_404(platform: Platform, path: str) -> None:
    answer = await platform.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 401 "))
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /orgs HTTP/1.1\r\nHost: x\r\nX-Correlation-Id: a\rb\r\n\r\n",
        b"GET /orgs HTTP/1.1\r\nHost: x\r\nBad Name: a\r\n\r\n",
        b"GET /orgs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /orgs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /orgs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_400(platform: Platform, head: bytes) -> None:
    answer = await platform.send(head)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer
    assert b"connection: close" in answer


@pytest.mark.parametrize("sent", ["a b", "é", "x" * 129, "", "a\tb", "<script>", "-a"])
async def test_a_correlation_id_that_is_not_plain_is_replaced(
    platform: Platform, sent: str
) -> None:
    field = (b"X-Correlation-Id", sent.encode("latin-1"))
    answer = await platform.http.get("/health/live", headers=[field])
    assert answer.headers["x-correlation-id"] not in ("", sent)


async def test_oversize_header_fields_are_a_431(platform: Platform) -> None:
    big = b"GET /orgs HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 40_000
    assert (await platform.send(big)).startswith(b"HTTP/1.1 431 ")
    assert (await platform.send(big + b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")
    many = b"GET /orgs HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n"
    assert (await platform.send(many)).startswith(b"HTTP/1.1 431 ")
    long = b"GET /orgs?" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await platform.send(long)).startswith(b"HTTP/1.1 414 ")


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "é", "a\tb"])
async def test_an_idempotency_key_that_is_not_visible_ascii_is_a_422(
    platform: Platform, key: str
) -> None:
    fields = [(b"Idempotency-Key", key.encode("latin-1"))]
    fields += [(n.encode(), v.encode()) for n, v in platform.auth.items()]
    answer = await platform.http.post(KEYS, json=KEY_BODY, headers=fields)
    refused(answer, 422, "invalid_idempotency_key")


async def test_two_idempotency_keys_are_a_422(platform: Platform) -> None:
    fields = [*platform.auth.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused(
        await platform.http.post(KEYS, json=KEY_BODY, headers=fields),
        422,
        "invalid_idempotency_key",
    )


async def test_a_body_where_none_belongs_may_only_be_empty(platform: Platform) -> None:
    logout = "/auth/logout"
    assert (await platform.http.post(logout, headers=platform.auth)).status_code == 204
    assert (await post(platform, b"{}", logout)).status_code == 204
    assert faults(await post(platform, b'{"all": true}', logout)) == {"/all": "unknown_field"}
    refused(await post(platform, b"x", logout), 422, "invalid_json")
    refused(await post(platform, b"{}", logout, Content_Type="text/plain"), 415)


async def test_a_gzip_body_of_very_many_members_is_refused_before_they_are_all_unpacked(
    platform: Platform,
) -> None:
    # What is left is copied for each member: a million bytes of them took a second.
    body = gzip.compress(json.dumps(KEY_BODY).encode()) + gzip.compress(b"") * 100
    refused(await post(platform, body, Content_Encoding="gzip"), 422, "invalid_body")


async def test_a_gzip_body_may_have_several_members_and_no_rubbish(platform: Platform) -> None:
    body = json.dumps(KEY_BODY).encode()
    members = gzip.compress(body[:5]) + gzip.compress(body[5:])
    assert (await post(platform, members, Content_Encoding="gzip")).status_code == 201
    for damaged in (members + b"rubbish", members[:-1], zlib.compress(body)):
        refused(await post(platform, damaged, Content_Encoding="gzip"), 422, "invalid_body")


async def test_a_zstd_body_is_one_whole_frame(platform: Platform) -> None:
    frame = zstandard.compress(json.dumps(KEY_BODY).encode())
    stream = zstandard.ZstdCompressor().compressobj()
    unsized = stream.compress(json.dumps(KEY_BODY).encode()) + stream.flush()
    assert (await post(platform, unsized, Content_Encoding="zstd")).status_code == 201
    for damaged in (frame[:-1], frame + b"rubbish", unsized[:-4]):
        refused(await post(platform, damaged, Content_Encoding="zstd"), 422, "invalid_body")
