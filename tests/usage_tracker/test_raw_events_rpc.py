"""RawEventService behind the kit's real gRPC server."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.json_format import MessageToDict

from common.clock import ManualClock
from common.database import Database
from common.errors import Invalid, NotFound, PermissionDenied
from common.identity.call import Principal
from common.paging import encode_token
from common.rpc.fields import timestamp
from common.testing import Served, a_project_key, a_user, serve
from mindweave.usage_tracker.v1 import raw_events_pb2 as pb
from services.usage_tracker.actions.raw_events import RawEvents
from services.usage_tracker.domain.ranges import RangeTooLong
from services.usage_tracker.rpc.raw_events import RawEventServicer
from services.usage_tracker.store.raw_events import RawEventStore, RawEventView
from tests.usage_tracker.conftest import NOW, MakeArrived, MakeRecord
from tests.usage_tracker.plain import Arrived
from tests.usage_tracker.repricing.conftest import DAY, HAIKU, OWN, World

pytestmark = pytest.mark.rpc

SERVICE = "mindweave.usage_tracker.v1.RawEventService"
RAW = timedelta(days=7)


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]]) -> Database:
    made: Database = await service_database("usage_tracker", size=4)
    return made


@pytest.fixture
def world(database: Database) -> World:
    return World(database, 1)


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Served]:
    servicer = RawEventServicer(RawEvents(RawEventStore(database), RAW), ManualClock(NOW))
    async with serve([(SERVICE, servicer)], database=database) as running:
        yield running


@pytest.fixture
def org_id() -> UUID:
    return uuid4()


@pytest.fixture
def viewer(served: Served, org_id: UUID) -> Principal:
    user = a_user()
    served.access.grant(user, org_id, "viewer")
    return user


async def listed(served: Served, who: Principal, **given: Any) -> pb.ListEventsResponse:
    request = pb.ListEventsRequest(**given)
    found: pb.ListEventsResponse = (
        await served.invoke(f"/{SERVICE}/ListEvents", request, who)
    ).message
    return found


async def paged(served: Served, who: Principal, **given: Any) -> list[pb.RawEvent]:
    found, token = [], ""
    while True:
        page = await listed(served, who, page_token=token, **given)
        found += page.events
        if not page.HasField("next_page_token"):
            return found
        token = page.next_page_token


def ids(events: list[pb.RawEvent]) -> list[UUID]:
    return [UUID(event.event_id) for event in events]


async def test_an_event_is_shown_as_it_was_sent_with_what_was_made_of_it(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    key, user, project = uuid4(), uuid4(), uuid4()
    sent = arrived(
        org_id=org_id,
        received_at=NOW,
        api_key_id=key,
        at=NOW - timedelta(microseconds=1),
        project_id=project,
        user_id=user,
        user_ref="ada",
        session_id="s",
        latency_us=812_500,
        client_cost_nano=5,
        metadata=b'{"a": [1, {"b": null}], "c": 0.5}',
    )
    await world.count(record(sent))
    (shown,) = (await listed(served, viewer)).events

    assert MessageToDict(shown, preserving_proto_field_name=True) == {
        "event_id": str(UUID(bytes=sent.row.event_id)),
        "timestamp": "2026-11-21T12:00:29.999999Z",
        "event_type": "api_call",
        "org_id": str(org_id),
        "project_id": str(project),
        "user_id": str(user),
        "user_ref": "ada",
        "api_key_id": str(key),
        "received_at": "2026-11-21T12:00:30Z",
        "model": HAIKU,
        "session_id": "s",
        "status": "ok",
        "input_tokens": "1000",
        "output_tokens": "100",
        "latency_ms": 812.5,
        "metadata_json": '{"a": [1, {"b": null}], "c": 0.5}',
        "client_cost_usd": "0.000000005",
        "input_usd": "0.001000000",
        "output_usd": "0.000500000",
        "cache_read_usd": "0.000000000",
        "cache_write_usd": "0.000000000",
        "cost_usd": "0.001500000",
        "counted_cost_usd": "0.001500000",
        "price_version": shown.price_version,
        "counted_price_version": shown.price_version,
    }
    assert shown.price_version.startswith("genai-prices/")


async def test_a_price_that_came_later_stands_beside_what_was_counted(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    await world.count(
        record(
            arrived(org_id=org_id, model=OWN),
            arrived(org_id=org_id, model=None, event_type="session", session_id="s"),
        )
    )
    before = {event.event_type: event for event in (await listed(served, viewer)).events}
    assert [before[kind].unpriced for kind in ("api_call", "session")] == [True, False]
    assert not any(event.HasField("cost_usd") for event in before.values())

    for usd in (3, 1):
        stated = await world.state(usd=usd, org_id=org_id)
        await world.orders.order_all(org_id, NOW - DAY, NOW + DAY)
        await world.finish()
    (after,) = (await listed(served, viewer, model=OWN)).events
    assert (after.unpriced, after.cost_usd) == (False, "0.001200000")
    assert after.price_version == f"organization/{stated.entry.id}"
    assert not after.HasField("counted_cost_usd")
    assert [a.cost_usd for a in after.adjustments] == ["0.003600000", "-0.002400000"]
    first, second = after.adjustments
    assert not first.HasField("old_price_version")
    assert second.old_price_version == first.new_price_version
    assert sum(Decimal(a.input_usd) for a in after.adjustments) == Decimal(after.input_usd)


async def test_pages_show_each_event_once_the_latest_first_whatever_comes_meanwhile(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    dice = random.Random(1)

    def some(count: int) -> list[Arrived]:
        minutes = [0, 0, 7, 500, 9000]
        times = [NOW - dice.choice(minutes) * timedelta(minutes=1) for _ in range(count)]
        return [arrived(org_id=org_id, at=at) for at in times]

    events = some(60)
    await world.count(record(*events))
    expected = [
        UUID(bytes=e.row.event_id)
        for e in sorted(events, key=lambda e: (e.row.at, e.row.event_id), reverse=True)
    ]
    start = timestamp(NOW - RAW)
    for size in (1, 7, 500):
        assert ids(await paged(served, viewer, start=start, page_size=size)) == expected
    page = await listed(served, viewer, start=start, page_size=30)
    await world.count(record(*some(60)))
    token, rest = page.next_page_token, []
    while token:
        after = await listed(served, viewer, start=start, page_size=30, page_token=token)
        rest += after.events
        token = after.next_page_token
    seen = [*ids(list(page.events)), *ids(rest)]
    assert len(seen) == len({*seen})
    assert {*expected} <= {*seen}


async def test_filters_choose_and_the_end_is_out(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    fields: dict[str, Any] = {
        "project_id": uuid4(),
        "user_id": uuid4(),
        "model": "other",
        "session_id": "s",
        "event_type": "session",
    }
    plain = arrived(org_id=org_id, at=NOW - timedelta(minutes=1))
    events = {name: arrived(org_id=org_id, **{name: value}) for name, value in fields.items()}
    await world.count(record(plain, *events.values(), arrived(org_id=uuid4())))

    for name, value in fields.items():
        found = await paged(served, viewer, **{name: str(value)})
        assert ids(found) == [UUID(bytes=events[name].row.event_id)]
    (by_id,) = await paged(served, viewer, event_id=str(UUID(bytes=plain.row.event_id)))
    assert by_id.event_type == "api_call"
    minute = timestamp(NOW - timedelta(minutes=1))
    assert ids(await paged(served, viewer, start=minute, end=timestamp(NOW))) == ids([by_id])
    assert len(await paged(served, viewer, start=timestamp(NOW))) == len(events)
    assert not await paged(served, viewer, end=minute)


async def test_what_is_wrong_is_refused(served: Served, viewer: Principal) -> None:
    now = timestamp(NOW)
    for wrong in (
        *({"start": now, "end": now}, {"page_size": 501}, {"page_size": -1}, {"org_id": "x"}),
        *({"event_id": "x"}, {"project_id": ""}, {"page_token": "AA"}, {"model": "x" * 201}),
        {"page_token": encode_token("-1", str(uuid4()))},
        {"page_token": encode_token("9" * 30, str(uuid4()))},
        {"page_token": encode_token("1", "x")},
        {"page_token": encode_token(str(2**58 - 1), str(uuid4()))},
    ):
        with pytest.raises(Invalid):
            await listed(served, viewer, **wrong)


async def test_metadata_that_ingest_takes_is_shown_without_a_change(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    texts = [
        '{"a":' + "9" * 400 + "}",
        '{"a":9007199254740993}',
        '{"a":' * 35 + "1" + "}" * 35,
        '{"a":' + "[" * 45 + "]" * 45 + "}",
    ]
    events = [arrived(org_id=org_id, metadata=text.encode()) for text in texts]
    await world.count(record(*events))
    assert sorted(event.metadata_json for event in await paged(served, viewer)) == sorted(texts)


async def test_a_page_ends_where_its_metadata_is_large(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    large = b'{"a":"%b"}' % (b"\xc3\xa4" * 8_000)
    events = [arrived(org_id=org_id, metadata=large) for _ in range(300)]
    await world.count(record(*events))
    page = await listed(served, viewer, page_size=500)
    assert 0 < len(page.events) < 300
    assert page.ByteSize() < 3_000_000
    found = ids(await paged(served, viewer, page_size=500))
    assert sorted(found) == sorted(UUID(bytes=event.row.event_id) for event in events)


async def test_a_look_that_takes_too_long_asks_for_less_and_an_unknown_id_looks_at_no_event(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    database: Database,
    arrived: MakeArrived,
    record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = arrived(org_id=org_id)
    await world.count(record(event))
    monkeypatch.setattr("services.usage_tracker.store.raw_events._PATIENCE", 0.3)
    async with database.session() as connection, connection.transaction():
        await connection.execute("LOCK TABLE events")
        with pytest.raises(Invalid) as refused:
            await listed(served, viewer)
        assert refused.value.code == "range_too_long"
        assert not await paged(served, viewer, event_id=str(uuid4()))
    mine = UUID(bytes=event.row.event_id)
    late = timestamp(NOW - timedelta(days=6))
    assert ids(await paged(served, viewer, event_id=str(mine), start=late)) == [mine]


async def test_what_was_found_in_time_is_a_page(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    early = arrived(org_id=org_id, at=NOW - timedelta(hours=5))
    late = arrived(org_id=org_id)
    await world.count(record(early, late))
    whole = RawEventView.between
    looks = 0

    async def once(self: RawEventView, *given: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise RangeTooLong
        return await whole(self, *given)

    monkeypatch.setattr(RawEventView, "between", once)
    page = await listed(served, viewer)
    assert ids(list(page.events)) == [UUID(bytes=late.row.event_id)]
    rest = await paged(served, viewer, page_size=1)
    assert ids(rest) == [UUID(bytes=one.row.event_id) for one in (late, early)]
    after = await listed(served, viewer, page_token=page.next_page_token)
    assert ids(list(after.events)) == ids(rest[1:])


async def test_others_see_no_event(
    served: Served,
    world: World,
    viewer: Principal,
    org_id: UUID,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    project = uuid4()
    mine = arrived(org_id=org_id, project_id=project)
    await world.count(record(mine, arrived(org_id=org_id)))
    stranger = a_user()
    served.access.grant(stranger, uuid4(), "owner")
    key = a_project_key(org_id, project, ["analytics:read"])

    assert len(await paged(served, viewer)) == 2
    assert ids(await paged(served, key)) == [UUID(bytes=mine.row.event_id)]
    assert not await paged(served, stranger)
    assert not await paged(served, a_project_key(org_id, uuid4(), ["analytics:read"]))
    with pytest.raises(NotFound):
        await listed(served, stranger, org_id=str(org_id))
    with pytest.raises(NotFound):
        await listed(served, key, project_id=str(uuid4()))
    with pytest.raises(PermissionDenied):
        await listed(served, a_project_key(org_id, project, ["events:write"]), org_id=str(org_id))
