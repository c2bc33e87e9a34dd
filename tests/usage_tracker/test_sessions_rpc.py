"""SessionService behind the kit's real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database
from common.errors import Invalid, NotFound, PermissionDenied, Unauthenticated
from common.identity.call import ANONYMOUS, Principal
from common.paging import encode_token
from common.rpc.fields import timestamp
from common.testing import Served, a_project_key, a_user, a_user_key, serve
from mindweave.usage_tracker.v1 import sessions_pb2 as pb
from services.usage_tracker.actions.sessions import Sessions
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.rpc.sessions import SessionServicer
from services.usage_tracker.store.sessions import SessionStore, Wanted
from tests.usage_tracker.conftest import NOW, MakeArrived, MakeRecord
from tests.usage_tracker.repricing.conftest import World

pytestmark = pytest.mark.rpc

SERVICE = "mindweave.usage_tracker.v1.SessionService"
USER = uuid4()


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]]) -> Database:
    made: Database = await service_database("usage_tracker", size=4)
    return made


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Served]:
    sessions = Sessions(SessionStore(database, timedelta(minutes=30)))
    servicer = SessionServicer(sessions, ManualClock(NOW))
    async with serve([(SERVICE, servicer)], database=database) as running:
        yield running


@pytest.fixture
def project() -> UUID:
    return uuid4()


@pytest.fixture
async def org_id(
    database: Database, arrived: MakeArrived, record: MakeRecord, project: UUID
) -> UUID:
    """An organization with a session that is named, and two that are not."""
    org = uuid4()

    def event(minutes: int, **fields: Any) -> Any:
        return arrived(org_id=org, at=NOW - timedelta(minutes=minutes), **fields)

    tool = {"event_type": "mcp_tool", "model": None, "mcp_server": "files", "tool": "read"}
    await World(database, 1).count(
        record(
            event(90, session_id="s", project_id=project, user_id=USER),
            event(50, session_id="s", project_id=project, user_id=USER, **tool),
            event(10, session_id="s", project_id=project, event_type="session", model=None),
            event(90, user_id=USER),
            event(50, user_id=USER, status="error"),
        )
    )
    return org


@pytest.fixture
def viewer(served: Served, org_id: UUID) -> Principal:
    user = a_user()
    served.access.grant(user, org_id, "viewer")
    return user


async def listed(served: Served, who: Principal, **given: Any) -> pb.ListSessionsResponse:
    request = pb.ListSessionsRequest(**given)
    found: pb.ListSessionsResponse = (
        await served.invoke(f"/{SERVICE}/ListSessions", request, who)
    ).message
    return found


async def one(served: Served, who: Principal, session: str) -> pb.Session:
    request = pb.GetSessionRequest(id=session)
    found: pb.GetSessionResponse = (
        await served.invoke(f"/{SERVICE}/GetSession", request, who)
    ).message
    return found.session


async def test_a_session_tells_its_time_calls_tools_and_cost(
    served: Served, viewer: Principal, org_id: UUID, project: UUID
) -> None:
    answer = await listed(served, viewer)
    (named,) = [s for s in answer.sessions if s.HasField("session_id")]

    assert not answer.HasField("next_page_token")
    assert named == await one(served, viewer, named.id)
    assert (named.session_id, named.org_id, named.project_id) == ("s", str(org_id), str(project))
    assert not named.HasField("user_id")
    assert named.duration_ms == 80 * 60_000
    assert named.started_at.ToDatetime() == (NOW - timedelta(minutes=90)).replace(tzinfo=None)
    assert (named.events, named.calls, named.tool_calls, named.errors) == (3, 2, 1, 0)
    # 1,000 tokens of input and 100 of output of Haiku, at 1 and 5 dollars a million.
    assert named.cost_usd == "0.001500000"
    assert [(m.model, m.calls, m.cost_usd) for m in named.models] == [
        ("claude-haiku-4-5", 1, "0.001500000")
    ]
    assert [(t.mcp_server, t.tool, t.calls) for t in named.tools] == [("files", "read", 1)]


async def test_without_a_name_a_gap_parts_the_sessions_of_a_user(
    served: Served, viewer: Principal, org_id: UUID
) -> None:
    answer = await listed(served, viewer, org_id=str(org_id), user_id=str(USER))
    late, early = (s for s in answer.sessions if not s.HasField("session_id"))

    assert (late.events, late.errors, late.duration_ms, late.user_id) == (1, 1, 0, str(USER))
    assert (early.errors, early.models[0].errors, late.models[0].errors) == (0, 0, 1)
    assert len(answer.sessions) == 3
    assert not (await listed(served, viewer, user_id=str(uuid4()))).sessions


async def test_pages_follow_each_other(served: Served, viewer: Principal) -> None:
    whole = list((await listed(served, viewer)).sessions)
    found, token = [], ""
    while True:
        page = await listed(served, viewer, page_size=1, page_token=token)
        found += page.sessions
        if not page.HasField("next_page_token"):
            break
        token = page.next_page_token
    assert found == whole
    assert len(found) == 3


async def test_the_time_asked_for_is_when_sessions_began(served: Served, viewer: Principal) -> None:
    start, end = (timestamp(NOW - timedelta(minutes=m)) for m in (60, 50))
    assert not (await listed(served, viewer, start=start, end=end)).sessions
    assert len((await listed(served, viewer, start=start)).sessions) == 1
    assert len((await listed(served, viewer, end=start)).sessions) == 2


@pytest.mark.parametrize("kind", ["", "AA", "x" * 1024, "forged", "long", "late"])
async def test_what_is_wrong_is_refused(served: Served, viewer: Principal, kind: str) -> None:
    tokens = {
        "forged": encode_token("-1", str(uuid4())),
        "late": encode_token(str(2**58 - 1), str(uuid4())),
        "long": encode_token("9" * 40, str(uuid4())),
    }
    given: dict[str, Any] = {"page_token": tokens.get(kind, kind)}
    if not kind:
        given = {"start": timestamp(NOW), "end": timestamp(NOW)}
    with pytest.raises(Invalid):
        await listed(served, viewer, **given)
    for wrong in ({"page_size": 501}, {"page_size": -1}, {"org_id": "x"}, {"user_id": ""}):
        with pytest.raises(Invalid):
            await listed(served, viewer, **wrong)
    with pytest.raises(Invalid):
        await one(served, viewer, "no-id")


async def test_others_are_not_shown_that_there_is_a_session(
    served: Served, viewer: Principal, org_id: UUID, project: UUID
) -> None:
    stranger, narrow = a_user(), a_user_key(viewer.user_id or uuid4(), ["events:write"])
    served.access.grant(stranger, uuid4(), "owner")
    served.access.grant(narrow, org_id, "viewer")
    key = a_project_key(org_id, project, ["analytics:read"])
    other = a_project_key(org_id, uuid4(), ["analytics:read"])
    everything = (await listed(served, viewer)).sessions
    (named,) = [s for s in everything if s.HasField("session_id")]
    (*_, unnamed) = [s for s in everything if not s.HasField("session_id")]

    assert list((await listed(served, key)).sessions) == [named]
    assert await one(served, key, named.id) == named
    assert not (await listed(served, other)).sessions
    assert not (await listed(served, stranger)).sessions
    for who, session in ((stranger, named), (other, named), (key, unnamed), (viewer, None)):
        with pytest.raises(NotFound):
            await one(served, who, str(uuid4()) if session is None else session.id)
    with pytest.raises(NotFound):
        await listed(served, stranger, org_id=str(org_id))
    with pytest.raises(NotFound):
        await listed(served, key, project_id=str(uuid4()))
    for refused, error in ((narrow, PermissionDenied), (ANONYMOUS, Unauthenticated)):
        with pytest.raises(error):
            await listed(served, refused, org_id=str(org_id))
        with pytest.raises(error):
            await one(served, refused, named.id)


async def test_a_sum_that_no_json_number_holds_is_named(
    served: Served, database: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    org, who = uuid4(), a_user()
    served.access.grant(who, org, "viewer")
    world = World(database, 1)
    await world.count(record(arrived(org_id=org, session_id="s", input_tokens=2**53, model=None)))
    (shown,) = (await listed(served, who)).sessions
    assert shown.input_tokens == 2**53
    events = [
        arrived(org_id=org, session_id="s", input_tokens=2**53, model=None) for _ in range(1_400)
    ]
    await world.count(record(*events))
    for asked in (listed(served, who), one(served, who, shown.id)):
        with pytest.raises(Invalid, match="input_tokens") as refused:
            await asked
        assert refused.value.code == "sum_too_large"


async def test_a_page_looks_at_so_many_rows_and_the_next_one_goes_on(
    served: Served,
    database: Database,
    arrived: MakeArrived,
    record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    org, who, others = uuid4(), a_user(), uuid4()
    served.access.grant(who, org, "viewer")

    def event(hours: int, user: UUID, name: str | None) -> Any:
        at = NOW - timedelta(hours=hours)
        return arrived(org_id=org, at=at, user_id=user, session_id=name)

    await World(database, 1).count(
        record(
            *(event(hours, others, str(hours)) for hours in range(1, 20)),
            event(20, others, "shared"),
            event(18, USER, "shared"),
            event(22, USER, None),
        )
    )
    assert await SessionStore(database, timedelta(minutes=30)).compact(org)
    monkeypatch.setattr("services.usage_tracker.actions.sessions._ROWS", 5)
    start = timestamp(NOW - timedelta(days=2))
    found, pages, token = [], 0, ""
    while pages == 0 or token:
        page = await listed(served, who, start=start, user_id=str(USER), page_token=token)
        found += page.sessions
        pages, token = pages + 1, page.next_page_token
        assert pages < 50
    assert [session.session_id for session in found] == ["shared", ""]
    assert pages > 1


async def test_rows_of_other_users_and_projects_are_not_read(
    database: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    org, project = uuid4(), uuid4()
    await World(database, 1).count(
        record(
            *(arrived(org_id=org, user_id=uuid4()) for _ in range(20)),
            arrived(org_id=org, user_id=USER, project_id=project),
            arrived(org_id=org, user_id=USER),
        )
    )
    store = SessionStore(database, timedelta(minutes=30))
    assert await store.compact(org)
    time = microseconds(NOW) - 1, microseconds(NOW) + 1
    async with store.view(org) as view:
        for wanted, rows in (
            (Wanted(None, None), 22),
            (Wanted(None, USER), 2),
            (Wanted(project, None), 1),
        ):
            found = await view.between(*time, time, wanted, rows)
            assert found is not None
            assert len(found) == rows
            assert await view.between(*time, time, wanted, rows - 1) is None
