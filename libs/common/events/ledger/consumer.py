"""The consumer: takes partitions, watches its leases, keeps their watermarks."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from datetime import datetime
from time import monotonic

from common.background import PartStatus
from common.clock import Clock
from common.database import Database
from common.errors import Unavailable
from common.events.bus import Backoff, Bus, BusUnavailable, TopicMismatch, TopicUnknown
from common.events.delivery import lag_gauge
from common.events.ledger.members import Members, share_of
from common.events.ledger.offsets import LEASE, Offsets
from common.events.ledger.tenure import After, Apply, Chores, PartHook, Tenure, Work
from common.events.worker import cut

# Seconds that a batch gets to finish when its partition is given back.
_GRACE = 10.0
# Seconds between two looks at partitions of one's share that another still holds.
_ASK_EVERY = 0.5
# Seconds between two readings of the lag while there is some.
_MEASURE_EVERY = 0.25
# Seconds between two hints to the broker of how far a partition is: what is applied and not told
# counts as lag to whoever asks the broker.
_HINT_EVERY = 0.25
_RETRY = Backoff(first=0.2, limit=2.0)

_logger = logging.getLogger(__name__)


class PartitionConsumer:
    """Applies the records of a topic, each exactly once, a partition by one owner at a time.

    All consumers of the topic share its partitions evenly. One that is there anew is given its
    share as soon as the others have finished the batches at hand; that of one that died, or
    stands still, is taken when its lease is over.

    ``apply`` gets a connection inside of a transaction, the partition and a batch in order; its
    effects and the partition's new place commit together. It may run again for the same records
    when that transaction failed, so what it keeps in memory belongs into ``after``, which runs
    once the batch has committed, with what ``apply`` returned. ``on_take`` runs when a partition
    was taken, before its first batch.

    An error that may pass is tried again for ever. Another birth id of the stream, records that
    are gone, ``RecordRefused`` and the same unexpected error five times in a row stop the
    partition: nothing is skipped, and ``status`` is not ready until people have looked and the
    process starts anew. It is not live where records wait, none of them comes and nothing fails.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        db: Database,
        topic: str,
        group: str,
        owner: str,
        apply: Apply,
        after: After | None = None,
        on_take: PartHook | None = None,
        clock: Clock | None = None,
        max_records: int = 64,
        gather: float = 0.1,
        lease: float = LEASE,
        cadence: float = 0.1,
        stall: float = 30.0,
        backoff: Backoff | None = None,
        partitions: int | None = None,
        chores: Chores | None = None,
        at_once: int | None = None,
    ) -> None:
        """Takes nothing before ``start``.

        Args:
            bus: where the topic is.
            db: where the effects go; its table ``offsets`` keeps the places.
            topic: the topic; whoever declares it says how many partitions it has.
            group: whom the broker keeps records for.
            owner: names this process; the same name takes its partitions back at once.
            apply: see above.
            after: see above.
            on_take: see above.
            clock: for watermarks; the database's when absent.
            max_records: in a batch.
            gather: seconds from the beginning of a batch to that of the next, unless it was full:
                what a transaction costs by itself is paid so many times a second at most.
            lease: seconds after which a dead owner's partitions are taken.
            cadence: seconds between two looks at the partitions' ends.
            stall: seconds after which it is a fault that records wait and none comes.
            backoff: between attempts after an error.
            partitions: how many the topic must have; None works with as many as it has.
            chores: what else is done with a partition that is held.
            at_once: partitions whose batches are applied at the same time; None is all.
        """
        self.name = f"{group} of {topic}"
        self._bus = bus
        self._topic = topic
        self._group = group
        self._clock = clock or db.clock
        self._lease = lease
        self._cadence = cadence
        self._stall = stall
        self._owner = owner
        self._wanted = partitions
        self._offsets = Offsets(db, topic=topic, owner=owner, lease=lease)
        self._members = Members(db, topic=topic, owner=owner, lease=lease)
        self._work = Work(
            bus=bus,
            db=db,
            offsets=self._offsets,
            topic=topic,
            group=group,
            apply=apply,
            after=after,
            on_take=on_take,
            max_records=max_records,
            gather=gather,
            backoff=backoff or _RETRY,
            chores=chores,
            turn=nullcontext() if at_once is None else asyncio.Semaphore(at_once),
        )
        self._parts = 0
        self._share: frozenset[int] = frozenset()
        self._tenures: dict[int, Tenure] = {}
        self._stopped: dict[int, str] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._trouble = "not started"
        self._lag: int | None = None
        self._measured = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._lag_gauge = lag_gauge(db.telemetry).of(topic=topic, group=group)
        self._stop_gauge = db.telemetry.gauge(
            "mindweave_partition_stopped",
            "1 for a partition that waits for people to look at it.",
            ["topic", "partition"],
        )

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._hold_for_ever(), name=f"{self.name} leases"),
            asyncio.create_task(self._look_for_ever(), name=f"{self.name} watermarks"),
        ]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*(t.worker.end(_GRACE) for t in self._tenures.values()))
        await asyncio.gather(*self._leaving)
        await cut(*self._tasks)
        try:
            await self._offsets.release(range(self._parts))
            await self._members.leave()
        except Unavailable as error:
            _logger.info("%s: its leases run out by themselves: %s", self.name, error)
        try:
            await asyncio.gather(*(tenure.hint() for tenure in self._tenures.values()))
        except Unavailable as error:
            _logger.info("%s: the broker keeps what is applied: %s", self.name, error)

    def held(self) -> list[int]:
        """The partitions that this process works on."""
        return sorted(part for part, t in self._tenures.items() if t.worker.running)

    def caught_up_at(self, part: int) -> datetime | None:
        """A time before which everything published to the partition is applied.

        None while that is not known, and where the partition is another's.
        """
        tenure = self._tenures.get(part)
        return tenure.caught_up_at if tenure is not None and tenure.worker.running else None

    def status(self) -> PartStatus:
        ended = any(task.done() for task in self._tasks)
        stalled = self._stalled()
        troubles = [stalled, *self._stopped.values(), self._trouble]
        troubles += [tenure.trouble for tenure in self._tenures.values()]
        trouble = "; ".join(t for t in troubles if t)
        return PartStatus(
            ready=not (trouble or ended),
            detail=trouble or f"works on {len(self.held())} of {self._parts} partitions",
            lag=self._lag,
            live=not (stalled or ended),
        )

    def _stalled(self) -> str:
        still = sorted(p for p, t in self._tenures.items() if t.still_for() > self._stall)
        if not still:
            return ""
        named = ", ".join(f"{self._topic}/{part}" for part in still)
        return f"{named}: records wait, and none has come for {self._stall:g} s"

    async def _hold_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                await self._hold()
            except Exception as error:
                if not isinstance(error, Unavailable | TopicUnknown | TopicMismatch):
                    _logger.exception("%s cannot hold its partitions", self.name)
                failures += 1
                self._trouble = f"{type(error).__name__}: {error}"
                # What is held is renewed in time, whatever else cannot be done.
                await asyncio.sleep(min(_RETRY.delay(failures), self._lease / 3))
            else:
                failures, self._trouble = 0, ""
                lacks = self._share - self._tenures.keys() - self._stopped.keys()
                await self._rest(min(self._lease / 3, _ASK_EVERY if lacks else self._lease))

    async def _hold(self) -> None:
        """Renew what is held, give up what was lost or is another's share, take what is free."""
        await self._renew()
        if self._stopping:
            return
        try:
            await self._learn_partitions()
        except BusUnavailable:
            await self._make_way()
            raise
        # Only who could work is counted, so that no share is one that nobody works on.
        members = await self._members.join()
        self._share = share_of(self._owner, members, self._parts)
        self._give_back_all_but(self._share)
        for part in self._stopped.keys() - self._share:
            self._forget_stop(part)
        lacking = self._share - self._tenures.keys() - self._stopped.keys()
        for part in await self._offsets.free(lacking) if lacking else ():
            await self._take(part)

    async def _renew(self) -> None:
        for part, tenure in list(self._tenures.items()):
            if not tenure.worker.running:
                self._end(part, tenure)
        began, renewed = monotonic(), 0
        failure: Unavailable | None = None
        # Each by itself: where partitions lie on several nodes, one that is away keeps no other.
        for part, tenure in list(self._tenures.items()):
            until = monotonic() + self._lease
            try:
                epoch = await self._offsets.renew(part)
            except Unavailable as error:
                failure = error
                if monotonic() - began > self._lease / 3:
                    break
                continue
            renewed += 1
            if epoch == tenure.epoch:
                tenure.held_until = until
            else:
                _logger.warning("%s/%d is another's now", self._topic, part)
                await tenure.worker.cut()
                self._end(part, tenure)
        if failure is not None and not renewed:
            raise failure

    async def _learn_partitions(self) -> None:
        """How many there are may change while everybody's epochs are over.

        Raises:
            TopicMismatch: they are not as many as they must be.
        """
        count = await self._bus.partitions(self._topic)
        if self._wanted not in (None, count):
            raise TopicMismatch(f"{self._topic} has {count} partitions, not {self._wanted}")
        if count != self._parts:
            if self._parts:
                _logger.warning("%s has %d partitions now", self._topic, count)
            await self._bus.declare(self._topic, count, [self._group])
            self._parts = count
            for part in list(self._stopped):
                self._forget_stop(part)

    async def _make_way(self) -> None:
        """Leave it to others whom the broker answers, where it has not answered here for long.

        Where it answers nobody, nobody has joined for two leases and so is a member; then what is
        held stays, since whoever takes a partition has to prepare it anew.
        """
        held = self._tenures.values()
        cut_off = held and min(t.cut_off_for() for t in held) > 2 * self._lease
        if cut_off and await self._members.others():
            self._give_back_all_but(frozenset())

    def _give_back_all_but(self, share: frozenset[int]) -> None:
        for part, tenure in self._tenures.items():
            if part not in share and not tenure.worker.ending:
                leaving = asyncio.create_task(self._give_back(part, tenure))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _give_back(self, part: int, tenure: Tenure) -> None:
        _logger.info("%s/%d is another's share now", self._topic, part)
        await tenure.worker.end(_GRACE)
        self._end(part, tenure)
        try:
            await self._offsets.give_back(part, tenure.epoch)
            await tenure.hint()
        except Unavailable as error:
            _logger.info("%s/%d: its lease runs out by itself: %s", self._topic, part, error)

    async def _take(self, part: int) -> None:
        birth = await self._bus.birth(self._topic, part)
        until = monotonic() + self._lease
        holding = await self._offsets.take(part, birth)
        if holding is not None and not self._stopping:
            tenure = Tenure(self._work, part, holding, until)
            self._tenures[part] = tenure
            tenure.worker.start(tenure.run(), ended=self._wake.set)

    def _end(self, part: int, tenure: Tenure) -> None:
        if self._tenures.get(part) is not tenure:
            return
        del self._tenures[part]
        if tenure.worker.failure is not None:
            _logger.error("%s/%d ended", self._topic, part, exc_info=tenure.worker.failure)
        if tenure.stopped is not None:
            self._stopped[part] = tenure.stopped
            self._stop_gauge.of(topic=self._topic, partition=str(part)).set(1)

    def _forget_stop(self, part: int) -> None:
        """Another has it now, or it is another stream: what stopped it may not be there."""
        del self._stopped[part]
        self._stop_gauge.of(topic=self._topic, partition=str(part)).set(0)

    async def _rest(self, seconds: float) -> None:
        """Sleep, or a moment only where a partition was lost."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(_RETRY.first)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._cadence)
            running = [t for t in self._tenures.values() if t.worker.running]
            caught_up = await asyncio.gather(*(self._look(tenure) for tenure in running))
            mine = self._parts > 0 and self._share == {tenure.part for tenure in running}
            await self._measure(mine and all(caught_up))

    async def _look(self, tenure: Tenure) -> bool:
        try:
            caught_up = await tenure.look(self._clock.now())
            await tenure.hint(_HINT_EVERY)
        except Unavailable as error:
            _logger.debug("%s/%d: no look at it: %s", self._topic, tenure.part, error)
            return False
        except Exception:
            _logger.exception("%s/%d cannot be looked at", self._topic, tenure.part)
            return False
        return caught_up

    async def _measure(self, caught_up: bool) -> None:
        if caught_up:
            self._lag = 0
        elif self._parts and monotonic() - self._measured > _MEASURE_EVERY:
            self._measured = monotonic()
            try:
                self._lag = await self._bus.lag(self._topic, self._group)
            except (Unavailable, TopicUnknown):
                return
            except Exception:
                _logger.exception("%s: its lag is not known", self.name)
                return
        self._lag_gauge.set(self._lag or 0)
