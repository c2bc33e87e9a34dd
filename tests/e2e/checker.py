"""A client that never gives up, and whose books of acknowledged events no platform keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count

import httpx

from fleet.replay import ReplayFailed, Sender, wait_until_fresh
from fleet.workload import Event, Workload, generate
from tests.common.plain import PLAIN
from tests.common.waiting import while_busy
from tests.e2e.oracle import Oracle
from tests.e2e.tenant import Tenant

# Requests of which one piece of an endless workload is made.
PIECE = 1000
# An answer that did not come in this time is taken for lost, and the batch goes again.
ANSWER_SECONDS = 10.0
# Until a batch that is sent again and again is acknowledged, and until all is shown: a recovery
# that takes longer is a finding. Only where the machine is busy (its load against its cores) these
# limits are longer, at most four times.
ACKNOWLEDGED_SECONDS = 30.0
SHOWN_SECONDS = 60.0
# The same for a stream, whose sending goes on while servers are taken away.
STREAM_SECONDS = 120.0


class Checker:
    """Sends events of one organization; what was not acknowledged goes again, unchanged.

    Attributes:
        oracle: the books of what was acknowledged.
        retries: how often a batch had to go again.
    """

    def __init__(self, address: str, who: Tenant) -> None:
        self._address = address
        self._who = who
        self.oracle = Oracle(who.org_id, who.key["id"])
        self.retries = 0
        self.accepted_at = datetime.now(UTC)

    async def send(self, batch: list[Event], patience: float | None = None) -> bool:
        """Whether the batch was acknowledged in time; then it is in the books."""
        if patience is None:
            patience = while_busy(ACKNOWLEDGED_SECONDS)
        async with self._client() as http:
            try:
                await self._deliver(http, batch, patience)
            except ReplayFailed:
                return False
        return True

    async def replay(
        self, batches: Iterator[list[Event]], pause: float, ending: asyncio.Event
    ) -> None:
        """Send batches one after another until ``ending``; the last one, too, is acknowledged.

        Raises:
            ReplayFailed: two minutes were not enough for a batch.
        """
        async with self._client() as http:
            while not ending.is_set():
                await self._deliver(http, next(batches), STREAM_SECONDS)
                await asyncio.sleep(pause)

    async def finish(self, patience: float | None = None) -> None:
        """Wait until analytics says that it shows all that was acknowledged."""
        if patience is None:
            patience = while_busy(SHOWN_SECONDS)
        async with self._client() as http:
            await wait_until_fresh(http, self._who.org_id, self.accepted_at, patience)

    @asynccontextmanager
    async def replaying(
        self, seed: int, *, streams: int = 4, size: int = 10, pause: float = 0.05
    ) -> AsyncIterator[None]:
        """Send streams of events while the block runs.

        A stream is an endless workload of its own: its next batch leaves when the one before is
        acknowledged, so that which copy of an id came first is known.
        """
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(streams):
                batches = endless(seed + number, self._who.projects, size)
                group.create_task(self.replay(batches, pause, ending))
            yield
            ending.set()

    async def _deliver(self, http: httpx.AsyncClient, batch: list[Event], patience: float) -> None:
        outcome = await Sender(http, concurrency=1, patience=patience).send([batch])
        assert outcome.rejected == []
        assert outcome.accepted_at is not None
        self.retries += outcome.retries
        self.oracle.acknowledge(outcome.acknowledged)
        self.accepted_at = max(self.accepted_at, outcome.accepted_at)

    def _client(self) -> httpx.AsyncClient:
        shown = {"Authorization": f"Bearer {self._who.key['key']}"}
        return httpx.AsyncClient(
            base_url=self._address, headers=shown, timeout=ANSWER_SECONDS, verify=PLAIN
        )


def endless(seed: int, projects: Sequence[str], size: int) -> Iterator[list[Event]]:
    """Batches of one piece of a workload after another."""
    for piece in count():
        name = seed * 1_000_000 + piece
        requests = generate(seed=name, count=PIECE)
        yield from Workload(requests, projects, datetime.now(UTC), seed=name).batches(size)
