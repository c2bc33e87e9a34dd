"""One tenure of a partition, from its taking until it is lost, given back or stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any, Protocol

from common.database import Connection, Database
from common.events.bus import Backoff, Bus, BusUnavailable, OffsetLost, Record, token_of
from common.events.delivery import TRANSIENT
from common.events.ledger.offsets import Fenced, Holding, Offsets
from common.events.worker import Worker

Apply = Callable[[Connection, int, list[Record]], Awaitable[Any]]
After = Callable[[int, Any], Awaitable[None]]
PartHook = Callable[[int], Awaitable[None]]

# Seconds until chores that failed are tried again.
_CHORES_REST = 5.0
# Seconds that one fetch waits for records.
_WAIT = 5.0
# Unexpected errors in a row until a partition stops.
_MOST_FAILURES = 5

_logger = logging.getLogger(__name__)


class Chores(Protocol):
    """What the owner of a partition does beside its records, between two batches."""

    def due(self, part: int) -> bool:
        """Whether there is something to do."""
        ...

    async def step(self, connection: Connection, part: int) -> None:
        """Do some of it in the transaction, which commits only while the partition is held."""
        ...


class RecordRefused(Exception):
    """Raised by ``apply``: a record cannot be processed; its partition stops until people look."""


class StreamReplaced(Exception):
    """The broker's partition is not the one that the stored place belongs to."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with the records of a topic."""

    bus: Bus
    db: Database
    offsets: Offsets
    topic: str
    group: str
    apply: Apply
    after: After | None
    on_take: PartHook | None
    max_records: int
    # Seconds from the beginning of a batch to that of the next, unless as many records came as may.
    gather: float
    backoff: Backoff
    chores: Chores | None = None
    # How many partitions are worked on at once; waited for without a connection in hand.
    turn: AbstractAsyncContextManager[object] = field(default_factory=nullcontext)


class Tenure:
    """Fetches a partition's records and applies each batch with its place in one transaction."""

    def __init__(self, work: Work, part: int, holding: Holding, held_until: float) -> None:
        """Args: ``held_until`` is when (monotonic) another may have the partition."""
        self.part = part
        self.epoch = holding.epoch
        self.held_until = held_until
        self.caught_up_at: datetime | None = None
        self.stopped: str | None = None
        self.trouble = ""
        self.worker = Worker(f"{work.topic}/{part}")
        self._work = work
        self._birth = holding.birth
        self._stored = holding.place
        # Behind it only where nothing was ever applied and the first records are gone.
        self._position = holding.place
        # What travelled with the records that are being applied, or that could not be.
        self._travelled: Mapping[str, str] = {}
        self._hinted: str | None = None
        self._hinted_at = -math.inf
        self._noted: tuple[datetime, str | None] | None = None
        # The tokens at which the position has been while the partition's end is asked for.
        self._passed: set[str | None] | None = None
        # When something last came, was applied, or failed.
        self._stirred_at = monotonic()
        self._prepared = False
        self._chores_at = 0.0
        # Whether the broker has shown, since it last failed, that the position is in its log.
        self._sound = False
        # Since when the broker does not answer.
        self._cut_off_at: float | None = None
        self._place = f"{work.topic}/{part}"

    async def run(self) -> None:
        """Returns when the partition is another's, or has stopped (then ``stopped`` says why)."""
        ready, failures, unexpected = False, 0, 0
        while True:
            try:
                if not ready:
                    await self._check()
                    ready = True
                if not self._prepared:
                    await self._prepare()
                await self._next()
                await self._do_chores()
            except Fenced as lost:
                _logger.warning("gives up: %s", lost)
                return
            except TRANSIENT as error:
                self._stirred_at = monotonic()
                ready, failures, self.trouble = False, failures + 1, f"{self._place}: {error}"
                self._note_failure(error)
                _logger.warning("%s waits: %s", self._place, error)
                await self.worker.pause(self._work.backoff.delay(failures))
            except (OffsetLost, RecordRefused, StreamReplaced) as error:
                await self._stop_in_trace(error)
                return
            except Exception as error:
                self._stirred_at = monotonic()
                unexpected += 1
                if unexpected >= _MOST_FAILURES:
                    await self._stop_in_trace(error)
                    return
                _logger.exception("%s failed, attempt %d", self._place, unexpected)
                await self.worker.pause(self._work.backoff.delay(unexpected))
            else:
                failures, unexpected, self.trouble = 0, 0, ""
                self._sound, self._cut_off_at = True, None

    def still_for(self) -> float:
        """Seconds since records were seen to wait in which none came and nothing failed."""
        waiting = self._prepared and self._noted is not None
        return monotonic() - self._stirred_at if waiting else 0.0

    def cut_off_for(self) -> float:
        """Seconds since the broker answered last, where it does not now."""
        return monotonic() - self._cut_off_at if self._cut_off_at is not None else 0.0

    async def look(self, now: datetime) -> bool:
        """See whether everything that was there at ``now`` is applied; True where it is.

        Args:
            now: taken before the call, so that the partition's end is read after it.
        """
        if self._noted is not None or not self._sound:
            return False
        passed = self._passed = {self._position and token_of(self._position)}
        try:
            end = await self._work.bus.end(self._work.topic, self.part)
        finally:
            self._passed = None
        if monotonic() >= self.held_until:
            # The end may be that of a topic made anew, which another has taken meanwhile.
            return False
        if end in passed:
            self.caught_up_at = now
            return True
        self._noted = (now, end)
        self._stirred_at = monotonic()
        return False

    async def hint(self, every: float = 0.0) -> None:
        """Tell the broker how far it may forget, while the stream is surely the one that was.

        Args:
            every: seconds since it was last told, at least.
        """
        token, now = self._stored and token_of(self._stored), monotonic()
        if token is None or token == self._hinted or now - self._hinted_at < every:
            return
        if now < self.held_until:
            await self._work.bus.commit(self._work.topic, self.part, self._work.group, token)
            self._hinted, self._hinted_at = token, now

    def _note_failure(self, error: Exception) -> None:
        self._sound = False
        if not isinstance(error, BusUnavailable):
            self._cut_off_at = None
        elif self._cut_off_at is None:
            self._cut_off_at = monotonic()

    async def _prepare(self) -> None:
        if self._work.on_take is not None:
            await self._work.on_take(self.part)
        self._stirred_at = monotonic()
        self._prepared = True

    async def _check(self) -> None:
        """See that the stored place belongs to the stream that is there."""
        work = self._work
        await self._check_birth()
        if self._position is None:
            end = await work.bus.end(work.topic, self.part)
            first = await work.bus.fetch(work.topic, self.part, None, max_records=1, wait=0)
            if not first:
                self._position = end
                # A look before or beside this one has noted a record that never comes.
                self._noted = None
                if self._passed is not None:
                    self._passed.add(end)

    async def _check_birth(self) -> None:
        birth = await self._work.bus.birth(self._work.topic, self.part)
        if birth != self._birth:
            raise StreamReplaced(f"the stream is {birth}, the stored place is of {self._birth}")

    async def _next(self) -> None:
        work = self._work
        wait = _WAIT if self._sound and not self._chores_due() else 0.0
        records = await work.bus.fetch(
            work.topic, self.part, self._position, max_records=work.max_records, wait=wait
        )
        if not records:
            return
        began = self._stirred_at = monotonic()
        if self._stored is None:
            # No place yet by which the bus would see that the stream is another.
            await self._check_birth()
        self._travelled = records[0].headers
        with (
            self.worker.step(),
            work.db.telemetry.continued(self._travelled, f"{work.topic} apply"),
        ):
            result = await self._apply(records)
            if work.after is not None:
                try:
                    await work.after(self.part, result)
                except Exception:
                    # What is in memory lacks this batch.
                    self._prepared = False
                    raise
        self._travelled = {}
        if len(records) < work.max_records and not self._chores_due():
            await self.worker.pause(began + work.gather - monotonic())

    def _chores_due(self) -> bool:
        chores = self._work.chores
        return chores is not None and monotonic() >= self._chores_at and chores.due(self.part)

    async def _do_chores(self) -> None:
        """A step of them; one that fails stops no records."""
        work = self._work
        if work.chores is None or not self._chores_due():
            return
        try:
            with self.worker.step():
                async with work.db.session() as connection, connection.transaction():
                    await work.chores.step(connection, self.part)
                    # Not before: leases are renewed, and lost ones taken, while a step lasts.
                    await work.offsets.hold(connection, self.part, self.epoch)
        except Fenced:
            raise
        except Exception as error:
            known = isinstance(error, TRANSIENT)
            _logger.warning(
                "%s: its chores failed and will be tried again: %s",
                self._place,
                error,
                exc_info=None if known else error,
            )
            self._chores_at = monotonic() + _CHORES_REST

    async def _apply(self, records: list[Record]) -> Any:
        work, last = self._work, records[-1].place
        async with work.turn, work.db.session() as connection, connection.transaction():
            result = await work.apply(connection, self.part, records)
            await work.offsets.advance(connection, self.part, self.epoch, self._stored, last)
        self._stored = self._position = last
        self._stirred_at = monotonic()
        if self._passed is not None:
            self._passed.update(r.token for r in records)
        if self._noted is not None and any(r.token == self._noted[1] for r in records):
            self.caught_up_at, self._noted = self._noted[0], None
        return result

    async def _stop_in_trace(self, error: Exception) -> None:
        """``_stop``, in the trace of the records that stop it, where it is they."""
        work = self._work
        trace: AbstractContextManager[object] = nullcontext()
        if self._travelled:
            trace = work.db.telemetry.continued(self._travelled, f"{work.topic} stop")
        with trace:
            await self._stop(error)

    async def _stop(self, error: Exception) -> None:
        """Stop for good, unless the partition is another's, who may have had the records go."""
        failures = 0
        while True:
            try:
                ours = await self._work.offsets.holds(self.part, self.epoch)
                break
            except TRANSIENT as unknown:
                failures += 1
                self.trouble = f"{self._place}: {unknown}"
                await self.worker.pause(self._work.backoff.delay(failures))
        if not ours:
            _logger.warning("gives up %s: %s", self._place, error)
            return
        self.stopped = f"{self._place} has stopped: {type(error).__name__}: {error}"
        _logger.error(
            "%s stops until people look at it", self._place, exc_info=error, extra={"alert": True}
        )
