from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.errors import DeadlineExceeded, NotFound, Unavailable
from common.identity.access import AccessResolver
from common.identity.call import ANONYMOUS, Principal
from mindweave.team.v1.team_pb2 import Access, ResolveAccessRequest, ResolveAccessResponse
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from tests.common.waiting import eventually

pytestmark = pytest.mark.unit

ORG, NEW_ORG, FOREIGN_ORG = uuid4(), uuid4(), uuid4()
USER = Principal("user", user_id=uuid4(), session_id=uuid4(), token="users-token")
OTHER = Principal("user", user_id=uuid4(), session_id=uuid4(), token="others-token")
SERVICE = Principal("service", service="alerts")
SECOND = timedelta(seconds=1)


class Team:
    """Answers with ``roles``; fails with ``fails`` where it is set."""

    def __init__(self) -> None:
        self.roles: dict[UUID, str] = {ORG: "member"}
        self.asked: list[tuple[list[str], dict[str, str]]] = []
        self.fails: Exception | None = None
        self.before_answer: Callable[[], None] = lambda: None

    async def resolve(
        self, request: ResolveAccessRequest, *, metadata: Any, **_: Any
    ) -> ResolveAccessResponse:
        self.asked.append((list(request.org_ids), dict(metadata)))
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        answer = ResolveAccessResponse(
            access=[Access(org_id=str(org), role=role) for org, role in self.roles.items()]
        )
        self.before_answer()
        return answer


@pytest.fixture
def team() -> Team:
    return Team()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 3, 1, tzinfo=UTC))


@pytest.fixture
def access(team: Team, clock: ManualClock) -> AccessResolver:
    stub = SimpleNamespace(ResolveAccess=team.resolve)
    return AccessResolver(cast(TeamServiceStub, stub), clock)


async def test_team_is_asked_in_the_name_of_the_caller(access: AccessResolver, team: Team) -> None:
    assert await access.resolve(USER) == {ORG: "member"}
    assert team.asked == [([], {"authorization": "Bearer users-token"})]


async def test_a_change_of_a_role_is_in_force_well_within_five_seconds(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    await access.resolve(USER, ORG)
    team.roles = {ORG: "viewer"}
    clock.advance(SECOND * 1.9)
    assert await access.resolve(USER, ORG) == {ORG: "member"}
    clock.advance(SECOND * 1.1)
    assert await access.resolve(USER, ORG) == {ORG: "viewer"}
    assert len(team.asked) == 2


async def test_an_answer_in_use_is_asked_for_again_before_its_time_is_over(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    await access.resolve(USER, ORG)
    team.roles = {ORG: "viewer"}
    clock.advance(SECOND * 2)
    assert await access.resolve(USER, ORG) == {ORG: "member"}
    assert await access.resolve(USER, ORG) == {ORG: "member"}
    await eventually(lambda: len(team.asked) == 2)
    clock.advance(SECOND * 1.5)
    assert await access.resolve(USER, ORG) == {ORG: "viewer"}
    assert len(team.asked) == 2


async def test_an_answer_serves_on_though_asking_ahead_fails_and_no_longer_than_its_time(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    await access.resolve(USER, ORG)
    team.fails = Unavailable("down")
    clock.advance(SECOND * 2)
    assert await access.resolve(USER, ORG) == {ORG: "member"}
    await eventually(lambda: len(team.asked) == 2)
    clock.advance(SECOND)
    with pytest.raises(Unavailable):
        await access.resolve(USER, ORG)


async def test_what_was_evicted_does_not_come_back_by_a_question_asked_ahead(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    await access.resolve(USER, ORG)
    clock.advance(SECOND * 2)
    await access.resolve(USER, ORG)
    team.before_answer = lambda: access.evict(org_id=ORG)
    await eventually(lambda: len(team.asked) == 2)
    team.roles = {ORG: "viewer"}
    assert await access.resolve(USER, ORG) == {ORG: "viewer"}


async def test_the_age_of_an_answer_counts_from_the_question(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    team.before_answer = lambda: clock.advance(SECOND * 2)
    await access.resolve(USER, ORG)
    clock.advance(SECOND)
    await access.resolve(USER, ORG)
    assert len(team.asked) == 2


async def test_one_callers_roles_are_never_anothers(access: AccessResolver, team: Team) -> None:
    await access.resolve(USER, ORG)
    team.roles = {}
    assert await access.resolve(OTHER, ORG) == {}


async def test_an_organization_that_is_not_remembered_is_asked_for_at_once(
    access: AccessResolver, team: Team
) -> None:
    await access.resolve(USER, ORG)
    team.roles[NEW_ORG] = "owner"
    assert (await access.resolve(USER, NEW_ORG))[NEW_ORG] == "owner"
    await access.resolve(USER, NEW_ORG)
    assert len(team.asked) == 2


async def test_that_a_caller_has_no_role_is_never_remembered(
    access: AccessResolver, team: Team
) -> None:
    team.roles = {}
    for asked in (1, 2):
        assert await access.resolve(USER) == {}
        assert len(team.asked) == asked
    team.roles = {ORG: "owner"}
    assert await access.resolve(USER) == {ORG: "owner"}
    for asked in (4, 5):
        assert FOREIGN_ORG not in await access.resolve(USER, FOREIGN_ORG)
        assert len(team.asked) == asked


async def test_what_is_asked_for_anew_is_not_taken_from_memory(
    access: AccessResolver, team: Team
) -> None:
    await access.resolve(USER)
    team.roles[NEW_ORG] = "owner"
    assert set(await access.resolve(USER, anew=True)) == {ORG, NEW_ORG}
    assert set(await access.resolve(USER)) == {ORG, NEW_ORG}


@pytest.mark.parametrize("failure", [Unavailable(), DeadlineExceeded()])
async def test_while_team_is_down_reads_go_on_for_a_minute_and_writes_stop(
    access: AccessResolver, team: Team, clock: ManualClock, failure: Exception
) -> None:
    await access.resolve(USER, ORG)
    team.fails = failure
    clock.advance(SECOND * 5)
    assert await access.resolve(USER, ORG, reads=True) == {ORG: "member"}
    with pytest.raises(Unavailable) as refused:
        await access.resolve(USER, ORG)
    assert refused.value.status == 503
    assert refused.value.retry_after == 1
    clock.advance(SECOND * 54)
    assert await access.resolve(USER, ORG, reads=True) == {ORG: "member"}
    clock.advance(SECOND)
    with pytest.raises(Unavailable):
        await access.resolve(USER, ORG, reads=True)


async def test_while_team_is_down_a_stranger_is_not_let_in_by_an_answer_about_others(
    access: AccessResolver, team: Team
) -> None:
    await access.resolve(USER, ORG)
    team.fails = Unavailable()
    with pytest.raises(Unavailable):
        await access.resolve(USER, FOREIGN_ORG, reads=True)
    with pytest.raises(Unavailable):
        await access.resolve(OTHER, ORG, reads=True)


async def test_within_five_seconds_even_writes_go_on_while_team_is_down(
    access: AccessResolver, team: Team
) -> None:
    await access.resolve(USER, ORG)
    team.fails = Unavailable()
    assert await access.resolve(USER, ORG) == {ORG: "member"}


async def test_another_error_of_team_is_not_hidden(access: AccessResolver, team: Team) -> None:
    team.fails = NotFound()
    with pytest.raises(NotFound):
        await access.resolve(USER, ORG, reads=True)


@pytest.mark.parametrize(
    ("evicted", "asked"),
    [
        ({"user_id": USER.user_id}, 2),
        ({"org_id": ORG}, 2),
        ({"user_id": USER.user_id, "org_id": ORG}, 2),
        ({"user_id": OTHER.user_id}, 1),
        ({"org_id": FOREIGN_ORG}, 1),
        ({"user_id": USER.user_id, "org_id": FOREIGN_ORG}, 1),
    ],
)
async def test_an_eviction_forgets_whom_it_names(
    access: AccessResolver, team: Team, evicted: dict[str, UUID], asked: int
) -> None:
    await access.resolve(USER, ORG)
    access.evict(**evicted)
    await access.resolve(USER, ORG)
    assert len(team.asked) == asked


async def test_an_answer_from_before_an_eviction_does_not_bring_back_what_was_forgotten(
    access: AccessResolver, team: Team
) -> None:
    team.before_answer = lambda: access.evict(user_id=USER.user_id)
    await access.resolve(USER, ORG)
    team.before_answer = lambda: None
    team.roles = {}
    assert await access.resolve(USER, ORG) == {}


async def test_a_service_reaches_the_organizations_that_it_names_and_no_other(
    access: AccessResolver, team: Team
) -> None:
    assert await access.resolve(SERVICE) == {}
    assert team.asked == []
    team.roles = {ORG: "service"}
    assert await access.resolve(SERVICE, ORG) == {ORG: "service"}
    assert await access.resolve(SERVICE, acting_for=[ORG]) == {ORG: "service"}
    assert team.asked == [([str(ORG)], {})]
    await access.resolve(SERVICE, NEW_ORG, acting_for=[ORG])
    assert team.asked[1] == (sorted([str(ORG), str(NEW_ORG)]), {})


async def test_only_a_service_names_the_organizations_it_acts_for(
    access: AccessResolver, team: Team
) -> None:
    await access.resolve(USER, acting_for=[FOREIGN_ORG])
    assert team.asked == [([], {"authorization": "Bearer users-token"})]


async def test_nobody_has_a_role_anywhere(access: AccessResolver, team: Team) -> None:
    assert await access.resolve(ANONYMOUS, ORG) == {}
    assert team.asked == []


async def test_a_clock_set_back_does_not_make_answers_last(
    access: AccessResolver, team: Team, clock: ManualClock
) -> None:
    await access.resolve(USER, ORG)
    clock.advance(SECOND * -60)
    await access.resolve(USER, ORG)
    assert len(team.asked) == 2


async def test_what_is_remembered_is_bounded(
    access: AccessResolver, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.identity.access._REMEMBERED", 2)
    for user in (USER, OTHER, Principal("user", user_id=uuid4(), token="t")):
        await access.resolve(user, ORG)
    await access.resolve(OTHER, ORG)
    assert len(team.asked) == 3
    await access.resolve(USER, ORG)
    assert len(team.asked) == 4
