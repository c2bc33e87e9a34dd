"""Use cases of projects and their keys against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import Invalid, NotFound, PermissionDenied, PreconditionFailed, Unavailable
from common.identity.call import Call, Principal
from services.project.actions import KeyActions, ProjectActions
from services.project.domain import OrgClosed, Project, ScopeBeyondCaller
from tests.conftest import Published
from tests.project.conftest import Auth

pytestmark = pytest.mark.store

USER = Principal("user", user_id=uuid4(), session_id=uuid4())


def call(org_id: UUID, permission: str, role: str = "owner", **changes: Any) -> Call:
    fields = {"principal": USER, "roles": {org_id: role}}
    return Call("test", permission=permission, **(fields | changes))


@pytest.fixture
def projects(database: Database, clock: ManualClock) -> ProjectActions:
    return ProjectActions(database, clock)


@pytest.fixture
def keys(database: Database, auth: Auth, projects: ProjectActions) -> KeyActions:
    return KeyActions(database, auth, projects)


async def create(projects: ProjectActions, org_id: UUID, name: str = "Search") -> Project:
    return await projects.create(org_id, name, None, lambda _change, project: project)


async def rename(projects: ProjectActions, at: Call, project: Project, name: str) -> Project:
    return await projects.update(
        at,
        project.id,
        lambda found, now: found.changed(name, found.team_id, now),
        lambda _change, changed: changed,
    )


async def delete(projects: ProjectActions, at: Call, project: Project) -> None:
    await projects.delete(at, project.id, lambda _change: None)


async def remove_org(database: Database, projects: ProjectActions, org_id: UUID) -> None:
    async with database.change(Scope((org_id,)), call=None) as change:
        await projects.remove_org(change, org_id)


async def test_a_project_lives_and_is_told_of(
    projects: ProjectActions, org_id: UUID, published: Published, clock: ManualClock
) -> None:
    project = await create(projects, org_id)
    at = call(org_id, "project:write")
    clock.advance(timedelta(seconds=1))
    changed = await rename(projects, at, project, "Find")
    assert (changed.version, changed.updated_at) == (2, clock.now())
    assert await rename(projects, at, project, "Find") == changed
    assert await projects.get(call(org_id, "project:read"), project.id) == changed
    await delete(projects, call(org_id, "project:delete"), project)
    with pytest.raises(NotFound):
        await projects.get(call(org_id, "project:read"), project.id)
    told = await published()
    assert [event.type for event in told] == [
        "project.created",
        "project.updated",
        "project.deleted",
    ]
    assert {event.metadata.org_id for event in told} == {org_id}
    assert told[1].data["fields"] == ["name"]


async def test_a_stranger_finds_no_project_and_a_viewer_may_not_change_it(
    projects: ProjectActions, org_id: UUID
) -> None:
    project = await create(projects, org_id)
    with pytest.raises(NotFound):
        await projects.get(call(uuid4(), "project:read"), project.id)
    with pytest.raises(NotFound):
        await delete(projects, call(uuid4(), "project:delete"), project)
    with pytest.raises(PermissionDenied):
        await rename(projects, call(org_id, "project:write", "viewer"), project, "Mine")
    with pytest.raises(PermissionDenied):
        await delete(projects, call(org_id, "project:delete", "member"), project)
    assert await projects.get(call(org_id, "project:read"), project.id) == project


async def test_a_stale_version_changes_nothing(projects: ProjectActions, org_id: UUID) -> None:
    project = await create(projects, org_id)
    await rename(projects, call(org_id, "project:write"), project, "Newer")
    with pytest.raises(PreconditionFailed):
        await rename(projects, call(org_id, "project:write", if_match=1), project, "Older")
    with pytest.raises(PreconditionFailed):
        await delete(projects, call(org_id, "project:delete", if_match=1), project)
    await delete(projects, call(org_id, "project:delete", if_match=2), project)


async def test_of_two_writers_with_the_same_version_one_is_refused(
    projects: ProjectActions, org_id: UUID
) -> None:
    project = await create(projects, org_id)
    done = await asyncio.gather(
        *(
            rename(projects, call(org_id, "project:write", if_match=1), project, name)
            for name in ("One", "Two")
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Project) for result in done) == 1
    assert sum(isinstance(result, PreconditionFailed) for result in done) == 1


async def test_a_deleted_organization_takes_its_projects_along(
    projects: ProjectActions, org_id: UUID, published: Published, database: Database
) -> None:
    made = [await create(projects, org_id) for _ in range(3)]
    other = await create(projects, uuid4())
    await remove_org(database, projects, org_id)
    await remove_org(database, projects, org_id)
    deleted = [e for e in await published() if e.type == "project.deleted"]
    assert sorted(e.data["project_id"] for e in deleted) == sorted(str(p.id) for p in made)
    assert {e.metadata.org_id for e in deleted} == {org_id}
    with pytest.raises(OrgClosed):
        await create(projects, org_id)
    assert await projects.get(call(other.org_id, "project:read"), other.id) == other


async def test_a_project_made_while_its_organization_goes_is_not_left_behind(
    projects: ProjectActions, database: Database
) -> None:
    for _ in range(10):
        org_id = uuid4()
        await create(projects, org_id)
        await asyncio.gather(
            *(create(projects, org_id) for _ in range(2)),
            remove_org(database, projects, org_id),
            return_exceptions=True,
        )
        assert await projects.list_projects([org_id], only=None, after=None, limit=10) == []


async def make_key(keys: KeyActions, at: Call, project: Project, *scopes: str) -> Any:
    return await keys.create(
        at, project.id, "CI", scopes or ("events:write",), None, lambda _change, key: key
    )


async def test_a_key_is_made_listed_and_revoked(
    projects: ProjectActions, keys: KeyActions, org_id: UUID, auth: Auth
) -> None:
    project = await create(projects, org_id)
    made = await make_key(keys, call(org_id, "api_key:write"), project)
    assert (made.key, list(made.scopes)) == ("mwp_secret", ["events:write"])
    assert auth.keys[made.id].org_id == str(org_id)
    listed = await keys.list_keys(
        call(org_id, "api_key:read"), project.id, page_size=0, page_token=""
    )
    assert [key.id for key in listed.api_keys] == [made.id]
    at = call(org_id, "api_key:write")
    await keys.delete(at, project.id, UUID(made.id), lambda _change: None)
    assert auth.keys == {}
    with pytest.raises(NotFound):
        await keys.delete(at, project.id, UUID(made.id), lambda _change: None)


async def test_a_key_gets_no_scope_beyond_its_project_or_its_creator(
    projects: ProjectActions, keys: KeyActions, org_id: UUID, auth: Auth
) -> None:
    project = await create(projects, org_id)
    with pytest.raises(Invalid):
        await make_key(keys, call(org_id, "api_key:write"), project, "member:write")
    narrow = replace(
        USER,
        kind="user_key",
        api_key_id=uuid4(),
        scopes=frozenset({"api_key:write", "analytics:read"}),
    )
    at = call(org_id, "api_key:write", principal=narrow)
    with pytest.raises(ScopeBeyondCaller):
        await make_key(keys, at, project)
    assert auth.keys == {}
    await make_key(keys, at, project, "analytics:read")


async def test_the_platforms_metrics_may_be_granted_by_any_user(
    projects: ProjectActions, keys: KeyActions, org_id: UUID
) -> None:
    project = await create(projects, org_id)
    made = await make_key(
        keys, call(org_id, "api_key:write"), project, "metrics:read", "events:write"
    )
    assert list(made.scopes) == ["metrics:read", "events:write"]


async def test_a_key_made_while_its_project_goes_is_revoked(
    projects: ProjectActions, keys: KeyActions, org_id: UUID, auth: Auth
) -> None:
    project = await create(projects, org_id)

    async def drop() -> None:
        await delete(projects, call(org_id, "project:delete"), project)

    auth.on_create = drop
    with pytest.raises(NotFound):
        await make_key(keys, call(org_id, "api_key:write"), project)
    assert auth.keys == {}


async def test_without_auth_no_key_is_made(
    projects: ProjectActions, keys: KeyActions, org_id: UUID, auth: Auth
) -> None:
    project = await create(projects, org_id)
    auth.down = True
    with pytest.raises(Unavailable):
        await make_key(keys, call(org_id, "api_key:write"), project)


async def test_a_projects_key_reaches_its_own_project_only(
    projects: ProjectActions, org_id: UUID
) -> None:
    own, other = await create(projects, org_id), await create(projects, org_id)
    key = Principal(
        "project_key",
        api_key_id=uuid4(),
        org_id=org_id,
        project_id=own.id,
        scopes=frozenset({"project:read"}),
    )
    at = call(org_id, "project:read", "key", principal=key)
    assert await projects.get(at, own.id) == own
    with pytest.raises(NotFound):
        await projects.get(at, other.id)
