"""Use cases of organizations: sagas with team, each step a transaction of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Database, Scope
from common.errors import Conflict, MindWeaveError
from common.ids import uuid7
from mindweave.account.v1.events_pb2 import OrgCreated, OrgDeleted, OrgUpdated
from mindweave.team.v1.team_pb2 import CloseOrgRequest, OpenOrgRequest
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from services.account.domain import KeyReused, Opening, Org, OrgNotFound, OrgNotOpened
from services.account.store import OrgStore

# A left-over is taken up when the call that made it can no longer run.
GRACE = timedelta(seconds=60)
# An organization that could not be opened for so long is given up: its creator has gone.
PATIENCE = timedelta(hours=1)
# As long as an idempotency record lives, and an hour for the clocks.
OPENING_KEPT = timedelta(hours=25)
BATCH = 100

_log = logging.getLogger(__name__)

T = TypeVar("T")


class OrgActions:
    """What can be done with organizations.

    ``answer`` makes the result inside the last transaction of a use case, so that what it
    remembers in the change commits together with the effect.

    While team is down, creating and deleting raise ``Unavailable``, and the ``Sweeper`` ends what
    was begun; everything else goes on.
    """

    def __init__(self, database: Database, team: TeamServiceStub, clock: Clock) -> None:
        self._database = database
        self._team = team
        self._clock = clock

    async def create(
        self,
        name: str,
        *,
        user_id: UUID,
        key: str,
        request_hash: bytes,
        answer: Callable[[Change, Org], T],
    ) -> T:
        """Create an organization, or resume the one that this user's key stands for.

        Raises:
            KeyReused: the key stands for another body.
            OrgNotOpened: the organization of this key was given up or is gone.
        """
        org = await self._begin(name, user_id, key, request_hash)
        if org.state == "pending":
            await self._open(org)
        return await self._activate(org.id, answer)

    async def list_active(
        self, org_ids: Sequence[UUID], after: UUID | None, limit: int
    ) -> list[Org]:
        async with self._database.read(Scope(org_ids)) as connection:
            return await OrgStore(connection).list_active(org_ids, after, limit)

    async def get(self, org_id: UUID) -> Org:
        async with self._database.read(Scope((org_id,))) as connection:
            org = await OrgStore(connection).get(org_id)
        return _active(org)

    async def rename(
        self,
        org_id: UUID,
        name: str | None,
        *,
        version: int | None,
        answer: Callable[[Change, Org], T],
    ) -> T:
        """Give an organization another name; None changes nothing.

        Raises:
            PreconditionFailed: ``version`` is not the current one.
        """
        async with self._database.change(Scope((org_id,))) as change:
            store = OrgStore(change.connection)
            org = _active(await store.lock(org_id))
            org.expect(version)
            renamed = org if name is None else org.renamed(name, self._clock.now())
            if renamed != org:
                await store.save(renamed)
                change.publish(OrgUpdated(org_id=str(org_id), fields=["name"]), org_id=org_id)
            return answer(change, renamed)

    async def delete(
        self, org_id: UUID, *, version: int | None, answer: Callable[[Change], T]
    ) -> T:
        """Close an organization in team, so that it is refused everywhere; then remove it.

        Raises:
            PreconditionFailed: ``version`` is not the current one.
        """
        async with self._database.change(Scope((org_id,)), call=None) as change:
            store = OrgStore(change.connection)
            org = await store.lock(org_id)
            if org is None or org.state == "pending":
                raise OrgNotFound
            org.expect(version)
            await self._decide_removal(store, org)
        await self._close(org_id)
        async with self._database.change(Scope((org_id,))) as change:
            await self._remove(change, org_id)
            return answer(change)

    async def left_over(self) -> list[UUID]:
        """Organizations whose creation or removal stopped half-way, oldest first."""
        async with self._database.read(Scope()) as connection:
            return await OrgStore(connection).unfinished(self._clock.now() - GRACE, BATCH)

    async def finish(self, org_id: UUID) -> None:
        """End what was left over: open the organization, or give it up, or remove it."""
        async with self._database.read(Scope((org_id,))) as connection:
            org = await OrgStore(connection).get(org_id)
        if org is None or org.state == "active":
            return
        if org.state == "pending" and org.created_at > self._clock.now() - PATIENCE:
            try:
                await self._open(org)
                await self._activate(org_id, lambda _change, opened: opened)
                return
            except OrgNotOpened:
                pass
        await self._give_up(org_id)

    async def forget_openings(self) -> int:
        """Drop what no repeated call can ask for any more; the count."""
        async with self._database.change(Scope(), call=None) as change:
            return await OrgStore(change.connection).forget_openings(
                self._clock.now() - OPENING_KEPT
            )

    async def _begin(self, name: str, user_id: UUID, key: str, request_hash: bytes) -> Org:
        now = self._clock.now()
        opening = Opening(uuid7(), user_id, key, request_hash)
        async with self._database.change(Scope((opening.org_id,), user_id), call=None) as change:
            store = OrgStore(change.connection)
            if await store.insert_opening(opening, now):
                pending = Org(opening.org_id, name, "", "pending", 1, user_id, now, now)
                return await store.insert(pending)
            known = await store.find_opening(user_id, key)
        if known is None:
            raise OrgNotOpened
        if known.request_hash != request_hash:
            raise KeyReused
        async with self._database.read(Scope((known.org_id,), user_id)) as connection:
            org = await OrgStore(connection).get(known.org_id)
        if org is None:
            raise OrgNotOpened
        return org

    async def _open(self, org: Org) -> None:
        try:
            await self._team.OpenOrg(
                OpenOrgRequest(org_id=str(org.id), owner_id=str(org.created_by))
            )
        except Conflict as closed:
            raise OrgNotOpened from closed

    async def _close(self, org_id: UUID) -> None:
        await self._team.CloseOrg(CloseOrgRequest(org_id=str(org_id)))

    async def _activate(self, org_id: UUID, answer: Callable[[Change, Org], T]) -> T:
        async with self._database.change(Scope((org_id,))) as change:
            store = OrgStore(change.connection)
            org = await store.lock(org_id)
            if org is None or org.state == "closing":
                raise OrgNotOpened
            if org.state == "pending":
                org = replace(org, state="active", activated_at=self._clock.now())
                await store.save(org)
                change.publish(
                    OrgCreated(org_id=str(org_id), name=org.name),
                    org_id=org_id,
                    user_id=org.created_by,
                )
            return answer(change, org)

    async def _decide_removal(self, store: OrgStore, org: Org) -> None:
        """From here the organization can only go; its version stays, so a repeat matches."""
        if org.state != "closing":
            await store.save(replace(org, state="closing", updated_at=self._clock.now()))

    async def _give_up(self, org_id: UUID) -> None:
        async with self._database.change(Scope((org_id,)), call=None) as change:
            store = OrgStore(change.connection)
            org = await store.lock(org_id)
            if org is None or org.state == "active":
                return
            await self._decide_removal(store, org)
        await self._close(org_id)
        async with self._database.change(Scope((org_id,)), call=None) as change:
            await self._remove(change, org_id)

    async def _remove(self, change: Change, org_id: UUID) -> None:
        store = OrgStore(change.connection)
        org = await store.lock(org_id)
        if org is None:
            return
        await store.delete(org_id)
        if org.activated_at is not None:
            change.publish(OrgDeleted(org_id=str(org_id)), org_id=org_id)


def _active(org: Org | None) -> Org:
    if org is None or org.state != "active":
        raise OrgNotFound
    return org


class Sweeper:
    """Ends what calls left half-way: killed, or while team was down."""

    def __init__(self, actions: OrgActions) -> None:
        self._actions = actions

    async def sweep(self) -> int:
        """One round; how many organizations are left over still."""
        left = 0
        for org_id in await self._actions.left_over():
            try:
                await self._actions.finish(org_id)
            except MindWeaveError as error:
                left += 1
                _log.warning("organization %s is left over still: %s", org_id, error)
        await self._actions.forget_openings()
        return left
