"""Organizations in a real PostgreSQL: what a scope shows, slugs, pages."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.clock import ManualClock
from common.database import Database, Scope
from common.ids import uuid7
from services.account.domain import Opening, Org, State
from services.account.store import OrgStore

pytestmark = pytest.mark.store


def make(clock: ManualClock, name: str = "Acme", state: State = "active") -> Org:
    now = clock.now()
    activated = now if state == "active" else None
    return Org(uuid7(), name, "", state, 1, uuid4(), now, now, activated)


async def keep(database: Database, org: Org) -> Org:
    async with database.change(Scope((org.id,))) as change:
        return await OrgStore(change.connection).insert(org)


async def find(database: Database, scope: Scope, org_id: UUID) -> Org | None:
    async with database.read(scope) as connection:
        return await OrgStore(connection).get(org_id)


async def test_an_organization_is_read_as_it_was_kept(
    database: Database, clock: ManualClock
) -> None:
    org = await keep(database, make(clock, "Read me"))
    assert org.slug == "read-me"
    assert await find(database, Scope((org.id,)), org.id) == org


async def test_no_method_reaches_an_organization_outside_of_the_scope(
    database: Database, clock: ManualClock
) -> None:
    org = await keep(database, make(clock))
    other = Scope((uuid4(),), uuid4())
    assert await find(database, Scope(), org.id) is None
    async with database.change(other) as change:
        store = OrgStore(change.connection)
        assert await store.get(org.id) is None
        assert await store.lock(org.id) is None
        assert await store.list_active([org.id], None, 10) == []
        assert not await store.delete(org.id)
        await store.save(replace(org, name="Taken"))
    assert await find(database, Scope((org.id,)), org.id) == org


async def test_an_organization_outside_of_the_scope_cannot_be_made(
    database: Database, clock: ManualClock
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.change(Scope((uuid4(),))) as change:
            await OrgStore(change.connection).insert(make(clock))


async def test_an_opening_is_seen_by_its_user_only(database: Database, clock: ManualClock) -> None:
    opening = Opening(uuid7(), uuid4(), "key", b"hash")
    async with database.change(Scope((), opening.user_id)) as change:
        store = OrgStore(change.connection)
        assert await store.insert_opening(opening, clock.now())
        assert not await store.insert_opening(replace(opening, org_id=uuid7()), clock.now())
        assert await store.find_opening(opening.user_id, "key") == opening
    for scope in (Scope(), Scope((opening.org_id,), uuid4())):
        async with database.read(scope) as connection:
            assert await OrgStore(connection).find_opening(opening.user_id, "key") is None
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.change(Scope((), uuid4())) as change:
            await OrgStore(change.connection).insert_opening(
                replace(opening, org_id=uuid7(), key="other"), clock.now()
            )


async def test_the_same_name_gets_another_slug(database: Database, clock: ManualClock) -> None:
    made = await asyncio.gather(*(keep(database, make(clock, "Twins")) for _ in range(4)))
    slugs = {org.slug for org in made}
    assert len(slugs) == 4
    assert "twins" in slugs
    assert all(slug.startswith("twins") for slug in slugs)


async def test_the_sweeper_learns_of_unfinished_organizations_of_everyone(
    database: Database, clock: ManualClock
) -> None:
    pending = await keep(database, make(clock, state="pending"))
    closing = await keep(database, make(clock, state="closing"))
    await keep(database, make(clock))
    async with database.read(Scope()) as connection:
        store = OrgStore(connection)
        assert await store.unfinished(clock.now(), 10) == []
        found = await store.unfinished(clock.now() + timedelta(seconds=1), 10)
        assert set(found) == {pending.id, closing.id}
        assert len(await store.unfinished(clock.now() + timedelta(seconds=1), 1)) == 1


async def test_openings_are_forgotten_by_age(database: Database, clock: ManualClock) -> None:
    user = uuid4()
    now = clock.now()
    async with database.change(Scope((), user)) as change:
        store = OrgStore(change.connection)
        for key, age in (("old", 26), ("new", 1)):
            await store.insert_opening(
                Opening(uuid7(), user, key, b"hash"), now - timedelta(hours=age)
            )
    async with database.change(Scope()) as change:
        assert await OrgStore(change.connection).forget_openings(now - timedelta(hours=25)) == 1
    async with database.read(Scope((), user)) as connection:
        store = OrgStore(connection)
        assert await store.find_opening(user, "old") is None
        assert await store.find_opening(user, "new") is not None


async def pages(database: Database, orgs: list[UUID], size: int) -> list[list[UUID]]:
    found: list[list[UUID]] = []
    after: UUID | None = None
    while True:
        async with database.read(Scope(orgs)) as connection:
            page = [org.id for org in await OrgStore(connection).list_active(orgs, after, size)]
        found.append(page)
        if len(page) < size:
            return found
        after = page[-1]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(count=st.integers(0, 9), size=st.integers(1, 4), hidden=st.integers(0, 3))
async def test_pages_concatenate_to_the_active_organizations_in_order(
    database: Database, clock: ManualClock, count: int, size: int, hidden: int
) -> None:
    shown = [await keep(database, make(clock, "Page")) for _ in range(count)]
    others = [await keep(database, make(clock, "Page", "pending")) for _ in range(hidden)]
    found = await pages(database, [org.id for org in (*shown, *others)], size)
    assert [org_id for page in found for org_id in page] == sorted(org.id for org in shown)
    assert all(len(page) <= size for page in found)
