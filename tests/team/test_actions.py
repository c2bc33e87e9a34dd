"""Use cases of membership against a real PostgreSQL, run at the same time where it matters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from common.database import Database, Scope
from common.errors import NotFound, PermissionDenied, PreconditionFailed, Unavailable
from common.identity.call import ANONYMOUS, Principal
from services.team.actions import MemberActions
from services.team.domain import (
    AlreadyMember,
    LastOwner,
    Member,
    MemberNotFound,
    OnlyOwners,
    OrgClosed,
    UserNotFound,
)
from services.team.store import MemberStore
from tests.conftest import Published
from tests.team.conftest import Auth

pytestmark = pytest.mark.store


def user(user_id: UUID) -> Principal:
    return Principal("user", user_id=user_id, session_id=uuid4())


async def add(
    actions: MemberActions, actor: UUID, org_id: UUID, user_id: UUID, role: str
) -> Member:
    return await actions.add(user(actor), org_id, user_id, role, lambda _change, made, _: made)


async def change_role(
    actions: MemberActions,
    actor: UUID,
    org_id: UUID,
    user_id: UUID,
    role: str | None,
    version: int | None = None,
) -> Member:
    return await actions.change_role(
        user(actor),
        org_id,
        user_id,
        role,
        version=version,
        answer=lambda _change, changed, _profile: changed,
    )


async def remove(
    actions: MemberActions,
    actor: Principal,
    org_id: UUID,
    user_id: UUID,
    version: int | None = None,
) -> None:
    await actions.remove(actor, org_id, user_id, version=version, answer=lambda _change: None)


async def roles(database: Database, org_id: UUID) -> dict[UUID, str]:
    async with database.read(Scope((org_id,))) as connection:
        found = await MemberStore(connection).list_members(org_id, None, 100)
    return {member.user_id: member.role for member in found}


@pytest.fixture
async def org(actions: MemberActions, auth: Auth) -> tuple[UUID, UUID]:
    """An open organization and its owner."""
    org_id, owner = uuid4(), auth.user()
    await actions.open_org(org_id, owner)
    return org_id, owner


async def test_opening_again_changes_nothing(
    actions: MemberActions, database: Database, published: Published
) -> None:
    org_id, owner = uuid4(), uuid4()
    await asyncio.gather(*(actions.open_org(org_id, owner) for _ in range(3)))
    await actions.open_org(org_id, uuid4())
    assert await roles(database, org_id) == {owner: "owner"}
    (event,) = await published()
    assert event.type == "member.added"
    assert event.data == {"org_id": str(org_id), "user_id": str(owner), "role": "owner"}


async def test_a_closed_organization_has_no_members_and_never_opens_again(
    actions: MemberActions,
    org: tuple[UUID, UUID],
    auth: Auth,
    database: Database,
    published: Published,
) -> None:
    org_id, owner = org
    other = auth.user()
    await add(actions, owner, org_id, other, "viewer")
    await actions.close_org(org_id)
    await actions.close_org(org_id)
    assert await roles(database, org_id) == {}
    assert await actions.resolve(user(owner), []) == []
    with pytest.raises(OrgClosed):
        await actions.open_org(org_id, owner)
    with pytest.raises(NotFound):
        await add(actions, owner, org_id, auth.user(), "viewer")
    told = [(e.type, e.data["user_id"]) for e in await published()][1:]
    assert sorted(told) == sorted(("member.removed", str(gone)) for gone in (owner, other))


async def test_an_organization_closed_before_it_was_opened_never_opens(
    actions: MemberActions, published: Published
) -> None:
    org_id = uuid4()
    await actions.close_org(org_id)
    with pytest.raises(OrgClosed):
        await actions.open_org(org_id, uuid4())
    assert await published() == []


async def test_opening_and_closing_at_the_same_time_ends_closed(
    actions: MemberActions, database: Database
) -> None:
    for _ in range(10):
        org_id, owner = uuid4(), uuid4()
        await asyncio.gather(
            actions.open_org(org_id, owner), actions.close_org(org_id), return_exceptions=True
        )
        assert await roles(database, org_id) == {}
        with pytest.raises(OrgClosed):
            await actions.open_org(org_id, owner)


async def test_joining_while_the_organization_closes_leaves_no_member(
    actions: MemberActions, auth: Auth, database: Database
) -> None:
    for _ in range(10):
        org_id, owner = uuid4(), auth.user()
        await actions.open_org(org_id, owner)
        await asyncio.gather(
            add(actions, owner, org_id, auth.user(), "member"),
            actions.close_org(org_id),
            return_exceptions=True,
        )
        assert await roles(database, org_id) == {}


async def test_access_is_the_users_open_organizations_with_its_roles(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    second = uuid4()
    viewer = auth.user()
    await actions.open_org(second, viewer)
    await add(actions, owner, org_id, viewer, "viewer")
    assert sorted(await actions.resolve(user(viewer), [])) == sorted(
        [(org_id, "viewer"), (second, "owner")]
    )
    key = Principal("user_key", user_id=viewer, api_key_id=uuid4())
    assert sorted(await actions.resolve(key, [])) == sorted(await actions.resolve(user(viewer), []))
    assert await actions.resolve(user(uuid4()), [org_id]) == []


async def test_a_projects_key_reaches_its_own_organization_while_it_is_open(
    actions: MemberActions, org: tuple[UUID, UUID]
) -> None:
    org_id, _ = org
    key = Principal("project_key", api_key_id=uuid4(), org_id=org_id, project_id=uuid4())
    assert await actions.resolve(key, [uuid4()]) == [(org_id, "key")]
    assert await actions.resolve(replace(key, org_id=uuid4()), [org_id]) == []
    await actions.close_org(org_id)
    assert await actions.resolve(key, []) == []


async def test_a_service_reaches_the_open_organizations_that_it_names(
    actions: MemberActions, org: tuple[UUID, UUID]
) -> None:
    org_id, _ = org
    service = Principal("service", service="analytics")
    closed = uuid4()
    await actions.close_org(closed)
    assert await actions.resolve(service, [org_id, closed, uuid4()]) == [(org_id, "service")]
    assert await actions.resolve(service, []) == []
    assert await actions.resolve(ANONYMOUS, [org_id]) == []


async def test_members_are_listed_with_their_profiles(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    gone = auth.user("Gone")
    await add(actions, owner, org_id, gone, "viewer")
    del auth.profiles[gone]
    found, more = await actions.list_members(org_id, None, 10)
    assert not more
    assert [(m.user_id, p.email) for m, p in found] == [
        (owner, auth.profiles[owner].email),
        (gone, ""),
    ]


async def test_without_auth_members_are_neither_listed_nor_added(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth, database: Database
) -> None:
    org_id, owner = org
    other = auth.user()
    auth.down = True
    with pytest.raises(Unavailable):
        await actions.list_members(org_id, None, 10)
    with pytest.raises(Unavailable):
        await add(actions, owner, org_id, other, "member")
    assert await roles(database, org_id) == {owner: "owner"}


async def test_a_user_that_nobody_knows_is_not_added(
    actions: MemberActions, org: tuple[UUID, UUID]
) -> None:
    org_id, owner = org
    with pytest.raises(UserNotFound):
        await add(actions, owner, org_id, uuid4(), "member")


async def test_a_member_is_not_added_twice_even_at_the_same_time(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth, published: Published
) -> None:
    org_id, owner = org
    other = auth.user()
    done = await asyncio.gather(
        *(add(actions, owner, org_id, other, "member") for _ in range(3)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Member) for result in done) == 1
    assert sum(isinstance(result, AlreadyMember) for result in done) == 2
    assert [event.type for event in await published()] == ["member.added"]


async def test_an_admin_neither_makes_nor_touches_owners(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    admin, second = auth.user(), auth.user()
    await add(actions, owner, org_id, admin, "admin")
    await add(actions, owner, org_id, second, "owner")
    with pytest.raises(OnlyOwners):
        await add(actions, admin, org_id, auth.user(), "owner")
    with pytest.raises(OnlyOwners):
        await change_role(actions, admin, org_id, admin, "owner")
    with pytest.raises(OnlyOwners):
        await change_role(actions, admin, org_id, second, "viewer")
    with pytest.raises(OnlyOwners):
        await remove(actions, user(admin), org_id, second)


async def test_the_role_that_counts_is_the_one_of_this_moment(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    admin = auth.user()
    await add(actions, owner, org_id, admin, "admin")
    await change_role(actions, owner, org_id, admin, "viewer")
    with pytest.raises(PermissionDenied):
        await add(actions, admin, org_id, auth.user(), "viewer")
    await remove(actions, user(owner), org_id, admin)
    with pytest.raises(NotFound):
        await add(actions, admin, org_id, auth.user(), "viewer")


async def test_a_changed_role_is_told_of_with_the_one_before(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth, published: Published
) -> None:
    org_id, owner = org
    other = auth.user()
    added = await add(actions, owner, org_id, other, "viewer")
    changed = await change_role(actions, owner, org_id, other, "admin", added.version)
    assert (changed.role, changed.version) == ("admin", 2)
    assert await change_role(actions, owner, org_id, other, "admin") == changed
    assert await change_role(actions, owner, org_id, other, None) == changed
    (_, event) = await published()
    assert event.type == "member.role_changed"
    assert (event.data["role"], event.data["previous_role"]) == ("admin", "viewer")


async def test_of_two_writers_with_the_same_version_one_is_refused(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    other = auth.user()
    await add(actions, owner, org_id, other, "viewer")
    done = await asyncio.gather(
        change_role(actions, owner, org_id, other, "admin", 1),
        change_role(actions, owner, org_id, other, "member", 1),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Member) for result in done) == 1
    assert sum(isinstance(result, PreconditionFailed) for result in done) == 1
    with pytest.raises(PreconditionFailed):
        await remove(actions, user(owner), org_id, other, 1)
    await remove(actions, user(owner), org_id, other, 2)


async def test_someone_who_is_no_member_can_neither_change_nor_go(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth
) -> None:
    org_id, owner = org
    with pytest.raises(MemberNotFound):
        await change_role(actions, owner, org_id, auth.user(), "viewer")
    with pytest.raises(MemberNotFound):
        await remove(actions, user(owner), org_id, auth.user())


async def test_every_member_may_leave_but_not_by_a_key(
    actions: MemberActions, org: tuple[UUID, UUID], auth: Auth, database: Database
) -> None:
    org_id, owner = org
    viewer = auth.user()
    await add(actions, owner, org_id, viewer, "viewer")
    key = Principal("user_key", user_id=viewer, scopes=frozenset({"member:write"}))
    with pytest.raises(PermissionDenied):
        await remove(actions, key, org_id, viewer)
    await remove(actions, user(viewer), org_id, viewer)
    assert await roles(database, org_id) == {owner: "owner"}


async def test_the_last_owner_neither_leaves_nor_steps_down(
    actions: MemberActions, org: tuple[UUID, UUID]
) -> None:
    org_id, owner = org
    with pytest.raises(LastOwner):
        await remove(actions, user(owner), org_id, owner)
    with pytest.raises(LastOwner):
        await change_role(actions, owner, org_id, owner, "admin")


async def test_owners_that_go_at_the_same_time_leave_one(
    actions: MemberActions, auth: Auth, database: Database
) -> None:
    for _ in range(10):
        org_id, owner = uuid4(), auth.user()
        await actions.open_org(org_id, owner)
        second = auth.user()
        await add(actions, owner, org_id, second, "owner")
        done = await asyncio.gather(
            remove(actions, user(owner), org_id, owner),
            change_role(actions, second, org_id, second, "viewer"),
            return_exceptions=True,
        )
        assert sum(isinstance(result, LastOwner) for result in done) == 1
        assert list((await roles(database, org_id)).values()).count("owner") == 1


async def test_owners_that_remove_each_other_at_the_same_time_leave_one(
    actions: MemberActions, auth: Auth, database: Database
) -> None:
    for _ in range(10):
        org_id, owner = uuid4(), auth.user()
        await actions.open_org(org_id, owner)
        second = auth.user()
        await add(actions, owner, org_id, second, "owner")
        done = await asyncio.gather(
            remove(actions, user(owner), org_id, second),
            remove(actions, user(second), org_id, owner),
            return_exceptions=True,
        )
        assert sum(result is None for result in done) == 1
        assert list((await roles(database, org_id)).values()) == ["owner"]
