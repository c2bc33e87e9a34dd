"""Projects in a real PostgreSQL: what a scope shows, and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.clock import ManualClock
from common.database import Database, Scope
from common.ids import uuid7
from services.project.domain import Project
from services.project.store import ProjectStore

pytestmark = pytest.mark.store


def make(org_id: UUID, clock: ManualClock) -> Project:
    now = clock.now()
    return Project(uuid7(), org_id, uuid4(), "Search", 1, now, now)


async def keep(database: Database, *projects: Project) -> None:
    for project in projects:
        async with database.change(Scope((project.org_id,))) as change:
            store = ProjectStore(change.connection)
            assert await store.hold_org(project.org_id)
            await store.insert(project)


async def test_a_project_is_read_as_it_was_kept(
    database: Database, clock: ManualClock, org_id: UUID
) -> None:
    project = make(org_id, clock)
    await keep(database, project)
    async with database.read(Scope((org_id,))) as connection:
        assert await ProjectStore(connection).get(project.id, [org_id]) == project


async def test_no_method_reaches_a_project_outside_of_the_scope(
    database: Database, clock: ManualClock, org_id: UUID
) -> None:
    project = make(org_id, clock)
    await keep(database, project)
    async with database.change(Scope((uuid4(),), uuid4())) as change:
        store = ProjectStore(change.connection)
        assert await store.get(project.id, [org_id]) is None
        assert await store.lock(project.id, [org_id]) is None
        assert not await store.hold(project.id, org_id)
        assert await store.list_projects([org_id], only=None, after=None, limit=9) == []
        assert await store.delete_all(org_id) == []
        await store.save(replace(project, name="Taken"))
        await store.delete(project)
    async with database.read(Scope((org_id,))) as connection:
        assert await ProjectStore(connection).get(project.id, [org_id]) == project


async def test_a_query_is_bound_to_its_organizations_within_a_wider_scope(
    database: Database, clock: ManualClock, org_id: UUID
) -> None:
    mine, other = make(org_id, clock), make(uuid4(), clock)
    await keep(database, mine, other)
    async with database.read(Scope((org_id, other.org_id))) as connection:
        store = ProjectStore(connection)
        assert await store.get(other.id, [org_id]) is None
        assert await store.list_projects([org_id], only=None, after=None, limit=9) == [mine]


async def test_nothing_is_written_outside_of_the_scope(
    database: Database, clock: ManualClock, org_id: UUID
) -> None:
    project = make(org_id, clock)
    await keep(database, project)
    for write in (
        lambda store: store.insert(make(org_id, clock)),
        lambda store: store.hold_org(uuid4()),
        lambda store: store.mark_org_deleted(org_id, clock.now()),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.change(Scope((uuid4(),))) as change:
                await write(ProjectStore(change.connection))


async def test_services_learn_whose_a_project_is_and_no_more(
    database: Database, clock: ManualClock, org_id: UUID
) -> None:
    project = make(org_id, clock)
    await keep(database, project)
    async with database.read(Scope()) as connection:
        found = await ProjectStore(connection).resolve([project.id, uuid4()])
    assert found == [(project.id, org_id, project.team_id)]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    size=st.integers(1, 4),
    inserts=st.integers(0, 4),
)
async def test_pages_leave_no_project_out_while_others_are_made(
    database: Database, clock: ManualClock, counts: list[int], size: int, inserts: int
) -> None:
    orgs = [uuid4() for _ in counts]
    there = [make(org, clock) for org, n in zip(orgs, counts, strict=True) for _ in range(n)]
    await keep(database, *there)
    found: list[UUID] = []
    while True:
        page = await _page(database, orgs, found[-1] if found else None, size)
        found += page
        if len(page) < size:
            break
        if inserts:
            inserts -= 1
            await keep(database, make(orgs[0], clock))
    assert found == sorted(set(found))
    assert {project.id for project in there} <= set(found)


async def _page(
    database: Database, orgs: Sequence[UUID], after: UUID | None, size: int
) -> list[UUID]:
    async with database.read(Scope(orgs)) as connection:
        page = await ProjectStore(connection).list_projects(
            orgs, only=None, after=after, limit=size
        )
    assert len(page) <= size
    return [project.id for project in page]
