"""Who is served next: tenants in turn, so that whoever sends much waits for itself alone."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from common.errors import RateLimited, Unavailable

OVERLOADED = "overloaded"
_AGAIN = 1.0
_EVERYBODY = "everybody"
# A tenant may hold one part in so many of what is free.
_OF_FREE = 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Bytes of bodies in hand: of all, of one organization and of one credential."""

    everybody: int
    org: int
    credential: int


@dataclass(frozen=True, slots=True)
class _Owner:
    name: Hashable
    share: int
    what: str


class InHand:
    """What will come and has arrived of a body, which counts for all its owners.

    See ``Turns.holding``. ``expect`` and ``take`` raise where there is no room, and change nothing
    then; one body alone has room always:

    - ``RateLimited``: the credential or the organization has its share announced or in hand.
    - ``Unavailable``: the tenant would hold more than a fourth of what is free. So those who come
      find room while others fill the rest. An announcement costs nothing, and takes none of theirs.
    """

    def __init__(
        self,
        announced: Counter[Hashable],
        arrived: Counter[Hashable],
        most: int,
        owners: Sequence[_Owner],
    ) -> None:
        self._announced = announced
        self._arrived = arrived
        self._most = most
        self._owners = owners
        # The last one is the tenant.
        self._tenant = owners[-1].name
        self._size = 0
        self._size_arrived = 0

    def expect(self, size: int) -> None:
        """So many bytes will come: who has no room for all of them is told before the first."""
        self._check(size, size)
        self._announce(size)

    def take(self, size: int) -> None:
        """So many bytes more have arrived, of those that were expected or others."""
        more = max(self._size_arrived + size - self._size, 0)
        self._check(more, size)
        self._announce(more)
        self._arrive(size)

    def release(self) -> None:
        self._announce(-self._size)
        self._arrive(-self._size_arrived)

    def _check(self, announced: int, arrives: int) -> None:
        for owner in self._owners if announced else ():
            others = self._announced[owner.name] - self._size
            if others and others + self._size + announced > owner.share:
                raise RateLimited(
                    f"Too many requests {owner.what} are under way;"
                    " wait for their answers, or send less at a time.",
                    retry_after=_AGAIN,
                )
        total, tenant = self._arrived[_EVERYBODY], self._arrived[self._tenant]
        alone = total <= self._size_arrived
        if not alone and _OF_FREE * (tenant + arrives) > self._most - total:
            raise Unavailable(
                "Too many requests are under way.", code=OVERLOADED, retry_after=_AGAIN
            )

    def _announce(self, size: int) -> None:
        self._size += size
        for owner in self._owners:
            _add(self._announced, owner.name, size)

    def _arrive(self, size: int) -> None:
        self._size_arrived += size
        for name in (_EVERYBODY, self._tenant):
            _add(self._arrived, name, size)


def _add(counter: Counter[Hashable], name: Hashable, size: int) -> None:
    counter[name] += size
    if not counter[name]:
        del counter[name]


class Turns:
    """Bounds the bodies of all tenants and of each, and lets tenants work in turn.

    Args:
        at_once: pieces of work at the same time.
        shares: what may be in hand.
    """

    def __init__(self, *, at_once: int, shares: Shares) -> None:
        self._free = at_once
        self._shares = shares
        self._announced: Counter[Hashable] = Counter()
        self._arrived: Counter[Hashable] = Counter()
        # Tenants in the order of their turns, each with its work in the order that it came.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextmanager
    def holding(self, org: Hashable, credential: Hashable) -> Iterator[InHand]:
        """A body that comes; it is in hand until the end of the block."""
        owners = (
            _Owner(("credential", credential), self._shares.credential, "with this credential"),
            _Owner(("org", org), self._shares.org, "of your organization"),
        )
        body = InHand(self._announced, self._arrived, self._shares.everybody, owners)
        try:
            yield body
        finally:
            body.release()

    @asynccontextmanager
    async def turn(self, tenant: Hashable) -> AsyncIterator[None]:
        """Work of a tenant, when it is its turn."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: Hashable) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, work = self._waiting.popitem(last=False)
            chosen = work.popleft()
            if work:
                self._waiting[tenant] = work
            if not chosen.done():
                chosen.set_result(None)
                return
        self._free += 1
