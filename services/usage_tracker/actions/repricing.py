"""Carrying out orders to price events anew, part by part, by the owner of each."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from time import monotonic
from uuid import UUID

from common.database import Connection
from common.errors import Unavailable
from common.periodic import Periodic
from common.threads import off_loop
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.repricing import reprice
from services.usage_tracker.store import MANY_EVENTS, RepricingStore, UsageStore
from services.usage_tracker.store.prices import note_unpriced
from services.usage_tracker.store.repricing import Order
from services.usage_tracker.store.sessions import append_session_deltas

REASON = "reprice"
_EVERY = timedelta(seconds=1)
# Seconds for which an order is left alone that has failed: at first, and at last.
_REST, _LONGEST_REST = 5.0, 60.0
_SMALLEST = 512
_logger = logging.getLogger(__name__)


class Repricing:
    """The chores of a part's owner: steps of the orders that are open.

    A step looks at a range of rows and adds what their events cost otherwise than until now, the
    adjustments before included; so a step that is done again adds nothing, whoever does it. It
    runs between two batches of the part and knows every price that was stated before its order:
    events before it are found by it, events after it are priced so by themselves.

    Args:
        store: the orders.
        usage: takes the deltas.
        prices: by which events are priced; the worker's own.
        layouts: tells how many parts there are; while that changes nothing is done.
    """

    def __init__(
        self, store: RepricingStore, usage: UsageStore, prices: CurrentPrices, layouts: Layouts
    ) -> None:
        self._store = store
        self._usage = usage
        self._prices = prices
        self._layouts = layouts
        self._open: frozenset[int] = frozenset()
        self._generation = 0
        # By part, those that have nothing left to do there.
        self._done: defaultdict[int, frozenset[int]] = defaultdict(frozenset)
        # By part, the organization that had its turn last.
        self._served: dict[int, UUID] = {}
        # By part and order, until when (monotonic) it is left alone, and for how many seconds.
        self._rests: dict[tuple[int, int], tuple[float, float]] = {}
        # By part and order, how many times fewer rows a step looks at than others.
        self._smaller: dict[tuple[int, int], int] = {}

    def periodic(self) -> Periodic:
        return Periodic("orders to reprice", self.look, every=_EVERY)

    async def look(self) -> int:
        """See which orders there are; returns how many."""
        try:
            found = await self._store.open_orders()
            layout = await self._layouts.read() if found else None
        except Unavailable as error:
            _logger.warning("orders to reprice cannot be read: %s", error)
            return len(self._open)
        if layout is None or layout.state is not State.OPEN:
            self._open = frozenset()
            return len(found)
        if layout.generation != self._generation:
            self._done.clear()
        self._generation = layout.generation
        self._open = found
        self._smaller = {key: parts for key, parts in self._smaller.items() if key[1] in found}
        self._rests = {key: rest for key, rest in self._rests.items() if key[1] in found}
        return len(found)

    def due(self, part: int) -> bool:
        left = self._open - self._done[part]
        return bool(left and left - self._resting(part))

    async def step(self, connection: Connection, part: int) -> None:
        """Do the next range of rows of an order, in the transaction of the part's owner.

        Organizations take turns, and one whose order fails keeps nobody else from theirs.
        """
        layout = await self._layouts.read_in(connection)
        if layout is None or layout.state is not State.OPEN:
            self._open = frozenset()
            return
        seen, resting = self._open, self._resting(part)
        order = await self._store.next_order(
            connection,
            part,
            layout.generation,
            after=self._served.get(part),
            without=resting,
        )
        if order is None:
            self._done[part] = seen - resting
            return
        self._served[part] = order.org_id
        try:
            await self._step(connection, part, order, layout)
        except Exception:
            # Perhaps it took too long.
            key = part, order.id
            self._smaller[key] = min(2 * self._smaller.get(key, 1), _SMALLEST)
            self._rest(part, order, min(2 * self._rested(part, order) or _REST, _LONGEST_REST))
            raise

    async def _step(self, connection: Connection, part: int, order: Order, layout: Layout) -> None:
        overrides = await self._prices.refresh(connection, part)
        if not order.begun:
            await self._store.begin(connection, part, layout.generation, order)
        place = await self._store.next_range(
            connection, part, order, self._smaller.get((part, order.id), 1)
        )
        if place is None and not await self._store.is_looked_at(connection, part, order):
            # One that has lost the part has not been told yet, or its transaction would be over.
            self._rest(part, order, _EVERY.total_seconds())
            return
        if place is None:
            await self._store.finish(connection, part, order, layout.generation, layout.partitions)
            return
        counted = await self._store.counted(connection, part, order, place)
        if counted is None:
            return
        long = counted.batch.count > MANY_EVENTS
        found = await off_loop(
            long, reprice, counted, self._prices.book, overrides, order.unpriced_only
        )
        if found.batch.count:
            await self._store.append(connection, part, order, found)
            await note_unpriced(connection, part, found.unpriceds)
            last = await self._usage.append_deltas(connection, part, found.deltas, reason=REASON)
            await append_session_deltas(connection, part, last, found.sessions)
            await self._prices.confirm(connection, part, overrides, [order.org_id.bytes])
        self._rests.pop((part, order.id), None)

    def _resting(self, part: int) -> frozenset[int]:
        now = monotonic()
        return frozenset(
            number for (at, number), (until, _) in self._rests.items() if at == part and now < until
        )

    def _rested(self, part: int, order: Order) -> float:
        return self._rests.get((part, order.id), (0.0, 0.0))[1]

    def _rest(self, part: int, order: Order, seconds: float) -> None:
        """Leave an order alone for so long: others have their turn."""
        self._rests[part, order.id] = monotonic() + seconds, seconds
