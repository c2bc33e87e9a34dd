"""Ingest behind a real HTTP server, with auth and project behind real gRPC."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import zstandard

from common.events.bus import BusFull, BusUnavailable, Outgoing
from common.events.envelope import unpack
from common.identity.call import Principal
from common.testing import a_project_key, a_user
from services.usage_tracker.actions.ingest import MAX_RECORD_BYTES
from services.usage_tracker.domain.columns import NUMBERS
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import UsageEvents, events_partition
from tests.usage_tracker.conftest import (
    ORG,
    OTHER,
    OTHERS_PROJECT,
    PROJECT,
    TEAM,
    World,
    an_event,
    codes,
)
from tests.usage_tracker.plain import events_of

pytestmark = pytest.mark.rpc


async def test_a_batch_is_acknowledged_once_the_broker_has_it(world: World) -> None:
    answer = await world.send(an_event(input_tokens=5), an_event())

    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": 2,
        "accepted_at": "2026-11-21T12:00:00Z",
        "rejected": [],
    }
    rows = world.bus.rows()
    assert sorted(row.input_tokens for row in rows) == [0, 5]
    assert {row.org_id for row in rows} == {ORG.bytes}
    assert {row.project_id for row in rows} == {PROJECT.bytes}
    assert {row.team_id for row in rows} == {TEAM.bytes}
    assert world.key.api_key_id is not None
    assert {data.api_key_id for data in world.bus.data()} == {world.key.api_key_id.bytes}


async def test_a_batch_over_several_partitions_is_one_publish_with_each_event_in_its_own(
    world: World,
) -> None:
    await world.send(*(an_event() for _ in range(300)))

    (records,) = world.bus.published
    assert len(records) == 4
    for record in records:
        for row, *_ in events_of(unpack(record.value, UsageEvents)[1]):
            assert events_partition(row.org_id, row.event_id, 4) == record.partition
    assert len(world.bus.rows()) == 300


async def test_good_events_are_kept_and_bad_ones_named_by_their_index(world: World) -> None:
    answer = await world.send(
        an_event(),
        an_event(model=None),
        an_event(timestamp="2026-11-14T11:59:59Z"),
        an_event(),
        an_event(timestamp="2026-11-21T12:05:01Z"),
        an_event(colour="red"),
        an_event(input_tokens=True),
        an_event(project_id=str(OTHERS_PROJECT)),
        an_event(org_id=str(OTHER)),
        "not an event",
    )

    assert answer.status_code == 202
    assert answer.json()["accepted"] == 2
    assert codes(answer) == [
        (1, "missing_field", "model"),
        (2, "too_old", "timestamp"),
        (4, "in_future", "timestamp"),
        (5, "unknown_field", "colour"),
        (6, "invalid_value", "input_tokens"),
        (7, "foreign_project", "project_id"),
        (8, "foreign_org", "org_id"),
        (9, "invalid_value", None),
    ]
    assert all(r["message"] for r in answer.json()["rejected"])
    assert len(world.bus.rows()) == 2


async def test_where_all_are_bad_the_answer_is_422_with_the_same_list(world: World) -> None:
    answer = await world.send(an_event(model=None), an_event(project_id=str(OTHERS_PROJECT)))

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert codes(answer) == [(0, "missing_field", "model"), (1, "foreign_project", "project_id")]
    assert [e["pointer"] for e in answer.json()["errors"]] == [
        "/events/0/model",
        "/events/1/project_id",
    ]
    assert answer.json()["correlation_id"] == answer.headers["x-correlation-id"]
    assert world.bus.published == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_json"),
        (b"{", 422, "invalid_json"),
        (b'{"events":[]}', 422, "missing_field"),
        (b"{}", 422, "missing_field"),
        (b'{"events":[{}],"extra":1}', 422, "unknown_field"),
        (b'{"events":{"0":{}}}', 422, "invalid_value"),
        (b"[" * 200_000, 422, "invalid_value"),
        (b'{"events":[' + b"[" * 200_000, 422, "invalid_json"),
        (b'{"events":["' + b"\\" * 200_001, 422, "invalid_json"),
        (b'{"events":[' + b"{}," * 10_000 + b"{}]}", 413, "payload_too_large"),
        (b'{"events":[{"model":"' + b"x" * 10_000_000 + b'"}]}', 413, "payload_too_large"),
        (b'\x00\xff{"events":[{}]}', 422, "invalid_json"),
    ],
)
async def test_a_hostile_body_gets_an_answer_and_reaches_nobody(
    world: World, body: bytes, status: int, code: str
) -> None:
    answer = await world.send(body=body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert world.bus.published == []


async def test_the_largest_batch_is_taken_whole(world: World) -> None:
    answer = await world.send(*(an_event(input_tokens=n) for n in range(10_000)))

    assert answer.json()["accepted"] == 10_000
    assert sorted(row.input_tokens for row in world.bus.rows()) == list(range(10_000))


@pytest.mark.parametrize("first", ["2026-11-21T11:59:00Z", "2026-11-21T12:59:00+01:00"])
@pytest.mark.parametrize("kinds", [300, 100])
async def test_a_record_is_bounded_however_much_larger_events_become_than_they_came(
    world: World, first: str, kinds: int
) -> None:
    world.layouts.layout = Layout(1, 1, State.OPEN, None)
    # A number of 4 bytes is kept as one of 18.
    grown = ",".join(["1e15"] * 850)
    events = [an_event(input_tokens=n, metadata=f"<{n % kinds}>") for n in range(300)]
    events[0]["timestamp"] = first
    body = re.sub(r'"<(\d+)>"', rf'{{"n":\1,"a":[{grown}]}}', json.dumps({"events": events}))

    answer = await world.send(body=body.encode())

    assert answer.json()["accepted"] == 300
    (records,) = world.bus.published
    assert {record.partition for record in records} == {0}
    assert max(len(record.value) for record in records) < MAX_RECORD_BYTES + 1_000
    assert len(records) < 2 * sum(len(record.value) for record in records) / MAX_RECORD_BYTES
    rows = world.bus.rows()
    assert [row.input_tokens for row in rows] == list(range(300))
    assert [json.loads(row.metadata or b"")["n"] for row in rows] == [n % kinds for n in range(300)]


async def test_the_largest_event_is_a_small_part_of_the_largest_record(world: World) -> None:
    names = ("model", "provider", "service_tier", "mcp_server", "tool", "session_id", "request_id")
    more = ("decision_id", "error_type", "user_id")
    widest = dict.fromkeys((*names, *more), "\N{GRINNING FACE}" * 200)
    numbers = [name for name in NUMBERS if name.endswith("_tokens")]
    event = an_event(**widest, **dict.fromkeys(numbers, 2**53), metadata={"a": "x" * 16_376})

    assert (await world.send(event)).status_code == 202
    [[record]] = world.bus.published
    assert 16_384 < len(record.value) < MAX_RECORD_BYTES / 20


@pytest.mark.parametrize("numbers", [861, 862])
async def test_metadata_are_bounded_as_they_are_kept_not_as_they_came(
    world: World, numbers: int
) -> None:
    event = json.dumps(an_event(metadata="<>"))
    body = event.replace('"<>"', f'{{"a":[{",".join(["1e15"] * numbers)}]}}')
    answer = await world.send(body=f'{{"events":[{body}]}}'.encode())

    kept = 19 * numbers + len('{"a":[]}') - 1
    assert answer.status_code == (202 if kept <= 16_384 else 422)
    if answer.status_code == 422:
        assert codes(answer) == [(0, "invalid_value", "metadata")]


async def test_ten_thousand_bad_events_are_each_named(world: World) -> None:
    answer = await world.send(*[{"colour": 1}] * 10_000)

    assert answer.status_code == 422
    assert codes(answer) == [(n, "unknown_field", "colour") for n in range(10_000)]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("zstd", lambda b: zstandard.ZstdCompressor().compress(b))],
)
async def test_a_batch_may_be_compressed_and_a_bomb_is_too_large(
    world: World, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    small = pack(json.dumps({"events": [an_event()]}).encode())
    bomb = pack(b'{"events":[' + b" " * 50_000_000)

    assert (await world.send(body=small, content_encoding=encoding)).status_code == 202
    assert (await world.send(body=bomb, content_encoding=encoding)).status_code == 413
    assert (await world.send(body=small[:-5], content_encoding=encoding)).status_code == 422


async def test_other_encodings_and_types_are_not_taken(world: World) -> None:
    assert (await world.send(an_event(), content_encoding="br")).status_code == 415
    assert (await world.send(an_event(), content_type="text/plain")).status_code == 415


@pytest.mark.parametrize("failure", [BusFull(), BusUnavailable()])
async def test_a_broker_that_is_full_or_down_is_a_503_and_never_a_202(
    world: World, failure: Exception
) -> None:
    world.bus.failure = failure
    for answer in (await world.send(an_event()), await world.track(an_event())):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    assert (await world.http.get("/v1/health")).status_code == 503
    world.bus.failure = None
    assert (await world.send(an_event())).status_code == 202
    health = await world.http.get("/v1/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


async def test_while_the_number_of_partitions_is_changed_nothing_is_taken_in(world: World) -> None:
    before, world.layouts.layout = world.layouts.layout, None
    for answer in (await world.send(an_event()), await world.track(an_event())):
        assert (answer.status_code, answer.json()["code"]) == (503, "repartitioning")
        assert int(answer.headers["retry-after"]) >= 1
    assert world.bus.published == []
    world.layouts.layout = before
    assert (await world.send(an_event())).status_code == 202


async def test_what_was_published_while_the_layout_changed_is_not_acknowledged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = world.bus.publish

    async def late(topic: str, records: Sequence[Outgoing]) -> list[str]:
        world.layouts.layout = None
        return await publish(topic, records)

    monkeypatch.setattr(world.bus, "publish", late)
    answer = await world.send(an_event())
    assert (answer.status_code, answer.json()["code"]) == (503, "repartitioning")
    assert len(world.bus.published) == 1


async def test_one_event_may_leave_out_its_id(world: World) -> None:
    event = an_event()
    del event["event_id"]
    answers = [await world.track(event) for _ in range(2)]

    assert [a.status_code for a in answers] == [202, 202]
    ids = [a.json()["event_id"] for a in answers]
    assert len(set(ids)) == 2
    assert [UUID(bytes=row.event_id) for row in world.bus.rows()] == [UUID(i) for i in ids]
    assert answers[0].json()["accepted_at"] == "2026-11-21T12:00:00Z"


async def test_a_repeat_under_an_idempotency_key_is_the_same_event(world: World) -> None:
    event = an_event()
    del event["event_id"]
    first = await world.track(event, idempotency_key="order-1")
    again = await world.track(event, idempotency_key="order-1")
    other = await world.track(event, idempotency_key="order-2")
    elses = await world.track(event, as_=world.owner, idempotency_key="order-1")

    assert first.json() == again.json()
    ids = {a.json()["event_id"] for a in (first, other, elses)}
    assert len(ids) == 3
    one, two, *_ = world.bus.rows()
    assert one == two


async def test_a_single_event_keeps_the_id_it_has(world: World) -> None:
    event = an_event()

    assert (await world.track(event, idempotency_key="k")).json()["event_id"] == event["event_id"]


@pytest.mark.parametrize(
    ("event", "code", "pointer"),
    [
        (an_event(model=None), "missing_field", "/model"),
        (an_event(timestamp="2026-11-01T00:00:00Z"), "too_old", "/timestamp"),
        (an_event(org_id=str(OTHER)), "foreign_org", "/org_id"),
        (an_event(colour=1), "unknown_field", "/colour"),
        ([], "invalid_value", ""),
    ],
)
async def test_a_single_event_that_is_refused_is_a_422_that_names_the_field(
    world: World, event: Any, code: str, pointer: str
) -> None:
    answer = await world.track(event)

    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [(pointer, code)]


async def test_metrics_count_events_by_what_became_of_them(world: World) -> None:
    await world.send(an_event(), an_event(), an_event(model=None))
    answer = await world.http.get("/v1/metrics", headers=world.credential(world.owner))

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'mindweave_events_accepted_total{service="usage_tracker"} 2.0' in lines
    assert (
        'mindweave_events_rejected_total{code="missing_field",service="usage_tracker"} 1.0' in lines
    )
    assert 'mindweave_ledger_repeats{kind="conflict",service="usage_tracker"} 2.0' in lines


async def test_many_batches_at_once_are_each_taken_whole(world: World) -> None:
    answers = await asyncio.gather(
        *(world.send(*(an_event() for _ in range(50))) for _ in range(20))
    )

    assert {a.json()["accepted"] for a in answers} == {50}
    assert len(world.bus.rows()) == 1000
    assert len({row.event_id for row in world.bus.rows()}) == 1000


class Slow:
    """Requests of whom nobody knows how large they become, each held before its last byte."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.may_end = asyncio.Event()

    async def post(
        self, who: Principal, padding: int, begun: asyncio.Event | None = None
    ) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps({"events": [an_event()]}).encode()[:-1]
            yield b" " * padding
            if begun is not None:
                begun.set()
                await self.may_end.wait()
            yield b"}"

        headers = {**self._world.credential(who), "Content-Type": "application/json"}
        return await self._world.http.post("/v1/events", content=chunks(), headers=headers)

    async def held(
        self, group: asyncio.TaskGroup, who: Principal, padding: int
    ) -> asyncio.Task[httpx.Response]:
        begun = asyncio.Event()
        task = group.create_task(self.post(who, padding, begun))
        await begun.wait()
        return task


async def test_who_has_much_in_hand_is_refused_at_once_and_others_are_served(world: World) -> None:
    colleague = a_project_key(ORG, uuid4(), ["events:write"])
    slow = Slow(world)
    async with asyncio.TaskGroup() as group:
        held = [await slow.held(group, world.key, 7_000_000)]
        held += [await slow.held(group, world.key, 10_000) for _ in range(5)]
        refused = await slow.post(world.key, 1_000_000)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "credential" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "1"
        refused = await slow.post(colleague, 6_000_000)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "organization" in refused.json()["detail"]
        # A packed body counts as what it is unpacked.
        packed = gzip.compress(b" " * 6_000_000)
        refused = await world.send(body=packed, as_=colleague, content_encoding="gzip")
        assert refused.status_code == 429
        assert (await world.send(an_event())).status_code == 202
        held.append(await slow.held(group, world.owner, 7_900_000))
        held.append(await slow.held(group, world.stranger, 7_900_000))
        held.append(await slow.held(group, world.viewer, 7_900_000))
        full = await slow.post(a_user(), 7_900_000)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        assert full.headers["Retry-After"] == "1"
        slow.may_end.set()
    assert [task.result().status_code for task in held[:7]] == [202] * 7
    assert (await slow.post(colleague, 6_000_000)).status_code != 429
