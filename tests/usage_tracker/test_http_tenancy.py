"""Who may send events where, and how soon a change of that is in force."""

from __future__ import annotations

from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest

from common.events.bus import Record
from common.events.envelope import encode, envelope_for
from common.testing import a_project_key, a_user, a_user_key
from mindweave.account.v1.events_pb2 import OrgDeleted
from mindweave.project.v1.events_pb2 import ProjectCreated, ProjectDeleted, ProjectUpdated
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

pytestmark = pytest.mark.rpc


async def test_a_projects_key_that_names_another_project_is_told_so(world: World) -> None:
    answer = await world.send(an_event(project_id=str(OTHERS_PROJECT)))

    assert (answer.status_code, answer.json()["code"]) == (422, "foreign_project")
    assert codes(answer) == [(0, "foreign_project", "project_id")]


@pytest.mark.parametrize(
    "event",
    [
        {"org_id": str(ORG)},
        {"project_id": str(PROJECT)},
        {"org_id": str(OTHER), "project_id": str(PROJECT)},
        {"org_id": str(UUID(int=404))},
    ],
)
async def test_a_stranger_cannot_write_and_learns_nothing_of_what_exists(
    world: World, event: dict[str, str]
) -> None:
    answer = await world.send(an_event(**event), as_=world.stranger)

    assert answer.status_code == 404
    assert world.bus.published == []


async def test_a_viewer_is_denied_and_so_is_a_key_without_the_scope(world: World) -> None:
    reading = a_project_key(ORG, PROJECT, ["analytics:read"])
    narrow = a_user_key(cast(UUID, world.owner.user_id), ["analytics:read"])
    world.access.grant(narrow, ORG, "owner")

    for caller in (world.viewer, reading, narrow, a_user()):
        answer = await world.send(an_event(), as_=caller)
        assert answer.status_code == 403
        assert codes(answer)[0][1] == "permission_denied"


async def test_a_users_key_writes_to_the_organization_it_names(world: World) -> None:
    key = a_user_key(cast(UUID, world.owner.user_id), ["events:write"])
    world.access.grant(key, ORG, "member")
    world.access.grant(key, OTHER, "member")

    answer = await world.send(
        an_event(org_id=str(OTHER)),
        an_event(org_id=str(ORG), project_id=str(PROJECT)),
        an_event(),
        as_=key,
    )
    assert answer.json()["accepted"] == 2
    assert codes(answer) == [(2, "missing_field", "org_id")]
    assert {(r.org_id, r.team_id) for r in world.bus.rows()} == {
        (OTHER.bytes, None),
        (ORG.bytes, TEAM.bytes),
    }


async def test_an_owners_session_writes_without_naming_the_only_organization(
    world: World,
) -> None:
    answer = await world.send(an_event(user_id="jané"), as_=world.owner)

    assert answer.status_code == 202
    (row,) = world.bus.rows()
    assert (row.org_id, row.project_id, row.user_ref) == (ORG.bytes, None, "jané")
    assert world.bus.data()[0].api_key_id is None


async def test_nobody_is_heard_without_a_credential(world: World) -> None:
    for path in ("/v1/events", "/v1/track"):
        answer = await world.http.post(path, content=b"not even JSON")
        assert answer.status_code == 401


async def test_a_project_is_asked_for_once_in_three_seconds(world: World) -> None:
    for _ in range(3):
        await world.send(an_event())
    assert world.projects.asked == [[str(PROJECT)]]
    world.clock.advance(timedelta(seconds=3))
    await world.send(an_event())

    assert len(world.projects.asked) == 2


async def test_a_deleted_project_is_refused_within_five_seconds(world: World) -> None:
    assert (await world.send(an_event())).status_code == 202
    del world.projects.projects[PROJECT]
    world.clock.advance(timedelta(seconds=5))

    answer = await world.send(an_event())
    assert codes(answer) == [(0, "foreign_project", "project_id")]
    assert answer.status_code == 422


async def test_a_deleted_project_is_refused_at_once_where_its_event_is_heard(
    world: World,
) -> None:
    for message in (
        ProjectDeleted(project_id=str(PROJECT), org_id=str(ORG)),
        OrgDeleted(org_id=str(ORG)),
    ):
        world.projects.projects[PROJECT] = (ORG, TEAM)
        assert (await world.send(an_event())).status_code == 202
        del world.projects.projects[PROJECT]
        value = encode(envelope_for(message, "project", world.clock))
        await world.evict(Record("platform.events", 0, "1-1", "", value, {}))

        assert (await world.send(an_event())).status_code == 422


async def test_a_project_that_moved_to_another_team_is_asked_for_again_at_once(
    world: World,
) -> None:
    await world.send(an_event())
    world.projects.projects[PROJECT] = (ORG, None)
    for message in (
        ProjectCreated(project_id=str(PROJECT), org_id=str(ORG)),
        ProjectUpdated(project_id=str(PROJECT), org_id=str(ORG)),
    ):
        value = encode(envelope_for(message, "project", world.clock))
        await world.evict(Record("platform.events", 0, "1-1", "", value, {}))
    await world.send(an_event())

    assert [row.team_id for row in world.bus.rows()] == [TEAM.bytes, None]


async def test_that_a_project_is_missing_is_never_remembered(world: World) -> None:
    del world.projects.projects[PROJECT]
    assert (await world.send(an_event())).status_code == 422
    world.projects.projects[PROJECT] = (ORG, None)

    assert (await world.send(an_event())).status_code == 202


async def test_while_project_is_down_an_answer_of_the_last_minute_stands(world: World) -> None:
    assert (await world.send(an_event())).status_code == 202
    world.projects.down = True
    world.clock.advance(timedelta(seconds=59))
    assert (await world.send(an_event())).status_code == 202
    world.clock.advance(timedelta(seconds=1))

    answer = await world.send(an_event())
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


async def test_while_team_is_down_nothing_is_taken(world: World) -> None:
    world.access.down = True

    assert (await world.send(an_event())).status_code == 503


async def test_health_is_public_and_metrics_need_their_permission(world: World) -> None:
    assert (await world.http.get("/v1/health")).status_code == 200
    assert (await world.http.get("/v1/metrics")).status_code == 401
    denied = await world.http.get("/v1/metrics", headers=world.credential(world.key))
    assert denied.status_code == 403
