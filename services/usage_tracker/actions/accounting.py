"""Counting what has arrived, in the transaction that moves the offset."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from common.database import Connection
from services.usage_tracker.domain.judging import moment
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.settling import Arrived, Settled, settle
from services.usage_tracker.store import UsageStore

_MICROSECOND = timedelta(microseconds=1)


class Accounting:
    """Settles batches of one part after another.

    Args:
        store: the ledger.
        prices: chosen by each event's own time.
        identity: how long an identity holds from its first acceptance.
    """

    def __init__(self, store: UsageStore, prices: PriceBook, identity: timedelta) -> None:
        self._store = store
        self._prices = prices
        self._identity = identity

    async def count(self, connection: Connection, part: int, arrived: Sequence[Arrived]) -> Settled:
        """Append to the ledger what is new; the caller is the part's only writer."""
        oldest = moment(min(a.received_at for a in arrived))
        known = await self._store.first_acceptances(
            connection, part, arrived, oldest - self._identity
        )
        settled = await asyncio.to_thread(
            settle, arrived, known, self._prices, self._identity // _MICROSECOND
        )
        await self._store.append(connection, part, settled)
        return settled
