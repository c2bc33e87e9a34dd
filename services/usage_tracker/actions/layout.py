"""What this process knows of the layout, and how long it may rely on that."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from common.background import PartStatus
from common.database import Connection, Database
from common.errors import MindWeaveError, Unavailable
from common.events.bus import Bus
from common.events.ledger import Members
from common.periodic import Periodic
from services.usage_tracker.domain.layout import STANDS, Layout, State
from services.usage_tracker.domain.records import EVENTS_TOPIC
from services.usage_tracker.store import LayoutStore

_EVERY = timedelta(seconds=1)

_logger = logging.getLogger(__name__)


class Repartitioning(Unavailable):
    """The number of partitions is being changed; a repeat is safe."""

    code = "repartitioning"

    def __init__(self) -> None:
        super().__init__("The number of partitions is being changed.", retry_after=2)


class RestartNeeded(Unavailable):
    """The number of partitions was changed, and this process was told another one."""

    code = "restart_needed"

    def __init__(self, partitions: int) -> None:
        super().__init__(
            f"{EVENTS_TOPIC} has {partitions} partitions now: restart this process"
            f" with MINDWEAVE_PARTITIONS={partitions}, or without.",
            retry_after=10,
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """A layout as it was at a time (monotonic) or later."""

    layout: Layout
    at: float


class Layouts:
    """Reads the layout every second; what was read stands for ``STANDS`` seconds.

    Whoever takes events in asks for the layout before they are published, and again before they
    are acknowledged. A process is among the publishers, by a lease of as many seconds, from before
    it reads that the layout is open until it has read that it is not; a change begins with waiting
    until there is no publisher. So what was acknowledged was in the old topic before it was looked
    at whether that is drained, however long a process stood still in between. What such a process
    publishes late is never acknowledged.

    Args:
        store: where the layout is.
        bus: whose topic says how many partitions there are, where no layout was written yet.
        publishers: this process as one of those, with a lease of ``stands``.
        configured: how many partitions there must be; None takes them as they are.
        stands: see above.
    """

    name = "layout"

    def __init__(
        self,
        store: LayoutStore,
        bus: Bus,
        publishers: Members,
        configured: int | None,
        *,
        stands: float = STANDS,
    ) -> None:
        self._store = store
        self._bus = bus
        self._publishers = publishers
        self._configured = configured
        self._stands = stands
        self._known: _Known | None = None
        self._polling = Periodic(self.name, self._poll, every=_EVERY)

    async def start(self) -> None:
        await self._polling.start()

    async def stop(self) -> None:
        await self._polling.stop()
        self._known = None
        try:
            await self._publishers.leave()
        except Unavailable as error:
            _logger.info("a change of the layout has to wait for a lease: %s", error)

    def status(self) -> PartStatus:
        try:
            self.open()
        except Repartitioning as error:
            return PartStatus(ready=True, detail=str(error))
        except Unavailable as error:
            return PartStatus(ready=False, detail=str(error))
        return PartStatus(ready=True)

    async def read(self) -> Layout:
        """The layout as it is; where there is none, it is written.

        Raises:
            Unavailable: the database or the broker is.
        """
        found = await self._store.read()
        return found or await self._store.begin(await self._bus.partitions(EVENTS_TOPIC))

    async def read_in(self, connection: Connection) -> Layout | None:
        """The layout as it is, over a connection that the caller has; None where there is none.

        Who holds one waits for no other: where all do, there is none.
        """
        return await self._store.read_in(connection)

    async def poll(self) -> None:
        """Learn what ``open`` and ``confirm`` go by.

        Raises:
            Unavailable: as ``read``.
        """
        asked = monotonic()
        await self._publishers.join()
        found = await self.read()
        self._known = _Known(found, asked)
        if found.state is not State.OPEN:
            await self._publishers.leave()

    def open(self) -> Layout:
        """The layout by which events may be taken in now.

        Raises:
            Repartitioning: it is being changed.
            RestartNeeded: it is not what this process was told.
            Unavailable: it is not known.
        """
        known = self._known
        if known is None or monotonic() - known.at >= self._stands:
            raise Unavailable(
                "The ledger cannot be asked where events go.",
                code="database_unavailable",
                retry_after=1,
            )
        if known.layout.state is not State.OPEN:
            raise Repartitioning
        if self._configured not in (None, known.layout.partitions):
            raise RestartNeeded(known.layout.partitions)
        return known.layout

    def confirm(self, layout: Layout) -> None:
        """Whether what was published by this layout may be acknowledged.

        Raises:
            Unavailable: it may not; what was published does no harm where it is.
        """
        if self.open().generation != layout.generation:
            raise Repartitioning

    async def _poll(self) -> None:
        try:
            await self.poll()
        except MindWeaveError as error:
            _logger.warning("the layout cannot be read: %s", error)


def publishers(db: Database, owner: str, *, stands: float = STANDS) -> Members:
    """The processes that take events in, seen by one of them."""
    return Members(db, topic=f"{EVENTS_TOPIC} publishers", owner=owner, lease=stands)
