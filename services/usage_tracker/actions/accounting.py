"""Counting what has arrived, in the transaction that moves the offset."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import timedelta
from time import monotonic

import numpy as np

from common.columns import Integers
from common.database import Connection
from common.threads import off_loop
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.domain.columns import Batch
from services.usage_tracker.domain.identities import Hashes, Identities
from services.usage_tracker.domain.judging import moment
from services.usage_tracker.domain.overrides import Overrides
from services.usage_tracker.domain.pricing import DAY_US
from services.usage_tracker.domain.records import UsageEvents
from services.usage_tracker.domain.settling import Settled, settle
from services.usage_tracker.store import MANY_EVENTS, UsageStore

# Hashes of identities, and when each was first accepted.
Accepted = tuple[Hashes, Integers]
_MICROSECOND = timedelta(microseconds=1)
_logger = logging.getLogger(__name__)


class Accounting:
    """Settles batches of one part after another.

    Args:
        store: the ledger.
        prices: chosen by each event's own time.
        identity: how long an identity holds from its first acceptance.
    """

    def __init__(self, store: UsageStore, prices: CurrentPrices, identity: timedelta) -> None:
        self._store = store
        self._prices = prices
        self._identity_us = identity // _MICROSECOND
        self._known: dict[int, Identities] = {}

    async def take(self, part: int) -> None:
        """Learn which identities a part holds, now that this process is its only writer.

        And which prices there are: whoever had the part may have known more of them.
        """
        self._known.pop(part, None)
        await self._prices.learn()
        begun = monotonic()
        known = self._known[part] = await self._store.identities(part)
        _logger.info(
            "part %d: %d identities in %d bytes, read in %.2f s",
            part,
            known.count,
            known.size,
            monotonic() - begun,
        )

    async def count(
        self,
        connection: Connection,
        part: int,
        records: Sequence[UsageEvents],
        overrides: Overrides,
        before: Sequence[Hashes] = (),
    ) -> tuple[Settled, int]:
        """Append to the ledger what is new; the caller is the part's only writer.

        Args:
            connection: in the transaction that moves the offset.
            part: of all records.
            records: in the order of the part.
            overrides: of ``prices``, the same for all that is in the transaction.
            before: identities that were appended in the same transaction.

        Returns:
            What the records came to, and the number of its last delta.
        """
        long = sum(data.columns.count for data in records) > MANY_EVENTS
        batch = await off_loop(long, _batch, records)
        since = int(batch.numbers["received_at"].min()) - self._identity_us
        asked = await off_loop(long, self._maybe_known, part, batch, since, before)
        known = (
            await self._store.first_acceptances(connection, part, batch, asked, moment(since))
            if asked
            else {}
        )
        settled = await off_loop(
            long, settle, batch, known, self._prices.book, self._identity_us, overrides
        )
        return settled, await self._store.append(connection, part, settled)

    async def prices(self, connection: Connection, part: int) -> Overrides:
        """What organizations pay otherwise than the base prices."""
        return await self._prices.current(connection, part)

    async def confirm(
        self, connection: Connection, part: int, overrides: Overrides, org_ids: Collection[bytes]
    ) -> None:
        """See, last of all, that what these organizations' events were priced by holds still.

        Raises:
            PricesChanged: it does not; the transaction must not commit.
        """
        if org_ids:
            await self._prices.confirm(connection, part, overrides, org_ids)

    async def remember(self, part: int, accepted: Sequence[Accepted]) -> None:
        """Note what was committed."""
        known = self._known.get(part)
        if known is not None:
            for hashes, received_at in accepted:
                known.add(hashes, received_at)
                # Whoever asks for days that are forgotten is told to look.
                known.forget(int(received_at.min()) - self._identity_us - DAY_US)

    def _maybe_known(
        self, part: int, batch: Batch, since: int, before: Sequence[Hashes]
    ) -> list[int]:
        """The events, in order, that were perhaps accepted before."""
        known = self._known.get(part)
        if known is None:
            return list(range(batch.count))
        maybe = known.may_hold(batch.hashes, since)
        for hashes in before:
            maybe |= np.isin(batch.hashes, hashes)
        return list(np.flatnonzero(maybe).tolist())


def _batch(records: Sequence[UsageEvents]) -> Batch:
    return Batch.of([(data.received_at, data.api_key_id, data.columns) for data in records])
