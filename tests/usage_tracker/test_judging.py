from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from services.usage_tracker.domain.events import Rejection, read_one
from services.usage_tracker.domain.judging import (
    MAX_METADATA_BYTES,
    Judge,
    Project,
    Row,
    Tenancy,
    microseconds,
    moment,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ORG, OTHER_ORG, CLOSED = UUID(int=1), UUID(int=2), UUID(int=3)
TEAM = UUID(int=10)
OURS = Project(UUID(int=20), ORG, TEAM)
THEIRS = Project(UUID(int=21), OTHER_ORG, None)
EVENT = {
    "event_id": "018f9d0e-0000-7000-8000-000000000001",
    "timestamp": "2026-11-21T11:59:00Z",
    "event_type": "api_call",
    "model": "claude-haiku-4-5",
}


def judged(
    event: dict[str, Any],
    orgs: dict[UUID, bool] | None = None,
    *,
    bound: UUID | None = None,
    now: datetime = NOW,
    **options: Any,
) -> Row | Rejection:
    tenancy = Tenancy(
        {ORG: True} if orgs is None else orgs,
        {p.project_id: p for p in (OURS, THEIRS)},
        bound,
    )
    found = read_one(json.dumps(event).encode())
    if isinstance(found, Rejection):
        return found
    return Judge(tenancy, now, timedelta(days=7), **options).judge(found)


def row(event: dict[str, Any], orgs: dict[UUID, bool] | None = None, **options: Any) -> Row:
    found = judged(event, orgs, **options)
    assert isinstance(found, Row), found
    return found


def refusal(
    event: dict[str, Any], orgs: dict[UUID, bool] | None = None, **options: Any
) -> tuple[str, str | None]:
    found = judged(event, orgs, **options)
    assert isinstance(found, Rejection)
    return found.code, found.field


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in EVENT.items() if key != name}


def test_defaults_are_filled_in() -> None:
    found = row(EVENT)

    assert (found.status, found.input_tokens, found.cache_write_1h_tokens) == ("ok", 0, 0)
    assert (found.latency_us, found.client_cost_nano, found.user_id) == (None, None, None)
    assert moment(found.at) == datetime(2026, 11, 21, 11, 59, tzinfo=UTC)


@pytest.mark.parametrize("name", ["event_id", "timestamp", "event_type", "model"])
def test_a_required_field_that_is_absent_is_named(name: str) -> None:
    assert refusal(without(name)) == ("missing_field", name)
    assert refusal({**EVENT, name: None}) == ("missing_field", name)


@pytest.mark.parametrize(
    ("event_type", "given", "missing"),
    [
        ("mcp_tool", {"tool": "query"}, "mcp_server"),
        ("mcp_tool", {"mcp_server": "postgres"}, "tool"),
        ("session", {}, "session_id"),
    ],
)
def test_each_type_has_required_fields_of_its_own(
    event_type: str, given: dict[str, str], missing: str
) -> None:
    event = {**without("model"), "event_type": event_type, **given}

    assert refusal(event) == ("missing_field", missing)
    assert row({**event, missing: "named"}).model is None


@pytest.mark.parametrize("name", ["event_id", "org_id", "project_id"])
@pytest.mark.parametrize(
    "text", ["x", "018f9d0e00007000800000000000001", "{018f9d0e-0000-7000-8000-000000000001}", " "]
)
def test_an_id_that_is_no_uuid_is_refused(name: str, text: str) -> None:
    assert refusal({**EVENT, name: text}) == ("invalid_value", name)


def test_the_age_of_an_event_is_bounded_on_both_sides() -> None:
    def at(age: timedelta) -> dict[str, Any]:
        return {**EVENT, "timestamp": (NOW - age).isoformat()}

    second = timedelta(seconds=1)
    assert refusal(at(timedelta(days=7) + second)) == ("too_old", "timestamp")
    assert refusal(at(-timedelta(minutes=5) - second)) == ("in_future", "timestamp")
    assert row(at(timedelta(days=7)))
    assert row(at(-timedelta(minutes=5)))
    assert refusal({**EVENT, "timestamp": "0001-01-01T00:00:00+14:00"})[0] == "too_old"
    assert refusal({**EVENT, "timestamp": "9999-12-31T23:59:59-14:00"})[0] == "in_future"


@pytest.mark.parametrize(
    ("edge", "code"),
    [(timedelta(days=7), "too_old"), (-timedelta(minutes=5), "in_future")],
)
def test_around_a_jump_of_the_clock_an_event_is_judged_by_the_time_that_it_tells(
    edge: timedelta, code: str
) -> None:
    clock = ManualClock(NOW)
    event = {**EVENT, "timestamp": NOW.isoformat()}
    before = judged(event, now=clock.now())

    clock.advance(edge)
    assert judged(event, now=clock.now()) == before
    clock.advance(edge / 1_000_000)
    assert refusal(event, now=clock.now()) == (code, "timestamp")
    clock.advance(30 * edge)
    assert refusal(event, now=clock.now()) == (code, "timestamp")
    clock.advance(NOW - clock.now())
    # The digest is part of the row: what comes again then is a repeat.
    assert judged(event, now=clock.now()) == before
    assert isinstance(before, Row)


def test_a_time_with_an_offset_is_the_same_moment() -> None:
    assert row({**EVENT, "timestamp": "2026-11-21T17:29:00+05:30"}).at == row(EVENT).at


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"org_id": str(OTHER_ORG)}, ("foreign_org", "org_id")),
        ({"project_id": str(THEIRS.project_id)}, ("foreign_project", "project_id")),
        ({"project_id": str(UUID(int=99))}, ("foreign_project", "project_id")),
        (
            {"org_id": str(ORG), "project_id": str(THEIRS.project_id)},
            ("foreign_project", "project_id"),
        ),
    ],
)
def test_what_a_member_cannot_reach_is_foreign_whether_it_exists_or_not(
    event: dict[str, str], expected: tuple[str, str]
) -> None:
    assert refusal({**EVENT, **event}) == expected


def test_a_member_of_one_organization_need_not_name_it() -> None:
    found = row({**EVENT, "project_id": str(OURS.project_id)})

    assert (found.org_id, found.project_id) == (ORG.bytes, OURS.project_id.bytes)
    assert found.team_id == TEAM.bytes


def test_a_member_of_two_organizations_names_one_or_a_project() -> None:
    both = {ORG: True, OTHER_ORG: True}

    assert refusal(EVENT, both) == ("missing_field", "org_id")
    assert row({**EVENT, "org_id": str(OTHER_ORG)}, both).org_id == OTHER_ORG.bytes
    of_project = {**EVENT, "project_id": str(THEIRS.project_id)}
    assert row(of_project, both).org_id == OTHER_ORG.bytes


def test_a_member_who_may_only_read_is_denied() -> None:
    assert refusal(EVENT, {ORG: False}) == ("permission_denied", "org_id")
    assert refusal(EVENT, {}) == ("permission_denied", "org_id")


def test_a_projects_key_gives_its_project_and_organization() -> None:
    found = row(EVENT, bound=OURS.project_id)

    assert (found.org_id, found.project_id) == (ORG.bytes, OURS.project_id.bytes)
    other = {**EVENT, "project_id": str(UUID(int=99))}
    assert refusal(other, bound=OURS.project_id) == ("foreign_project", "project_id")
    assert refusal({**EVENT, "org_id": str(OTHER_ORG)}, bound=OURS.project_id) == (
        "foreign_org",
        "org_id",
    )


def test_a_key_of_a_deleted_project_writes_nothing() -> None:
    assert refusal(EVENT, bound=UUID(int=77)) == ("foreign_project", "project_id")


def test_a_user_who_is_no_uuid_gets_one_of_the_organization_and_keeps_the_name() -> None:
    named = row({**EVENT, "user_id": "jane"})
    known = row({**EVENT, "user_id": str(TEAM).upper()})

    assert (named.user_id, named.user_ref) == (uuid5(ORG, "jane").bytes, "jane")
    assert (known.user_id, known.user_ref) == (TEAM.bytes, None)


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        (0.0012345, 1_234_500),
        ("0.0012345", 1_234_500),
        (1, 1_000_000_000),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.00000000050000000000000000000000000001", 1),
        ("1e-7", 100),
        (0, 0),
        ("1000000000", 10**18),
    ],
)
def test_the_clients_own_figure_is_kept_exact_to_the_nano(written: Any, nano: int) -> None:
    assert row({**EVENT, "cost_usd": written}).client_cost_nano == nano


@pytest.mark.parametrize(
    "written",
    [
        *(-1, "-0.01", "", "1_000", "NaN", "Infinity", "1.", ".5", "0x1", "٣", " 1", True, [], {}),
        *("1000000001", "1e999", "1e9999999999", "9" * 100, "1\n"),
    ],
)
def test_a_figure_that_is_no_amount_is_refused(written: Any) -> None:
    assert refusal({**EVENT, "cost_usd": written}) == ("invalid_value", "cost_usd")


@pytest.mark.parametrize("written", ["12", -1, True, [], 2_000_000_001, "null"])
def test_a_latency_that_is_no_time_is_refused(written: Any) -> None:
    assert refusal({**EVENT, "latency_ms": written}) == ("invalid_value", "latency_ms")


@given(st.decimals(min_value=0, max_value=2_000_000_000, places=6))
def test_latency_is_microseconds_half_even_from_what_is_written(ms: Decimal) -> None:
    found = read_one(json.dumps(EVENT)[:-1].encode() + f',"latency_ms":{ms}}}'.encode())
    assert not isinstance(found, Rejection)
    judge = Judge(Tenancy({ORG: True}, {}), NOW, timedelta(days=7))
    verdict = judge.judge(found)

    assert isinstance(verdict, Row)
    assert verdict.latency_us == int((ms * 1000).to_integral_value(ROUND_HALF_EVEN))


def test_metadata_are_kept_as_json_up_to_their_size() -> None:
    assert row({**EVENT, "metadata": {"b": 1, "a": "é"}}).metadata == '{"a":"é","b":1}'.encode()
    large = {"a": "x" * MAX_METADATA_BYTES}
    assert refusal({**EVENT, "metadata": large}) == ("invalid_value", "metadata")


def test_the_digest_tells_whether_two_bodies_say_the_same() -> None:
    same = [
        {"status": "ok"},
        {"input_tokens": 0},
        {"timestamp": "2026-11-21T12:59:00+01:00"},
        {"org_id": str(ORG)},
        {"latency_ms": None},
    ]
    others = [
        {"status": "error"},
        {"input_tokens": 1},
        {"output_tokens": 1},
        {"timestamp": "2026-11-21T11:59:00.000001Z"},
        {"metadata": {}},
        {"project_id": str(OURS.project_id)},
        {"latency_ms": 0},
        {"cost_usd": 0},
    ]

    assert {row({**EVENT, **change}).digest for change in same} == {row(EVENT).digest}
    assert len({row({**EVENT, **change}).digest for change in [{}, *others]}) == len(others) + 1


def test_the_digest_does_not_depend_on_the_order_in_metadata() -> None:
    first = row({**EVENT, "metadata": {"a": 1, "b": {"c": 2, "d": 3}}})
    second = row({**EVENT, "metadata": {"b": {"d": 3, "c": 2}, "a": 1}})

    assert first.digest == second.digest


def test_a_project_that_moved_to_another_team_makes_no_conflict() -> None:
    event = read_one(json.dumps({**EVENT, "project_id": str(OURS.project_id)}).encode())
    moved = Project(OURS.project_id, ORG, UUID(int=11))
    assert not isinstance(event, Rejection)
    rows = [
        Judge(Tenancy({ORG: True}, {p.project_id: p}), NOW, timedelta(days=7)).judge(event)
        for p in (OURS, moved)
    ]

    assert isinstance(rows[0], Row)
    assert isinstance(rows[1], Row)
    assert rows[0].team_id != rows[1].team_id
    assert rows[0].digest == rows[1].digest


def test_an_event_without_an_id_is_named_by_its_organization() -> None:
    found = row(without("event_id"), name_event=lambda org: uuid5(org, "key"))

    assert found.event_id == uuid5(ORG, "key").bytes
    assert row(EVENT, name_event=lambda org: org).event_id == UUID(EVENT["event_id"]).bytes


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_and_moments_are_each_others_inverse(at: datetime) -> None:
    assert moment(microseconds(at)) == at
