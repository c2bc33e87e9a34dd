"""Use cases of membership. Every change of an organization's members locks the organization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Database, Scope
from common.errors import NotFound, PermissionDenied
from common.identity.call import Principal, permitted
from mindweave.auth.v1.auth_pb2 import ListProfilesRequest, Profile
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.team.v1.events_pb2 import MemberAdded, MemberRemoved, MemberRoleChanged
from services.team.domain import (
    OWNER,
    AlreadyMember,
    Member,
    MemberNotFound,
    OrgClosed,
    UserNotFound,
    check_may_touch,
    check_owner_stays,
)
from services.team.store import MemberStore

WRITE = "member:write"

T = TypeVar("T")


class MemberActions:
    """What can be done with the members of an organization.

    ``answer`` makes the result inside the transaction of a change, so that what it remembers
    there commits together with the effect.

    While auth is down, listing, adding and changing members raise ``Unavailable``, since their
    profiles are part of the answer; removing, opening, closing and ``resolve`` go on.
    """

    def __init__(self, database: Database, auth: AuthServiceStub, clock: Clock) -> None:
        self._database = database
        self._auth = auth
        self._clock = clock

    async def resolve(self, principal: Principal, asked: Sequence[UUID]) -> list[tuple[UUID, str]]:
        """The open organizations that the principal reaches, each with its role there.

        Args:
            principal: whose access it is.
            asked: what a service asks about; nobody else may ask.
        """
        if principal.kind in ("user", "user_key") and principal.user_id is not None:
            async with self._database.read(Scope((), principal.user_id)) as connection:
                return await MemberStore(connection).list_memberships(principal.user_id)
        role, orgs = "service", asked
        if principal.kind != "service":
            role, orgs = "key", [principal.org_id] if principal.org_id else []
        if not orgs:
            return []
        async with self._database.read(Scope(orgs)) as connection:
            return [(org, role) for org in await MemberStore(connection).list_open_orgs(orgs)]

    async def list_members(
        self, org_id: UUID, after: tuple[datetime, UUID] | None, size: int
    ) -> tuple[list[tuple[Member, Profile]], bool]:
        """Members in the order in which they came, after one of them, with their profiles.

        The second value tells whether more follow.

        Raises:
            Unavailable: auth, which has the profiles, cannot be asked now.
        """
        async with self._database.read(Scope((org_id,))) as connection:
            found = await MemberStore(connection).list_members(org_id, after, size + 1)
        page = found[:size]
        profiles = await self._profiles([member.user_id for member in page])
        return [(m, profiles.get(m.user_id, Profile())) for m in page], len(found) > size

    async def add(
        self,
        actor: Principal,
        org_id: UUID,
        user_id: UUID,
        role: str,
        answer: Callable[[Change, Member, Profile], T],
    ) -> T:
        """Make a user a member.

        Raises:
            UserNotFound: auth knows no such user.
            AlreadyMember: as said.
            OnlyOwners: the role is owner and the actor is none.
        """
        profile = (await self._profiles([user_id])).get(user_id)
        if profile is None:
            raise UserNotFound
        now = self._clock.now()
        async with self._database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            check_may_touch(await self._lock(store, actor, org_id), role)
            member = Member(org_id, user_id, role, 1, now, now)
            if not await store.insert(member):
                raise AlreadyMember
            _publish_added(change, member)
            return answer(change, member, profile)

    async def change_role(
        self,
        actor: Principal,
        org_id: UUID,
        user_id: UUID,
        role: str | None,
        *,
        version: int | None,
        answer: Callable[[Change, Member, Profile], T],
    ) -> T:
        """Give a member another role; None changes nothing.

        Raises:
            MemberNotFound: as said.
            OnlyOwners: the role or the next one is owner and the actor is none.
            LastOwner: no owner would be left.
            PreconditionFailed: ``version`` is not the current one.
        """
        profile = (await self._profiles([user_id])).get(user_id, Profile())
        async with self._database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            actor_role = await self._lock(store, actor, org_id)
            member = await store.get(org_id, user_id)
            if member is None:
                raise MemberNotFound
            changed = member.with_role(role or member.role, self._clock.now())
            check_may_touch(actor_role, member.role, changed.role)
            check_owner_stays(await store.count_owners(org_id), member.role, changed.role)
            member.expect(version)
            if changed != member:
                await store.save(changed)
                change.publish(
                    MemberRoleChanged(
                        org_id=str(org_id),
                        user_id=str(user_id),
                        role=changed.role,
                        previous_role=member.role,
                    ),
                    org_id=org_id,
                )
            return answer(change, changed, profile)

    async def remove(
        self,
        actor: Principal,
        org_id: UUID,
        user_id: UUID,
        *,
        version: int | None,
        answer: Callable[[Change], T],
    ) -> T:
        """Remove a member; whoever is signed in may always remove itself.

        Raises:
            MemberNotFound: as said.
            OnlyOwners: the member is an owner and the actor is none.
            LastOwner: no owner would be left.
            PreconditionFailed: ``version`` is not the current one.
        """
        async with self._database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            leaves = may_leave(actor, user_id)
            actor_role = await self._lock(store, actor, org_id, leaves=leaves)
            member = await store.get(org_id, user_id)
            if member is None:
                raise MemberNotFound
            check_may_touch(actor_role, member.role)
            check_owner_stays(await store.count_owners(org_id), member.role, None)
            member.expect(version)
            await store.delete(org_id, user_id)
            _publish_removed(change, org_id, user_id)
            return answer(change)

    async def open_org(self, org_id: UUID, owner_id: UUID) -> None:
        """Open an organization with its first owner, once.

        Raises:
            OrgClosed: it was closed, if only before it was opened.
        """
        now = self._clock.now()
        async with self._database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            if await store.open_org(org_id, now):
                owner = Member(org_id, owner_id, OWNER, 1, now, now)
                await store.insert(owner)
                _publish_added(change, owner)
            elif not await store.lock_open_org(org_id):
                raise OrgClosed

    async def close_org(self, org_id: UUID) -> None:
        """Close an organization for good, whether or not it was opened: it has no members then."""
        async with self._database.change(Scope((org_id,))) as change:
            store = MemberStore(change.connection)
            if await store.close_org(org_id, self._clock.now()):
                for user_id in await store.delete_all(org_id):
                    _publish_removed(change, org_id, user_id)

    async def _lock(
        self, store: MemberStore, actor: Principal, org_id: UUID, *, leaves: bool = False
    ) -> str:
        """Lock the organization and read the actor's role there, which no cache has aged."""
        if not await store.lock_open_org(org_id):
            raise NotFound
        if actor.user_id is None:
            return actor.kind
        member = await store.get(org_id, actor.user_id)
        if member is None:
            raise NotFound
        if not leaves and not permitted(actor, member.role, WRITE):
            raise PermissionDenied(f"This needs the permission {WRITE}.")
        return member.role

    async def _profiles(self, user_ids: Sequence[UUID]) -> dict[UUID, Profile]:
        if not user_ids:
            return {}
        found = await self._auth.ListProfiles(ListProfilesRequest(user_ids=map(str, user_ids)))
        return {UUID(profile.user_id): profile for profile in found.profiles}


def may_leave(actor: Principal, user_id: UUID) -> bool:
    """Whether the actor is that very user, signed in and not by a key."""
    return actor.kind == "user" and actor.user_id == user_id


def _publish_added(change: Change, member: Member) -> None:
    change.publish(
        MemberAdded(org_id=str(member.org_id), user_id=str(member.user_id), role=member.role),
        org_id=member.org_id,
    )


def _publish_removed(change: Change, org_id: UUID, user_id: UUID) -> None:
    change.publish(MemberRemoved(org_id=str(org_id), user_id=str(user_id)), org_id=org_id)
