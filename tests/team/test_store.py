"""Members in a real PostgreSQL: what a scope shows, and pages."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.database import Database, Scope
from services.team.domain import Member
from services.team.store import MemberStore

pytestmark = pytest.mark.store

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


def member(org_id: UUID, role: str = "member", at: datetime = NOW) -> Member:
    return Member(org_id, uuid4(), role, 1, at, at)


async def opened(database: Database, *members: Member) -> UUID:
    org_id = members[0].org_id
    async with database.change(Scope((org_id,))) as change:
        store = MemberStore(change.connection)
        assert await store.open_org(org_id, NOW)
        for one in members:
            assert await store.insert(one)
    return org_id


async def test_no_method_reaches_an_organization_outside_of_the_scope(
    database: Database,
) -> None:
    owner = member(uuid4(), "owner")
    org_id = await opened(database, owner)
    async with database.change(Scope((uuid4(),), uuid4())) as change:
        store = MemberStore(change.connection)
        assert not await store.lock_open_org(org_id)
        assert await store.list_open_orgs([org_id]) == []
        assert await store.list_memberships(owner.user_id) == []
        assert await store.get(org_id, owner.user_id) is None
        assert await store.list_members(org_id, None, 10) == []
        assert await store.count_owners(org_id) == 0
        assert await store.delete_all(org_id) == []
        await store.save(replace(owner, role="viewer"))
        await store.delete(org_id, owner.user_id)
    async with database.read(Scope((org_id,))) as connection:
        assert await MemberStore(connection).list_members(org_id, None, 10) == [owner]


async def test_nothing_is_written_outside_of_the_scope(database: Database) -> None:
    org_id = await opened(database, member(uuid4(), "owner"))
    refused = pytest.raises(asyncpg.InsufficientPrivilegeError)
    with refused:
        async with database.change(Scope((uuid4(),))) as change:
            await MemberStore(change.connection).insert(member(org_id))
    with refused:
        async with database.change(Scope((uuid4(),))) as change:
            await MemberStore(change.connection).open_org(uuid4(), NOW)
    with refused:
        async with database.change(Scope((uuid4(),))) as change:
            await MemberStore(change.connection).close_org(org_id, NOW)


async def test_a_user_sees_its_own_memberships_without_any_organization(
    database: Database,
) -> None:
    one = member(uuid4(), "owner")
    other = replace(member(uuid4(), "viewer"), user_id=one.user_id)
    await opened(database, one)
    await opened(database, other, member(other.org_id, "owner"))
    async with database.read(Scope((), one.user_id)) as connection:
        found = await MemberStore(connection).list_memberships(one.user_id)
    assert sorted(found) == sorted([(one.org_id, "owner"), (other.org_id, "viewer")])


async def test_a_users_own_scope_lets_it_change_nothing(database: Database) -> None:
    viewer = member(uuid4(), "viewer")
    org_id = await opened(database, viewer)
    async with database.change(Scope((), viewer.user_id)) as change:
        store = MemberStore(change.connection)
        await store.save(replace(viewer, role="owner"))
        await store.delete(org_id, viewer.user_id)
    async with database.read(Scope((org_id,))) as connection:
        assert await MemberStore(connection).get(org_id, viewer.user_id) == viewer


async def test_the_membership_question_is_answered_from_one_index(database: Database) -> None:
    async with database.change(Scope()) as change:
        await change.connection.execute("SET LOCAL enable_seqscan = off")
        plan = await change.connection.fetch(
            "EXPLAIN SELECT org_id, role FROM members WHERE user_id = $1", uuid4()
        )
    assert any("members_of_user" in row[0] for row in plan)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    ages=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    size=st.integers(1, 4),
    inserts=st.lists(st.integers(0, 5), max_size=4),
)
async def test_pages_leave_nobody_out_while_others_join(
    database: Database, ages: list[int], size: int, inserts: list[int]
) -> None:
    org_id = uuid4()
    there = [member(org_id, at=NOW + timedelta(seconds=age)) for age in ages]
    await opened(database, *there)
    joining = [member(org_id, at=NOW + timedelta(seconds=age)) for age in inserts]
    found: list[Member] = []
    after: tuple[datetime, UUID] | None = None
    while True:
        async with database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            page = await store.list_members(org_id, after, size)
            if joining:
                await store.insert(joining.pop())
        found += page
        if len(page) < size:
            break
        after = (page[-1].created_at, page[-1].user_id)
    order = [(one.created_at, one.user_id) for one in found]
    assert order == sorted(set(order))
    assert {one.user_id for one in there} <= {one.user_id for one in found}
