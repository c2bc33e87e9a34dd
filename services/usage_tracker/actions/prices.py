"""What organizations pay: stated by their admins, and known to every worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Connection, Database, Scope
from common.errors import Conflict, FieldError, Invalid, Unavailable
from common.ids import uuid7
from common.rpc.fields import timestamp
from mindweave.usage_tracker.v1.events_pb2 import PriceChanged
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.overrides import Entry, Overrides
from services.usage_tracker.domain.pricing import PriceBook, Rate
from services.usage_tracker.store.prices import (
    PriceStore,
    Reconciled,
    Stated,
    UnpricedModel,
    hold_prices,
    last_price,
    price_entries,
)
from services.usage_tracker.store.repricing import order

T = TypeVar("T")
_DAY = timedelta(days=1)
_SECOND_DAY = datetime.min.replace(tzinfo=UTC) + _DAY
# The database takes the ends of the calendar for infinity.
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=UTC) for year in (1970, 9000))
# Seconds that a batch may be looked at between two statements, while no price can be stated.
_PATIENCE = 20
# Entries of an organization; every worker keeps those of all in memory.
_MOST = 10_000


class TooManyPrices(Conflict):
    """The organization has stated as many prices as it may."""

    code = "too_many_prices"


class PricesChanged(Unavailable):
    """A price was stated while events were priced without it: they are priced once more."""


class CurrentPrices:
    """The base prices, and what organizations pay otherwise, as a worker prices by them.

    Whether there are new entries is looked up once a second, and by every transaction before it
    commits, under a lock that whoever states a price waits for. So an entry is heeded by all that
    commits after it did, however busy, slow or out of touch a worker is.

    Args:
        book: the base prices.
        db: where the entries are.
        fresh: seconds for which what was read is taken to be all, until it is confirmed.
    """

    def __init__(self, book: PriceBook, db: Database, *, fresh: float = 1.0) -> None:
        self.book = book
        self._fresh = fresh
        self._db = db
        self._overrides = Overrides()
        self._last = 0
        self._asked = -fresh
        # Parts where an entry came in between: no other one does when they are done once more.
        self._overtaken: set[int] = set()

    async def learn(self) -> None:
        """Read what there is now."""
        async with self._db.session() as connection:
            await self._read(connection, await last_price(connection))

    async def current(self, connection: Connection, part: int) -> Overrides:
        """What organizations pay otherwise, not older than a second."""
        if part in self._overtaken or monotonic() - self._asked >= self._fresh:
            return await self.refresh(connection, part)
        return self._overrides

    async def refresh(self, connection: Connection, part: int) -> Overrides:
        """What organizations pay otherwise now."""
        asked = monotonic()
        held = part in self._overtaken
        last = await (hold_prices(connection, _PATIENCE) if held else last_price(connection))
        await self._read(connection, last)
        self._asked = max(asked, self._asked)
        return self._overrides

    async def confirm(
        self, connection: Connection, part: int, used: Overrides, org_ids: Iterable[bytes]
    ) -> None:
        """See that what these organizations' events were priced by holds still.

        And until the transaction ends, which is best done at once: who states a price waits for it.

        Raises:
            PricesChanged: it does not; the transaction must not commit.
        """
        await self._read(connection, await hold_prices(connection))
        if self._overrides.changed_since(used.last, org_ids):
            self._overtaken.add(part)
            raise PricesChanged("A price was stated meanwhile.")
        self._overtaken.discard(part)

    async def _read(self, connection: Connection, last: int) -> None:
        """Have all entries up to a number."""
        if last <= self._last:
            return
        # Entries are numbered in the order of their commits: none comes in between later.
        entries = await price_entries(connection, self._last)
        known = self._overrides.last
        new = [entry for entry in entries if entry.seq > known]
        if new:
            self._overrides = self._overrides.plus(new)
        self._last = max(last, self._last)


class PriceActions:
    """What can be done with an organization's prices; it has ``most`` entries at most."""

    def __init__(self, database: Database, clock: Clock, *, most: int = _MOST) -> None:
        self._database = database
        self._clock = clock
        self._most = most

    async def create(
        self,
        org_id: UUID,
        model: str,
        *,
        provider: str | None,
        service_tier: str | None,
        since: datetime,
        until: datetime | None,
        rates: tuple[Rate | None, ...] | None,
        discount_bp: int,
        answer: Callable[[Change, Stated], T],
    ) -> T:
        """State a price, and have what was without one priced by it.

        Raises:
            Invalid: it ends before it begins or beyond any time, or has no unit price at all.
            TooManyPrices: there is no room for another.
        """
        for field, time in (("effective_from", since), ("effective_until", until)):
            if time is not None and not _EARLIEST <= time < _LATEST:
                raise _refused(field, "must be between the years 1970 and 9000")
        if until is not None and until <= since:
            raise _refused("effective_until", "must be later than effective_from")
        if rates is not None and not any(rates):
            raise _refused("unit_prices", "must hold the price of a kind of token")
        async with self._database.change(Scope((org_id,))) as change:
            store = PriceStore(change.connection)
            seq = await store.next_seq()
            if await store.count(org_id) >= self._most:
                raise TooManyPrices(f"An organization may state {self._most:,} prices.")
            entry = Entry(
                id=uuid7(),
                seq=seq,
                org_id=org_id,
                model=model,
                provider=provider,
                service_tier=service_tier.lower() if service_tier else None,
                since=microseconds(since),
                until=None if until is None else microseconds(until),
                rates=rates,
                discount_bp=discount_bp,
            )
            stated = Stated(entry, self._clock.now())
            await store.insert(stated)
            # Over unit prices that lack a kind of token, the base price may have one.
            if rates is not None or await store.has_unit_prices(org_id, model):
                await order(
                    change.connection,
                    org_id,
                    model=model,
                    unpriced_only=True,
                    since=since,
                    until=until,
                )
            change.publish(_changed(entry, since))
            return answer(change, stated)

    async def prices(
        self, org_id: UUID, model: str | None, before: int | None, limit: int
    ) -> list[Stated]:
        """An organization's entries, the newest first."""
        async with self._database.read(Scope((org_id,))) as connection:
            return await PriceStore(connection).prices(org_id, model, before, limit)

    async def unpriced(
        self, org_id: UUID, after: tuple[str, str] | None, limit: int
    ) -> list[UnpricedModel]:
        """Models that were used and have no price."""
        async with self._database.read(Scope((org_id,))) as connection:
            return await PriceStore(connection).unpriced(org_id, after, limit)

    async def reconciled(
        self,
        org_id: UUID,
        start: datetime | None,
        end: datetime | None,
        after: tuple[str, str] | None,
        limit: int,
    ) -> list[Reconciled]:
        """The costs of clients beside ours.

        Raises:
            Invalid: the time ends before it begins.
        """
        end = end or self._clock.now()
        start = start or max(end, _SECOND_DAY) - _DAY
        if start >= end:
            raise _refused("start", "must be earlier than end")
        async with self._database.read(Scope((org_id,))) as connection:
            return await PriceStore(connection).reconciled(org_id, start, end, after, limit)


def _refused(field: str, message: str) -> Invalid:
    return Invalid(
        f"{field} {message}.", fields=[FieldError(f"/{field}", "invalid_value", message)]
    )


def _changed(entry: Entry, since: datetime) -> PriceChanged:
    return PriceChanged(
        price_id=str(entry.id),
        org_id=str(entry.org_id),
        model=entry.model,
        provider=entry.provider,
        service_tier=entry.service_tier,
        effective_from=timestamp(since),
    )
