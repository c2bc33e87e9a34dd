"""Bodies that lie, explode, nest, or hold numbers that nobody can count with."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import zstandard

from tests.e2e.tenant import Tenant, bearer

pytestmark = pytest.mark.e2e

EVENTS, TRACK, ORGS = "/v1/events", "/v1/track", "/orgs"
JSON = {"Content-Type": "application/json"}
ROOM = {EVENTS: 10_000_000, TRACK: 10_000_000, ORGS: 1_000_000}
EXPLODED = 200_000_000


def deep(levels: int, inner: bytes = b"1") -> bytes:
    return b'{"a":' * levels + inner + b"}" * levels


def event(extra: bytes) -> bytes:
    """A batch of one event, with a field as it is written."""
    head = b'{"events":[{"event_id":"6a0f1b1e-6f0e-4c39-9c1d-0a5d3f8f2f11","event_type":"api_call"'
    return head + b',"model":"m","timestamp":"2026-01-01T00:00:00Z",' + extra + b"}]}"


# Each is refused by every route that takes JSON.
NO_JSON = {
    "nothing": b"",
    "half of it": b'{"name":',
    "two values": b"{} {}",
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"name":"a"}'.encode("utf-16"),
    "bytes that are not UTF-8": b'{"name":"\xff\xfe"}',
    "an overlong encoding": b'{"name":"\xc0\xaf"}',
    "NUL": b'{"name":"a\x00b"}',
    "NaN": b'{"name":NaN}',
    "Infinity": b'{"name":-Infinity}',
    "a very long number": b'{"name":' + b"9" * 500_000 + b"}",
    "a comment": b'{"name":"a"}//',
    "single quotes": b"{'name':'a'}",
    "a hundred thousand arrays": b"[" * 100_000,
    "a hundred thousand objects": deep(100_000),
    "100 levels": deep(100),
    "an array": b"[]",
    "a string": b'"name"',
    "null": b"null",
}
# Numbers and keys that a usage event may not have.
BAD_EVENTS = {
    "a key twice": b'"input_tokens":1,"input_tokens":2',
    "1e999": b'"input_tokens":1e999',
    "a number past 2^53": b'"input_tokens":9007199254740993',
    "a number past 2^64": b'"input_tokens":18446744073709551616',
    "a negative count": b'"input_tokens":-1',
    "a cost past all money": b'"cost_usd":1e999',
    "a cost with an exponent of a million": b'"cost_usd":1e1000000',
    "a latency past all time": b'"latency_ms":1e308',
    "deep metadata": b'"metadata":' + deep(5_000),
    "large metadata": b'"metadata":{"a":"' + b"x" * 1_000_000 + b'"}',
    "a lone surrogate": b'"tool":"\\ud800"',
    "a very long name": b'"tool":"' + b"x" * 1_000_000 + b'"',
}


@pytest.fixture(scope="module")
def owner(address: str, own_tenant: Tenant) -> Iterator[httpx.Client]:
    with bearer(address, own_tenant.owner.tokens["access_token"]) as client:
        yield client


def refused(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["status"] == answer.status_code
    # Nothing that a client sends comes back by the megabyte.
    assert len(answer.content) < 20_000
    return told


@pytest.mark.parametrize("path", [ORGS, EVENTS, TRACK])
def test_what_is_no_json_is_a_422(owner: httpx.Client, path: str) -> None:
    for body in NO_JSON.values():
        refused(owner.post(path, content=body, headers=JSON), 422)
    assert owner.get("/health/live").status_code == 200


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_an_event_that_cannot_be_counted_is_named(owner: httpx.Client, name: str) -> None:
    answer = owner.post(EVENTS, content=event(BAD_EVENTS[name]), headers=JSON)
    told = refused(answer, 422)
    assert told["errors"], told


def test_a_key_twice_is_refused_on_every_level(owner: httpx.Client) -> None:
    assert refused(owner.post(ORGS, content=b'{"name":"a","name":"b"}', headers=JSON), 422)
    whole = event(b'"tool":"t"')
    twice = whole.replace(b'{"events":', b'{"events":[],"events":')
    refused(owner.post(EVENTS, content=twice, headers=JSON), 422)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "", "a/b/c;;;",
             "application/json; charset=utf-16", "application/x-www-form-urlencoded"]
)  # fmt: skip
def test_another_content_type_is_a_415(owner: httpx.Client, kind: str) -> None:
    for path in (ORGS, EVENTS, TRACK):
        refused(owner.post(path, content=b"{}", headers={"Content-Type": kind}), 415)


@pytest.mark.parametrize("encoding", ["br", "deflate", "compress", "gzip, gzip", "zstd, gzip", "*"])
def test_another_encoding_is_a_415(owner: httpx.Client, encoding: str) -> None:
    headers = JSON | {"Content-Encoding": encoding}
    for path in (ORGS, EVENTS):
        refused(owner.post(path, content=gzip.compress(b"{}"), headers=headers), 415)


def bombs() -> dict[str, tuple[str, bytes]]:
    """Encoding and body: little to send, very much to unpack."""
    zeros = b" " * EXPLODED
    once = gzip.compress(zeros, 9)
    stream = zstandard.ZstdCompressor(level=3).compressobj()
    return {
        "gzip": ("gzip", once),
        "gzip in gzip": ("gzip", gzip.compress(once, 9)),
        "gzip of many members": ("gzip", gzip.compress(b" " * 20_000) * 5_000),
        "gzip of many empty members": ("gzip", gzip.compress(b"") * 40_000),
        "gzip without its end": ("gzip", once[:-8]),
        "zlib": ("gzip", zlib.compress(zeros)),
        "zstd": ("zstd", zstandard.compress(zeros)),
        "zstd that does not say its size": ("zstd", stream.compress(zeros) + stream.flush()),
        "zstd of many frames": ("zstd", zstandard.compress(b" " * 200_000) * 5_000),
        "zstd with a window of gigabytes": ("zstd", b"\x28\xb5\x2f\xfd\x00\xff" + b"\x00" * 64),
    }


def test_a_bomb_is_refused_before_it_explodes(owner: httpx.Client) -> None:
    for name, (encoding, body) in bombs().items():
        headers = JSON | {"Content-Encoding": encoding}
        for path, room in ROOM.items():
            if len(body) > room:
                continue
            answer = owner.post(path, content=body, headers=headers)
            assert refused(answer, 413, 422), (name, path)
            assert owner.get("/health/live").status_code == 200


def test_a_batch_of_more_events_than_allowed_is_a_413(owner: httpx.Client) -> None:
    body = gzip.compress(json.dumps({"events": [{}] * 10_001}).encode())
    headers = JSON | {"Content-Encoding": "gzip"}
    refused(owner.post(EVENTS, content=body, headers=headers), 413)


def test_an_answer_never_shows_thousands_of_faults(owner: httpx.Client) -> None:
    body = json.dumps({f"unknown{n}": n for n in range(20_000)}).encode()
    for path in (ORGS, TRACK):
        refused(owner.post(path, content=body, headers=JSON), 422)
