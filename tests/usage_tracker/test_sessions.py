"""Sessions by columns against sessions event by event."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import numpy as np
import pytest

from services.usage_tracker.domain.islands import (
    Islands,
    Part,
    compacted,
    key_and_minute,
    of_models,
    of_tools,
)
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.sessions import (
    LARGE,
    SessionDeltas,
    Used,
    session_corrections_of,
    session_deltas_of,
    together,
    unpacked,
)
from services.usage_tracker.domain.settling import priced
from services.usage_tracker.domain.windows import Costs
from tests.usage_tracker.conftest import MakeArrived
from tests.usage_tracker.plain import Arrived, batch_of

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
ORG, OTHER = UUID(int=1), UUID(int=2)
MINUTE = 60_000_000
GAP = 30 * MINUTE
BOOK = PriceBook.bundled()
Totals = tuple[int, ...]
# What tells a session apart, when it began and ended, and the sums by what was called.
Plain = tuple[tuple[object, ...], int, int, dict[Used, Totals]]


def plain_sessions(
    events: Iterable[tuple[Arrived, int | None]], gap: int, more: Sequence[int] = ()
) -> list[Plain]:
    """The sessions of events, each with what it costs (None: nothing), said as plainly as can be.

    Args:
        events: of one organization.
        gap: microseconds.
        more: by which each event has become dearer.
    """
    found = defaultdict(list)
    for (event, cost), dearer in zip(events, more or iter(int, 1), strict=False):
        row = event.row
        who = row.user_id if row.session_id is None else None
        found[row.project_id, row.session_id, who].append((row.at, row, (cost or 0) + dearer, cost))
    sessions: list[Plain] = []
    for key, several in found.items():
        run: list[tuple[int, object, int, int | None]] = []
        for one in [*sorted(several, key=lambda e: e[0]), None]:
            if run and (one is None or (key[1] is None and one[0] - run[-1][0] >= gap)):
                sessions.append((key, run[0][0], run[-1][0], _added(run)))
                run = []
            if one is not None:
                run.append(one)
    return sessions


def _added(run: Iterable[tuple[int, object, int, int | None]]) -> dict[Used, Totals]:
    sums: defaultdict[Used, Totals] = defaultdict(lambda: (0,) * 8)
    for _, row, cost, counted in run:
        used = Used(row.event_type, row.model, row.mcp_server, row.tool)
        adds = (
            1,
            int(row.status == "error"),
            int(row.model is not None and counted is None),
            row.input_tokens,
            row.output_tokens,
            row.cache_read_tokens,
            row.cache_write_5m_tokens + row.cache_write_1h_tokens,
            cost,
        )
        sums[used] = tuple(a + b for a, b in zip(sums[used], adds, strict=True))
    return dict(sums)


def shown(islands: Islands) -> list[Plain]:
    found: list[Plain] = []
    for n in range(len(islands)):
        one = islands.session(n)
        user = None
        if one.session_id is None and one.user_id is not None:
            user = one.user_id.bytes
        key = (one.project_id and one.project_id.bytes, one.session_id, user)
        sums = {used: tuple(_values(part)) for used, part in one.used.items()}
        assert tuple(_values(one.whole)) == tuple(map(sum, zip(*sums.values(), strict=True)))
        found.append((key, one.started_us, one.ended_us, sums))
    return found


def _values(part: Part) -> list[int]:
    return [getattr(part, name) for name in Part.__slots__]


def ordered(sessions: Iterable[Plain]) -> list[Plain]:
    return sorted(sessions, key=repr)


def some_events(arrived: MakeArrived, seed: int, count: int = 400) -> list[Arrived]:
    """Events of two organizations, close together and far apart, in no order of time."""
    dice = random.Random(seed)
    projects, users = [None, UUID(int=11), UUID(int=12)], [None, uuid4(), UUID(int=0)]
    found = []
    for _ in range(count):
        kind = dice.choice(["api_call", "mcp_tool", "session"])
        found.append(
            arrived(
                org_id=dice.choice([ORG, OTHER]),
                at=NOW - timedelta(minutes=dice.choice([3, 90, 3000]) * dice.random()),
                project_id=dice.choice(projects),
                user_id=dice.choice(users),
                session_id=dice.choice([None, None, "a", "b"]),
                event_type=kind,
                model=dice.choice(["claude-haiku-4-5", "acme-13b"]) if kind == "api_call" else None,
                mcp_server="files" if kind == "mcp_tool" else None,
                tool=dice.choice(["read", "write"]) if kind == "mcp_tool" else None,
                status=dice.choice(["ok", "ok", "error"]),
                input_tokens=dice.choice([0, 1000, 2**52]),
                cache_write_5m_tokens=dice.randrange(3),
            )
        )
    return found


def deltas_of(events: Sequence[Arrived], org: UUID) -> SessionDeltas:
    """As a batch of them is stored, and read again."""
    batch = batch_of(events)
    packed = session_deltas_of(batch, priced(batch, BOOK))
    assert len({one.org_id for one in packed}) == len(packed)
    return unpacked([one.data for one in packed if one.org_id == org.bytes])


def with_costs(events: Sequence[Arrived], org: UUID) -> list[tuple[Arrived, int | None]]:
    batch = batch_of(events)
    costs = priced(batch, BOOK)
    nanos = costs.nanos.sum(axis=1).tolist()
    return [
        (event, nano if known else None)
        for event, nano, known in zip(events, nanos, costs.priced.tolist(), strict=True)
        if event.row.org_id == org.bytes
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gap", [MINUTE, GAP, 24 * 60 * MINUTE])
def test_sessions_are_those_of_events_whatever_the_batches_and_moves(
    arrived: MakeArrived, seed: int, gap: int
) -> None:
    events, dice = some_events(arrived, seed), random.Random(seed)
    parts: list[SessionDeltas] = []
    rows: SessionDeltas | None = None
    start = 0
    while start < len(events):
        size = dice.choice([1, 20, 150])
        parts.append(deltas_of(events[start : start + size], ORG))
        start += size
        if dice.random() < 0.3:
            rows = compacted(together([*parts, *([rows] if rows is not None else [])]), gap)
            parts = []
    islands = Islands(ORG, together([*parts, *([rows] if rows is not None else [])]), gap)

    assert ordered(shown(islands)) == ordered(plain_sessions(with_costs(events, ORG), gap))
    assert len({islands.id(n) for n in range(len(islands))}) == len(islands)


def test_moving_leaves_few_rows_and_none_beyond_a_day(arrived: MakeArrived) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0)
    times = [midnight + timedelta(minutes=n) for n in range(-300, 300)]
    events = [arrived(at=at, user_id=UUID(int=5)) for at in times]
    rows = compacted(deltas_of(events, ORG), GAP)

    assert len(rows) == 2
    assert len(Islands(ORG, rows, GAP)) == 1
    assert sorted(rows.rows["events"].tolist()) == [300, 300]


def test_a_gap_begins_another_session_and_a_late_event_joins_the_two(arrived: MakeArrived) -> None:
    def at(minutes: float) -> Arrived:
        return arrived(at=NOW + timedelta(minutes=minutes), user_id=UUID(int=5))

    exactly = Islands(ORG, deltas_of([at(0), at(30)], ORG), GAP)
    less = Islands(ORG, deltas_of([at(0), at(29.999)], ORG), GAP)
    assert (len(exactly), len(less)) == (2, 1)
    early, late = exactly.id(0), exactly.id(1)

    joined = Islands(ORG, deltas_of([at(0), at(30), at(15)], ORG), GAP)
    assert [joined.id(0)] == [early]
    earlier = Islands(ORG, deltas_of([at(0), at(30), at(15), at(-10)], ORG), GAP)
    (only,) = [earlier.session(0)]
    assert only.id not in (early, late)
    for old in (early, late, only.id):
        key, minute = key_and_minute(old)
        assert [key] == earlier.keys_of(np.array([0]))
        assert only.started_us // MINUTE <= minute <= only.ended_us // MINUTE


def test_a_session_that_events_name_has_one_id_whoever_calls_and_however_long(
    arrived: MakeArrived,
) -> None:
    def named(days: float, **fields: object) -> Arrived:
        return arrived(at=NOW - timedelta(days=days), session_id="s", **fields)

    islands = Islands(
        ORG, deltas_of([named(0, user_id=uuid4()), named(5, user_id=uuid4())], ORG), GAP
    )
    again = Islands(ORG, deltas_of([named(6)], ORG), GAP)
    others = Islands(ORG, deltas_of([named(0, project_id=uuid4())], ORG), GAP)

    assert [islands.session(0).user_id] == [None]
    assert islands.id(0) == again.id(0) != others.id(0)
    assert islands.id(0).version == 8


def test_corrections_change_costs_and_nothing_else(arrived: MakeArrived) -> None:
    events = some_events(arrived, 9)
    mine = [event for event in events if event.row.org_id == ORG.bytes and event.row.model]
    batch = batch_of(mine)
    more = np.random.default_rng(1).integers(-(10**6), 10**6, (len(mine), 4))
    corrections = session_corrections_of(batch, more, np.zeros(len(mine), np.int64))
    before = Islands(ORG, deltas_of(mine, ORG), GAP)
    after = Islands(
        ORG, together([before.deltas, unpacked([one.data for one in corrections])]), GAP
    )

    dearer = more.sum(axis=1).tolist()
    assert ordered(shown(after)) == ordered(plain_sessions(with_costs(mine, ORG), GAP, dearer))


def test_corrections_alone_are_no_session(arrived: MakeArrived) -> None:
    batch = batch_of([arrived()])
    (one,) = session_corrections_of(batch, np.ones((1, 4), np.int64), np.zeros(1, np.int64))
    assert Islands(ORG, unpacked([one.data]), GAP).counted().tolist() == [False]


def test_sums_beyond_64_bits_are_exact(arrived: MakeArrived) -> None:
    batch = batch_of([arrived(user_id=UUID(int=5), session_id="s") for _ in range(5_000)])
    costs = priced(batch, BOOK)
    nanos = np.zeros_like(costs.nanos)
    nanos[:, 0] = 2**62
    (one,) = session_deltas_of(batch, replace(costs, nanos=nanos))
    moved = compacted(unpacked([one.data]), GAP)
    assert len(moved) == 5_000
    assert Islands(ORG, moved, GAP).session(0).whole.cost_nano == 5_000 * 2**62
    nanos[:, 0] = LARGE
    (one,) = session_deltas_of(batch, Costs(nanos, costs.priced, costs.versions))
    assert Islands(ORG, unpacked([one.data]), GAP).session(0).whole.cost_nano == 5_000 * LARGE


def test_models_and_tools_have_their_own_sums(arrived: MakeArrived) -> None:
    events = [
        arrived(session_id="s", model="b", input_tokens=1),
        arrived(session_id="s", model="a", input_tokens=2),
        arrived(session_id="s", model="a", input_tokens=3, status="error"),
        *(
            arrived(session_id="s", model=None, event_type="mcp_tool", mcp_server=m, tool="read")
            for m in ("files", "web", "web")
        ),
        arrived(session_id="s", model=None, event_type="session"),
    ]
    session = Islands(ORG, deltas_of(events, ORG), GAP).session(0)

    models = [
        (name, part.events, part.errors, part.input_tokens) for name, part in of_models(session)
    ]
    assert models == [("a", 2, 1, 5), ("b", 1, 0, 1)]
    tools = [(name, part.events) for name, part in of_tools(session)]
    assert tools == [(("files", "read"), 1), (("web", "read"), 2)]
    assert session.whole.events == 7
