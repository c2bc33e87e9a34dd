"""The relay of ``usage.windows``: deltas in the order of their numbers, then watermarks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

import msgspec
import numpy as np

from common.background import PartStatus
from common.clock import Clock
from common.errors import Unavailable
from common.events.bus import Backoff, Bus, Outgoing
from common.events.envelope import PACKED_HEADERS, Envelope, pack
from common.ids import uuid7
from common.telemetry import Telemetry
from common.threads import off_loop
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.records import WINDOWS_TOPIC, windows_data, windows_partition
from services.usage_tracker.domain.windows import joined_deltas
from services.usage_tracker.store import MANY_EVENTS, BlockStore, UsageStore

_BATCH = 2_000
_logger = logging.getLogger(__name__)
# Between two notes, in the database, of watermarks and of how far deltas were sent on. Retention
# needs no finer ones, and what is sent again is skipped by who applies it.
_NOTE_EVERY = timedelta(seconds=2)
# Between two watermarks once nothing has been sent for as long.
_IDLE = timedelta(seconds=0.5)


class Progress(Protocol):
    """How far the worker is, as ``PartitionConsumer`` tells."""

    def held(self) -> Sequence[int]:
        """The parts that this process owns."""
        ...

    def caught_up_at(self, part: int) -> datetime | None:
        """A time before which everything published to the part is committed."""
        ...


class WindowsRelay:
    """Sends the deltas of the parts that this process owns, each at least once.

    A watermark is read before the deltas and sent after them, so that it is never ahead of a delta
    that was not sent. Whoever applies the deltas skips numbers that it has applied: two relays of
    one part, of which one does not know yet that it lost the part, do no harm.

    Args:
        bus: where the windows go.
        store: how far they were sent on.
        blocks: where the deltas are.
        progress: of the worker in this process.
        clock: dates the envelopes.
        telemetry: counts what was sent.
        partitions: of ``usage.windows``.
        skew: how far the clocks of ingest may be from each other.
        layouts: tells how many sources there are.
        recent: deltas that the worker in this process has just committed.
        cadence: seconds between two steps, and between two watermarks while deltas are sent.
    """

    name = "usage.windows relay"

    def __init__(
        self,
        *,
        bus: Bus,
        store: UsageStore,
        blocks: BlockStore,
        progress: Progress,
        clock: Clock,
        telemetry: Telemetry,
        partitions: int,
        skew: timedelta,
        layouts: Layouts,
        recent: RecentDeltas,
        cadence: float = 0.1,
        backoff: Backoff | None = None,
    ) -> None:
        self._bus = bus
        self._store = store
        self._blocks = blocks
        self._progress = progress
        self._clock = clock
        self._partitions = partitions
        self._skew = skew
        self._layouts = layouts
        self._sources: tuple[int, int] | None = None
        self._cadence = cadence
        # A little less, so that a step that comes a moment early does not skip its turn.
        self._every = timedelta(seconds=cadence) * 0.9
        self._told: datetime | None = None
        self._sent_at: datetime | None = None
        self._backoff = backoff or Backoff(limit=5.0)
        self._sent = telemetry.counter(
            "mindweave_window_deltas_sent_total", "Deltas of windows sent on."
        ).of()
        self._recent = recent
        # By part, the last number that is known to have been sent on; which of them are not noted.
        self._numbers: dict[int, int] = {}
        self._to_note: set[int] = set()
        self._noted_numbers: datetime | None = None
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._noted: datetime | None = None
        self._status = PartStatus(ready=True)

    async def start(self) -> None:
        self._ending.clear()
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        self._ending.set()
        self._recent.added.set()
        if self._task is not None:
            await self._task
            self._task = None
        try:
            await self._note_numbers()
        except Unavailable as error:
            _logger.info("some windows will be sent on again: %s", error)

    def status(self) -> PartStatus:
        ended = self._task is not None and self._task.done()
        return replace(self._status, ready=False, live=False) if ended else self._status

    async def step(self) -> None:
        """Send what there is, then the watermarks; a stop ends it between two batches.

        Raises:
            Unavailable: the broker or the database is, or the broker is full.
        """
        parts = list(self._progress.held())
        self._recent.keep(parts)
        # Another one may have sent on what there was meanwhile.
        for part in self._numbers.keys() - set(parts):
            del self._numbers[part]
            self._to_note.discard(part)
        watermarks = {
            part: at - self._skew
            for part in parts
            if (at := self._progress.caught_up_at(part)) is not None
        }
        now = self._clock.now()
        busy = _within(_IDLE, self._sent_at, now)
        due = not _within(self._every if busy else max(self._every, _IDLE), self._told, now)
        for part in parts:
            await self._send_deltas(part, look=due)
        if self._sources is None:
            await self._learn_sources()
        if not _within(_NOTE_EVERY, self._noted_numbers, now):
            await self._note_numbers()
            self._noted_numbers = now
        if due and watermarks and not self._ending.is_set():
            await self._send_watermarks(watermarks)
            self._told = now

    async def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            pause = self._cadence
            try:
                await self.step()
                failures = 0
                self._status = PartStatus(ready=True, lag=0)
            except Unavailable as error:
                failures += 1
                pause = self._backoff.delay(failures)
                _logger.warning("windows wait to be sent on: %s", error)
                self._status = PartStatus(ready=False, detail=str(error))
            except Exception as error:
                failures += 1
                pause = self._backoff.delay(failures)
                _logger.exception("windows cannot be sent on")
                self._status = PartStatus(ready=False, detail=type(error).__name__)
            await self._rest(pause, self._ending if failures else self._recent.added)

    async def _rest(self, seconds: float, until: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(seconds):
                await until.wait()
        except TimeoutError:
            return
        self._recent.added.clear()

    async def _send_deltas(self, part: int, *, look: bool) -> None:
        """What is kept in memory; then whatever the database has beyond that.

        Args:
            part: of the deltas.
            look: into the database, even where memory seems to have all. A watermark needs that.
        """
        if part not in self._numbers:
            self._numbers[part] = await self._store.sent_up_to(part)
        while found := self._recent.following(part, self._numbers[part], _BATCH):
            if self._ending.is_set():
                return
            count = sum(len(numbered.deltas) for numbered in found)
            records = await off_loop(count > MANY_EVENTS, self._records_of, part, found)
            await self._send(part, records, found[-1].last, count)
        if not look and not self._recent.waits(part):
            return
        while not self._ending.is_set():
            found = await self._blocks.unsent(part, self._numbers[part])
            if not found:
                return
            count = sum(len(numbered.deltas) for numbered in found)
            records = await off_loop(count > MANY_EVENTS, self._records, part, found)
            await self._send(part, records, found[-1].last, count)

    async def _send(self, part: int, records: Sequence[Outgoing], last: int, count: int) -> None:
        await self._bus.publish(WINDOWS_TOPIC, records)
        self._numbers[part] = last
        self._to_note.add(part)
        self._sent_at = self._clock.now()
        self._sent.inc(count)

    async def _note_numbers(self) -> None:
        for part in list(self._to_note):
            await self._store.sent(part, self._numbers[part])
            self._to_note.discard(part)

    def _records_of(self, part: int, found: Sequence[Numbered]) -> list[Outgoing]:
        """The deltas by the partition of their organization, in the order of their numbers.

        They follow each other, for the same reason.
        """
        deltas = joined_deltas([numbered.deltas for numbered in found])
        packed = partial(deltas.packed, found[0].first, reason=found[0].reason)
        orgs = deltas.dimensions["org_id"]
        places = np.array(
            [windows_partition(UUID(bytes=org), self._partitions) for org in orgs.values]
        )[orgs.codes]
        chosen = {place: np.flatnonzero(places == place) for place in np.unique(places).tolist()}
        return [
            self._outgoing(part, packed(some[start : start + _BATCH]), place)
            for place, some in chosen.items()
            for start in range(0, len(some), _BATCH)
        ]

    async def _send_watermarks(self, watermarks: Mapping[int, datetime]) -> None:
        marks = {p: microseconds(at) for p, at in watermarks.items()}
        value = self._packed(windows_data(None, None, marks, self._sources))
        await self._bus.publish(
            WINDOWS_TOPIC,
            [Outgoing(value, partition=p, headers=PACKED_HEADERS) for p in range(self._partitions)],
        )
        now = self._clock.now()
        if not _within(_NOTE_EVERY, self._noted, now):
            await self._store.note_watermarks(watermarks)
            await self._learn_sources()
            self._noted = now

    async def _learn_sources(self) -> None:
        layout = await self._layouts.read()
        self._sources = layout.generation, layout.partitions

    def _records(self, part: int, found: Sequence[Numbered]) -> list[Outgoing]:
        """As ``_records_of``, where numbers may be missing and reasons differ."""
        runs: list[list[Numbered]] = []
        for numbered in found:
            last = runs[-1][-1] if runs else None
            if last and (last.last + 1, last.reason) == (numbered.first, numbered.reason):
                runs[-1].append(numbered)
            else:
                runs.append([numbered])
        return [record for run in runs for record in self._records_of(part, run)]

    def _outgoing(self, part: int, columns: Mapping[str, object], partition: int) -> Outgoing:
        value = self._packed(windows_data(part, columns, {}))
        return Outgoing(value, partition=partition, headers=PACKED_HEADERS)

    def _packed(self, data: Mapping[str, object]) -> bytes:
        return pack(
            Envelope(
                id=uuid7(),
                type=WINDOWS_TOPIC,
                source="usage_tracker",
                timestamp=self._clock.now(),
                data=msgspec.msgpack.encode(data),
            )
        )


def _within(time: timedelta, since: datetime | None, now: datetime) -> bool:
    """Whether so much time has not passed yet; a clock that was set back does not stop it."""
    return since is not None and timedelta(0) <= now - since < time
