from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from common.errors import Unavailable
from common.events.bus import Record
from common.events.envelope import encode, envelope_for
from common.testing import FakeAccess, ManualClock
from mindweave.project.v1.events_pb2 import ProjectUpdated
from mindweave.project.v1.project_pb2 import (
    ResolvedProject,
    ResolveProjectsRequest,
    ResolveProjectsResponse,
)
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from services.usage_tracker.actions.projects import FRESH, Projects
from services.usage_tracker.consumer.forgetting import eviction
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import NOW, ORG, OTHERS_PROJECT, PROJECT

pytestmark = pytest.mark.unit


class Stub:
    """Answers once it is let; every id is a project, but for those that are gone."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.gone: set[UUID] = set()
        self.down = False

    async def resolve(self, request: ResolveProjectsRequest, **_: Any) -> ResolveProjectsResponse:
        self.asked.append(list(request.ids))
        self.was_asked.set()
        await self.may_answer.wait()
        if self.down:
            raise Unavailable("down")
        there = [i for i in request.ids if UUID(i) not in self.gone]
        return ResolveProjectsResponse(
            projects=[ResolvedProject(id=i, org_id=str(ORG)) for i in there]
        )

    ResolveProjects = resolve


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def projects(stub: Stub, clock: ManualClock) -> Projects:
    return Projects(cast(ProjectServiceStub, stub), clock)


async def updated(projects: Projects, clock: ManualClock, *fields: str) -> None:
    message = ProjectUpdated(project_id=str(PROJECT), org_id=str(ORG), fields=fields)
    value = encode(envelope_for(message, "project", clock))
    await eviction(projects, FakeAccess())(Record("platform.events", 0, "1-1", "", value, {}))


async def asking(projects: Projects, stub: Stub, *ids: UUID) -> asyncio.Task[Any]:
    """A question that is on its way."""
    stub.may_answer.clear()
    task = asyncio.create_task(projects.resolve(ids))
    await stub.was_asked.wait()
    return task


@pytest.mark.parametrize(("fields", "stands"), [(["name"], True), (["team_id", "name"], False)])
async def test_while_project_is_down_an_answer_stands_unless_its_team_may_have_changed(
    projects: Projects, stub: Stub, clock: ManualClock, fields: list[str], stands: bool
) -> None:
    await projects.resolve([PROJECT])
    await updated(projects, clock, *fields)
    stub.down = True
    clock.advance(timedelta(seconds=30))

    if stands:
        assert PROJECT in await projects.resolve([PROJECT])
    else:
        with pytest.raises(Unavailable):
            await projects.resolve([PROJECT])


async def test_an_answer_is_kept_though_another_project_changed_meanwhile(
    projects: Projects, stub: Stub, clock: ManualClock
) -> None:
    question = await asking(projects, stub, OTHERS_PROJECT)
    await updated(projects, clock, "team_id")
    stub.may_answer.set()
    await question
    await projects.resolve([OTHERS_PROJECT])

    assert len(stub.asked) == 1


async def test_an_answer_from_before_a_change_is_not_kept(
    projects: Projects, stub: Stub, clock: ManualClock
) -> None:
    question = await asking(projects, stub, PROJECT, OTHERS_PROJECT)
    await updated(projects, clock, "team_id")
    stub.may_answer.set()
    await question
    await projects.resolve([PROJECT, OTHERS_PROJECT])

    assert stub.asked[1:] == [[str(PROJECT)]]


async def test_one_question_at_a_time_is_asked_about_a_project(
    projects: Projects, stub: Stub, clock: ManualClock
) -> None:
    first = await asking(projects, stub, PROJECT)
    others = [asyncio.create_task(projects.resolve([PROJECT])) for _ in range(20)]
    await asyncio.sleep(0)
    others[0].cancel()
    stub.may_answer.set()
    found = await asyncio.gather(first, *others[1:])

    assert [list(one) for one in found] == [[PROJECT]] * 20
    assert len(stub.asked) == 1
    clock.advance(FRESH)
    await projects.resolve([PROJECT])
    assert len(stub.asked) == 2


async def test_a_thousand_projects_are_asked_for_in_pages_and_only_those_there_are_told(
    projects: Projects, stub: Stub
) -> None:
    ids = [UUID(int=n) for n in range(1_001)]
    stub.gone = set(ids[::2])

    assert sorted(await projects.resolve(ids)) == ids[1::2]
    assert sorted(map(len, stub.asked)) == [1, 500, 500]


async def test_whoever_asks_while_a_question_fails_hears_of_it_and_the_next_one_asks_again(
    projects: Projects, stub: Stub
) -> None:
    stub.down = True
    first = await asking(projects, stub, PROJECT)
    second = asyncio.create_task(projects.resolve([PROJECT]))
    await asyncio.sleep(0)
    stub.may_answer.set()
    for task in (first, second):
        with pytest.raises(Unavailable):
            await task
    stub.down = False

    assert PROJECT in await projects.resolve([PROJECT])
    assert len(stub.asked) == 2


async def test_an_answer_in_use_is_asked_for_again_before_its_time_is_over(
    projects: Projects, stub: Stub, clock: ManualClock
) -> None:
    await projects.resolve([PROJECT, OTHERS_PROJECT])
    clock.advance(FRESH * 0.7)
    stub.down = True
    assert PROJECT in await projects.resolve([PROJECT])
    await eventually(lambda: len(stub.asked) == 2)
    stub.down = False
    assert PROJECT in await projects.resolve([PROJECT])
    await eventually(lambda: len(stub.asked) == 3)
    clock.advance(FRESH * 0.4)
    assert PROJECT in await projects.resolve([PROJECT])
    assert stub.asked[1:] == [[str(PROJECT)]] * 2
