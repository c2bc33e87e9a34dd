"""Judging by columns takes only what judging one by one takes, and records the very same."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.usage_tracker.domain.events import FEWEST_FIELDS, Rejection, read_batch, read_fields
from services.usage_tracker.domain.judged import judge_fields
from services.usage_tracker.domain.judging import Judge, Project, Row, Tenancy
from services.usage_tracker.domain.records import UsageEvents, events_partition
from tests.usage_tracker.plain import events_of

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, 30, 123456, tzinfo=UTC)
ORG, OTHER, CLOSED = UUID(int=1), UUID(int=2), UUID(int=3)
PROJECT, TEAM = UUID(int=11), UUID(int=21)
JUDGE = Judge(
    Tenancy(
        {ORG: True, OTHER: True, CLOSED: False},
        {
            PROJECT: Project(PROJECT, ORG, TEAM),
            UUID(int=12): Project(UUID(int=12), OTHER, None),
            UUID(int=13): Project(UUID(int=13), UUID(int=9), None),
        },
    ),
    NOW,
    timedelta(days=7),
)
ABSENT = "absent"


def event(**fields: Any) -> str:
    """An event as JSON; a field in ``raw`` is written as it stands."""
    raw = fields.pop("raw", {})
    given = {
        "event_id": str(uuid4()),
        "timestamp": "2026-11-21T11:59:00.5Z",
        "event_type": "api_call",
        "model": "claude-haiku-4-5",
        "project_id": str(PROJECT),
        **fields,
    }
    texts = {name: json.dumps(value) for name, value in given.items() if value != ABSENT}
    texts |= {name: text for name, text in raw.items() if text != ABSENT}
    return "{" + ",".join(f'"{name}":{text}' for name, text in texts.items()) + "}"


def body(events: list[str]) -> bytes:
    return ('{"events":[' + ",".join(events) + "]}").encode()


def compare(sent: bytes) -> list[bool]:
    """See that both agree on what is plain; returns which events are."""
    fields = read_fields(sent)
    assert fields is not None
    judged, plain = judge_fields(JUDGE, fields)
    verdicts = [e if isinstance(e, Rejection) else JUDGE.judge(e) for e in read_batch(sent)]
    wanted = [verdict for verdict, ok in zip(verdicts, plain, strict=True) if ok]
    found: dict[int, Row] = {}
    if judged is not None:
        parts = judged.partitions(lambda org, event: events_partition(org, event, 3))
        for part, chosen in parts.items():
            events = events_of(UsageEvents(0, None, judged.columns(chosen)))
            found |= dict(zip(chosen.tolist(), (e.row for e in events), strict=True))
            assert {events_partition(e.row.org_id, e.row.event_id, 3) for e in events} == {part}
    assert [row for _, row in sorted(found.items())] == wanted
    return [bool(ok) for ok in plain]


TEXT = st.sampled_from([ABSENT, None, "a", "ü", "x" * 200]) | st.text("abz", min_size=1, max_size=3)
COUNT = st.sampled_from([ABSENT, None, 0, 1, 2**53]) | st.integers(0, 10**6)
TIMES = st.sampled_from(
    [
        *("2026-11-21T11:59:00Z", "2026-11-21T11:59:00.123Z", "2026-11-21T11:59:00.123456Z"),
        *("2026-11-21T11:59:00+00:00", "2026-11-21T11:59:00.1+00:00", "2026-11-21T12:59:00+01:00"),
        *("2026-11-14T12:00:30.123456Z", "2026-11-14T12:00:30.123455Z", "2026-11-21T12:05:30Z"),
        *("2026-11-21T12:05:30.123456Z", "2026-11-21T12:05:30.123457Z", "2026-02-29T00:00:00Z"),
        *("2026-11-31T00:00:00Z", "2026-11-21T24:00:00Z", "2026-11-21t11:59:00z", "1969-12-31"),
        *("2026-11-21T11:59:60Z", "2026-11-21T11:59:00.1234567Z", "2026-11-21 11:59:00Z", "ü" * 20),
        *("2026-11-21T11:59:00", "0000-11-21T11:59:00Z", "2026-00-21T11:59:00Z", None, ABSENT),
    ]
)
NUMBERS = st.sampled_from(
    [
        *("0", "1", "12.5", "12.345", "12.3455", "12.3445", "0.0005", "0.0015", "1e3", "1E-2"),
        *("-0", "-1", "2000000000", "2000000000.0", "2000000000.001", "2000000001", "null"),
        *("0.000000001", "0.0000000005", "0.0000000015", "999999.999999999", "1000000.5", "1e999"),
        *("1." + "0" * 57, "1." + "0" * 59, "9" * 60, "1e0001", ABSENT, '"1.5"', '"0.0000000025"'),
        *("0.1", "0.2", "0.3", "123456.789", "1999999999.999", "4503599627.370497"),
    ]
) | st.decimals(0, 10**7, places=5).map(lambda number: format(number, "f"))
EVENTS = st.fixed_dictionaries(
    {
        "event_id": st.uuids().map(str)
        | st.sampled_from([str(UUID(int=5)), "X" * 36, "ü" * 36, "1-2", None, ABSENT])
        | st.uuids().map(lambda u: str(u).upper()),
        "timestamp": TIMES,
        "event_type": st.sampled_from(["api_call", "mcp_tool", "session", None, ABSENT]),
        "model": TEXT,
        "mcp_server": TEXT,
        "tool": TEXT,
        "session_id": TEXT,
        "org_id": st.sampled_from(
            [ABSENT, None, str(ORG), str(OTHER), str(CLOSED), str(UUID(int=9)), "no"]
        ),
        "project_id": st.sampled_from(
            [ABSENT, None, "no", *(str(UUID(int=n)) for n in range(10, 14))]
        ),
        "user_id": TEXT | st.sampled_from([str(UUID(int=7)), str(UUID(int=7)).upper()]),
        "status": st.sampled_from([ABSENT, None, "ok", "error"]),
        "provider": TEXT,
        "service_tier": TEXT,
        "error_type": TEXT,
        "request_id": TEXT,
        "input_tokens": COUNT,
        "cache_write_1h_tokens": COUNT,
        "metadata": st.sampled_from(
            [ABSENT, None, {}, {"b": 1, "a": [1.5, "ü", None]}, {"a": "x" * 17_000}]
        ),
        "raw": st.fixed_dictionaries({"latency_ms": NUMBERS, "cost_usd": NUMBERS}),
    }
)
PLAIN = {
    "timestamp": "2026-11-21T11:59:00Z",
    "event_type": "api_call",
    "model": "m",
    "org_id": ABSENT,
    "project_id": str(PROJECT),
    "raw": {},
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(EVENTS, st.sets(st.sampled_from(sorted(PLAIN)), min_size=3)),
        min_size=FEWEST_FIELDS,
        max_size=FEWEST_FIELDS + 8,
    )
)
def test_what_columns_take_is_what_is_taken_one_by_one(
    drawn: list[tuple[dict[str, Any], set[str]]],
) -> None:
    """Each event is odd in some of its fields and plain in the others."""
    events = [{**fields, **{name: PLAIN[name] for name in plain}} for fields, plain in drawn]
    for some in events:
        some["timestamp"] = some["timestamp"] if some["timestamp"] is not None else ABSENT
    sent = body([event(**{**some, "raw": dict(some["raw"])}) for some in events])
    if read_fields(sent) is None:
        sent = body([event(**{**some, "raw": {}}) for some in events])
    if read_fields(sent) is not None:
        compare(sent)


@settings(max_examples=50, deadline=None)
@given(st.lists(NUMBERS, min_size=FEWEST_FIELDS, max_size=80), st.booleans())
def test_numbers_are_scaled_as_they_are_written(literals: list[str], cost: bool) -> None:
    name = "cost_usd" if cost else "latency_ms"
    sent = body([event(raw={name: literal}) for literal in literals])
    if read_fields(sent) is not None:
        compare(sent)


@settings(max_examples=50, deadline=None)
@given(st.lists(TIMES, min_size=FEWEST_FIELDS, max_size=80))
def test_times_are_read_as_they_are_written(times: list[str | None]) -> None:
    compare(body([event(timestamp=time) for time in times]))


def test_usual_events_are_all_plain() -> None:
    events = [
        event(
            user_id=user,
            org_id=org,
            latency_ms=1234.567,
            cost_usd=0.012345678,
            timestamp=time,
            metadata=metadata,
        )
        for user in (str(UUID(int=7)), "jan", None)
        for org in (None, str(ORG), ABSENT)
        for time in ("2026-11-21T11:59:00Z", "2026-11-21T11:59:00.123456+00:00")
        for metadata in (None, {"team": "search"})
    ]
    assert all(compare(body(events)))


def test_a_day_that_does_not_exist_is_not_the_one_after() -> None:
    march = dataclasses.replace(JUDGE, now=datetime(2026, 3, 2, tzinfo=UTC))
    times = ["2026-02-28T12:00:00Z", "2026-02-29T12:00:00Z", "2026-03-00T12:00:00Z"]
    fields = read_fields(body([event(timestamp=time) for time in times * FEWEST_FIELDS]))
    assert fields is not None

    assert judge_fields(march, fields)[1].tolist() == [True, False, False] * FEWEST_FIELDS


def test_an_event_that_is_not_plain_leaves_the_others_as_they_are() -> None:
    events = [event() for _ in range(40)]
    events[7] = event(timestamp="2026-11-01T00:00:00Z")
    events[20] = event(event_id=ABSENT)

    assert np.flatnonzero(~np.array(compare(body(events)))).tolist() == [7, 20]


@pytest.mark.parametrize(
    "odd",
    [
        event(colour="red"),
        event(input_tokens=-1),
        event(model=""),
        event(model="a\x00b"),
        event(status="fine"),
        "{",
        "7",
        '{"metadata":' + "[" * 2000 + "]" * 2000 + "}",
    ],
)
def test_a_batch_with_what_is_no_event_is_read_one_by_one(odd: str) -> None:
    assert read_fields(body([event() for _ in range(50)])) is not None
    assert read_fields(body([*(event() for _ in range(50)), odd])) is None


def test_few_events_and_too_many_are_read_one_by_one() -> None:
    assert read_fields(body([event()] * (FEWEST_FIELDS - 1))) is None
    assert read_fields(body(["{}"] * 10_001)) is None
    assert read_fields(b"{}") is None
