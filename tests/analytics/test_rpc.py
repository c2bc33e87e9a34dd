"""AnalyticsService behind the kit's real gRPC server, on a real PostgreSQL and a real cache."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID, uuid4

import pytest
import redis.asyncio

from common.clock import ManualClock
from common.database import Scope
from common.errors import Invalid, NotFound, PermissionDenied, Unauthenticated
from common.rpc.fields import timestamp
from common.testing import FakeAccess, Served, a_project_key, a_user, a_user_key, serve
from mindweave.analytics.v1 import analytics_pb2 as pb
from services.analytics.actions import Reports
from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import Columns, Windows, partition_of
from services.analytics.rpc import AnalyticsServicer
from services.analytics.store import RollupStore
from tests.analytics.deltas import windows_of

pytestmark = pytest.mark.rpc

SERVICE = "/mindweave.analytics.v1.AnalyticsService/"
NOW = datetime(2026, 11, 20, 12, 30, 15, tzinfo=UTC)
PARTITIONS = 2
ORG = uuid4()
PROJECTS = (uuid4(), uuid4())
SEQ = count(1)


def windows(org: UUID, **values: object) -> Windows:
    """One delta of one event, with what is given and nothing else."""
    at = values.pop("at", NOW - timedelta(minutes=5))
    row: dict[str, object] = dict.fromkeys(Columns.__struct_fields__, 0)
    row |= dict.fromkeys(DIMENSIONS)
    row |= {"seq": next(SEQ), "org_id": org.bytes, "minute": int(at.timestamp()) // 60}
    row |= {"events": 1, "latency_bins": [], "latency_counts": [], "reason": None, **values}
    return windows_of([row])


@pytest.fixture(scope="module")
async def store(service_database) -> RollupStore:
    db = await service_database("analytics")
    store = RollupStore(db)
    mark = int(NOW.timestamp() * 1_000_000)
    records = [
        windows(
            ORG,
            model="claude-haiku-4-5",
            project_id=PROJECTS[0].bytes,
            cost_nano=3_000_000_000,
            input_nano=3_000_000_000,
            input_tokens=3_000_000,
            latency_count=1,
            latency_sum_us=2000,
            latency_bins=[384],
            latency_counts=[1],
        ),
        windows(ORG, project_id=PROJECTS[1].bytes, mcp_server="github", tool="query", errors=1),
        windows(ORG, at=NOW - timedelta(hours=30), model="claude-haiku-4-5", cost_nano=7),
        Windows({0: mark}, sources=(1, 1)),
    ]
    async with db.change(Scope(), call=None) as change:
        await store.append(change.connection, partition_of(ORG, PARTITIONS), records)
    return store


@pytest.fixture
async def served(store: RollupStore, valkey) -> AsyncIterator[Served]:
    cache = redis.asyncio.Redis.from_url(valkey.url)
    await cache.flushall()
    clock = ManualClock(NOW)
    servicer = AnalyticsServicer(Reports(store, clock, cache, PARTITIONS))
    name = "mindweave.analytics.v1.AnalyticsService"
    async with serve([(name, servicer)], access=FakeAccess()) as served:
        yield served
    await cache.aclose()


@pytest.fixture
def viewer(served: Served):
    principal = a_user()
    served.access.grant(principal, ORG, "viewer")
    return principal


async def usage(served: Served, principal, **given) -> pb.GetUsageResponse:
    answer = await served.invoke(SERVICE + "GetUsage", pb.GetUsageRequest(**given), principal)
    return answer.message


async def test_the_last_day_of_the_only_organization_is_the_answer_to_no_question(served, viewer):
    answer = await usage(served, viewer)
    assert answer.granularity == "day"
    assert answer.totals.events == 2
    assert answer.totals.cost_usd == "3.000000000"
    assert answer.totals.latency_ms_avg == 2.0
    assert answer.totals.latency_ms_p95 == pytest.approx(2.0, rel=0.01)
    assert answer.fresh_until.ToDatetime(tzinfo=UTC) == NOW
    assert not answer.HasField("next_page_token")


async def test_a_dimension_that_is_not_grouped_by_or_lacking_is_null(served, viewer):
    answer = await usage(served, viewer, granularity="all", group_by=["model", "tool"])
    found = {
        (r.model if r.HasField("model") else None, r.tool if r.HasField("tool") else None)
        for r in answer.rows
    }
    assert found == {("claude-haiku-4-5", None), (None, "query")}
    assert not any(r.HasField("project_id") for r in answer.rows)
    assert all(r.start.ToDatetime(tzinfo=UTC) < NOW for r in answer.rows)


async def test_pages_follow_each_other(served, viewer):
    first = await usage(served, viewer, granularity="all", group_by=["tool"], page_size=1)
    assert first.HasField("next_page_token")
    second = await usage(
        served,
        viewer,
        granularity="all",
        group_by=["tool"],
        page_size=1,
        page_token=first.next_page_token,
    )
    assert not second.HasField("next_page_token")
    assert len({r.SerializeToString() for r in (*first.rows, *second.rows)}) == 2
    assert first.totals == second.totals


async def test_costs_come_by_kind_as_decimal_strings(served, viewer):
    request = pb.GetCostsRequest(granularity="all", project_id=str(PROJECTS[0]))
    answer = (await served.invoke(SERVICE + "GetCosts", request, viewer)).message
    (row,) = answer.rows
    assert (row.input_usd, row.output_usd, row.cost_usd) == (
        "3.000000000",
        "0.000000000",
        "3.000000000",
    )
    assert answer.totals.cost_usd == row.cost_usd


async def test_the_dashboard_shows_the_period_beside_the_one_before(served, viewer):
    request = pb.GetDashboardRequest(period="24h")
    answer = (await served.invoke(SERVICE + "GetDashboard", request, viewer)).message
    assert (answer.totals.events, answer.previous.events) == (2, 1)
    assert answer.previous.cost_usd == "0.000000007"
    assert sum(point.events for point in answer.series) == 2
    assert [(i.key, i.share) for i in answer.top_models] == [("claude-haiku-4-5", 1.0)]
    assert [(i.key, i.share) for i in answer.top_tools] == [("query", 0.5)]
    assert {i.key for i in answer.top_projects} == {str(p) for p in PROJECTS}


async def test_a_dashboard_is_cached_for_one_caller_and_never_for_another_tenant(
    served, viewer, store
):
    request = pb.GetDashboardRequest(period="7d")
    first = (await served.invoke(SERVICE + "GetDashboard", request, viewer)).message
    again = (await served.invoke(SERVICE + "GetDashboard", request, viewer)).message
    assert first == again
    key = a_project_key(ORG, PROJECTS[1], ["analytics:read"])
    narrow = (await served.invoke(SERVICE + "GetDashboard", request, key)).message
    assert narrow.totals.events == 1
    stranger = a_user()
    named = pb.GetDashboardRequest(period="7d", org_id=str(ORG))
    with pytest.raises(NotFound):
        await served.invoke(SERVICE + "GetDashboard", named, stranger)


async def test_without_its_cache_the_dashboard_still_answers(store):
    nowhere = redis.asyncio.Redis.from_url("redis://127.0.0.1:1", socket_timeout=0.2)
    servicer = AnalyticsServicer(Reports(store, ManualClock(NOW), nowhere, PARTITIONS))
    principal = a_user()
    access = FakeAccess({principal.subject: {ORG: "owner"}})
    name = "mindweave.analytics.v1.AnalyticsService"
    async with serve([(name, servicer)], access=access) as served:
        request = pb.GetDashboardRequest()
        answer = await served.invoke(SERVICE + "GetDashboard", request, principal)
        assert answer.message.period == "24h"
    await nowhere.aclose()


async def test_the_key_of_a_project_sees_its_project_only(served):
    key = a_project_key(ORG, PROJECTS[1], ["analytics:read"])
    assert (await usage(served, key)).totals.events == 1
    with pytest.raises(NotFound):
        await usage(served, key, project_id=str(PROJECTS[0]))
    with pytest.raises(PermissionDenied):
        await usage(served, a_project_key(ORG, PROJECTS[1], ["events:write"]))


async def test_who_may_not_ask_is_told_as_much_as_it_may_know(served, viewer):
    with pytest.raises(Unauthenticated):
        await served.invoke(SERVICE + "GetUsage", pb.GetUsageRequest())
    with pytest.raises(NotFound):
        await usage(served, a_user(), org_id=str(ORG))
    key = a_user_key(viewer.user_id, ["events:write"])
    served.access.grant(key, ORG, "viewer")
    with pytest.raises(PermissionDenied):
        await usage(served, key)
    with pytest.raises(PermissionDenied):
        await usage(served, key, org_id=str(ORG))


async def test_a_member_of_several_organizations_is_asked_to_name_one(served, viewer):
    served.access.grant(viewer, uuid4(), "owner")
    with pytest.raises(Invalid) as refused:
        await usage(served, viewer)
    assert refused.value.fields[0].pointer == "/org_id"
    assert (await usage(served, viewer, org_id=str(ORG))).totals.events == 2


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"granularity": "week"}, "/granularity"),
        ({"group_by": ["colour"]}, "/group_by/0"),
        ({"group_by": ["model", "model"]}, "/group_by"),
        ({"project_id": "mine"}, "/project_id"),
        ({"page_token": "!"}, "/page_token"),
        ({"page_size": 501}, "/page_size"),
        ({"model": "a\x00b"}, "/model"),
        ({"start": timestamp(NOW), "end": timestamp(NOW - timedelta(days=1))}, "/start"),
        (
            {"start": timestamp(datetime(1999, 1, 1, tzinfo=UTC)), "granularity": "minute"},
            "/granularity",
        ),
        ({"end": timestamp(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))}, "/end"),
    ],
)
async def test_a_wrong_question_is_refused_by_the_name_of_its_field(served, viewer, given, pointer):
    with pytest.raises(Invalid) as refused:
        await usage(served, viewer, **given)
    assert [f.pointer for f in refused.value.fields] == [pointer]


async def test_a_sum_beyond_what_json_holds_is_a_clear_error(served, store, service_database):
    org, principal = uuid4(), a_user()
    served.access.grant(principal, org, "owner")
    part = partition_of(org, PARTITIONS)
    db = await service_database("analytics")
    async with db.change(Scope(), call=None) as change:
        record = windows(org, input_tokens=2**53 + 1, cost_nano=2**62)
        await store.append(change.connection, part, [record])
    with pytest.raises(Invalid, match="input_tokens is beyond") as refused:
        await usage(served, principal)
    assert refused.value.code == "sum_too_large"
    request = pb.GetCostsRequest(granularity="all")
    answer = (await served.invoke(SERVICE + "GetCosts", request, principal)).message
    assert answer.totals.cost_usd == "4611686018.427387904"


async def test_no_sum_is_left_out_of_the_answer(store):
    answered = {"latency_count", "latency_sum_us"} | {
        name.replace("_usd", "_nano")
        for message in (pb.UsageTotals, pb.CostsTotals)
        for name in message.DESCRIPTOR.fields_by_name
    }
    assert set(SUMS) <= answered
