"""In which organizations a caller has which role, as team says."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from common.clock import Clock
from common.errors import DeadlineExceeded, Unavailable
from common.identity.call import Principal
from common.renewal import AHEAD, not_needed_yet
from mindweave.team.v1.team_pb2 import ResolveAccessRequest
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub

Roles = Mapping[UUID, str]

# A change of a role is in force within 5 s: some of them are left for questions under way.
_FRESH = timedelta(seconds=3)
_STANDS = timedelta(seconds=60)
_REMEMBERED = 10_000
_ASK_SECONDS = 2.0
_NOWHERE: Roles = MappingProxyType({})
_NONE: frozenset[UUID] = frozenset()

# The caller, and what it asked about where its answer depends on that: a service's own calls.
_Key = tuple[str, frozenset[UUID]]


@dataclass(frozen=True, slots=True)
class _Known:
    roles: Roles
    user_id: UUID | None
    asked: datetime
    fresh_until: datetime

    def stands_at(self, now: datetime) -> bool:
        return timedelta() <= now - self.asked < _STANDS


@dataclass(eq=False, slots=True)
class _Question:
    """One that is on its way; what is forgotten meanwhile makes its answer outdated."""

    user_id: UUID | None
    outdated: bool = False


class AccessResolver:
    """Asks team for a caller's roles and remembers the answer.

    An answer is used for 3 s, and asked for again, while it is used, before they are over. That a
    caller has no role is never remembered. While team is down, reads go on with an answer of the
    last 60 s.
    """

    def __init__(self, team: TeamServiceStub, clock: Clock) -> None:
        self._team = team
        self._clock = clock
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._questions: set[_Question] = set()
        self._renewing: dict[_Key, asyncio.Task[Roles]] = {}

    async def resolve(
        self,
        principal: Principal,
        want: UUID | None = None,
        *,
        reads: bool = False,
        anew: bool = False,
        acting_for: Collection[UUID] = (),
    ) -> Roles:
        """The caller's role by organization.

        Args:
            principal: the caller.
            want: the organization at hand; when it is not among those remembered, team is asked.
            reads: the operation changes nothing, so that an older answer may stand in for team.
            anew: ask team even where an answer is remembered.
            acting_for: organizations that a service works on; only for a service's own principal.

        Raises:
            Unavailable: team cannot be asked, and no answer may stand in.
        """
        kind = principal.kind
        if kind == "anonymous":
            return _NOWHERE
        wanted = _NONE
        if kind == "service":
            wanted = frozenset(acting_for) if want is None else frozenset((*acting_for, want))
            if not wanted:
                return _NOWHERE
        key = (principal.subject, wanted)
        known = self._known.get(key)
        if known is not None and (want is None or want in known.roles):
            now = self._clock.now()
            if not anew and known.asked <= now < known.fresh_until:
                self._known.move_to_end(key)
                if now - known.asked >= _FRESH * AHEAD:
                    self._renew(principal, key, wanted)
                return known.roles
        else:
            known = None
        under_way = self._renewing.get(key) if known is not None and not anew else None
        try:
            if under_way is not None:
                return await asyncio.shield(under_way)
            return await self._ask(principal, key, wanted)
        except (Unavailable, DeadlineExceeded) as error:
            if reads and known is not None and known.stands_at(self._clock.now()):
                return known.roles
            raise Unavailable("Permissions cannot be checked now.", retry_after=1) from error

    def evict(self, *, user_id: UUID | None = None, org_id: UUID | None = None) -> None:
        """Forget what is known of a user, of an organization, or of the one in the other."""
        for question in self._questions:
            question.outdated |= user_id is None or question.user_id == user_id
        for key, known in list(self._known.items()):
            of_user = user_id is None or known.user_id == user_id
            of_org = org_id is None or org_id in known.roles
            if of_user and of_org:
                del self._known[key]

    def _renew(self, principal: Principal, key: _Key, wanted: frozenset[UUID]) -> None:
        if key in self._renewing:
            return
        # Nothing of the request that happens to ask (its user, its deadline) goes with it.
        asking = asyncio.create_task(self._ask(principal, key, wanted), context=Context())
        self._renewing[key] = asking
        asking.add_done_callback(not_needed_yet)
        asking.add_done_callback(lambda _: self._renewing.pop(key))

    async def _ask(self, principal: Principal, key: _Key, wanted: frozenset[UUID]) -> Roles:
        asked, question = self._clock.now(), _Question(principal.user_id)
        self._questions.add(question)
        service = principal.kind == "service"
        named: Sequence[str] = sorted(map(str, wanted)) if service else ()
        try:
            answer = await self._team.ResolveAccess(
                ResolveAccessRequest(org_ids=named),
                timeout=_ASK_SECONDS,
                metadata=() if service else (("authorization", f"Bearer {principal.token}"),),
            )
        finally:
            self._questions.discard(question)
        roles = MappingProxyType({UUID(found.org_id): found.role for found in answer.access})
        # What was forgotten meanwhile must not come back with an answer from before.
        if roles and not question.outdated:
            self._known[key] = _Known(roles, principal.user_id, asked, asked + _FRESH)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return roles
