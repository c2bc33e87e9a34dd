"""``mindweave rejoin``: databases of an earlier moment, and a broker that has gone on since.

Records on ``usage.events`` are what was accepted: they are counted again from the places that the
databases hold. Those on ``usage.windows`` are what was made of them, by a ledger that is gone as
far as its numbers are beyond those of the restored one, which gives these numbers to other deltas.
So analytics is brought up to the restored ledger here, and what lies in the broker is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from common.errors import NotReady
from common.events.bus import Bus, OffsetLost, Outgoing, TopicUnknown
from common.events.envelope import unpack
from common.events.ledger import LEASE, Fenced, Places, Stored
from common.settings import Settings
from common.telemetry import configure_logs
from fleet.access import ledger_settings
from fleet.backup.fitting import require_fit, require_same_broker
from fleet.backup.folder import BackupFailed, BackupFolder, Kept, name_of
from fleet.backup.ledger import READERS, Ledger, is_read, opened, told
from fleet.backup.reading import read_up_to
from services.analytics.consumer import TOPIC as WINDOWS
from services.analytics.domain.windows import Windows
from services.analytics.store import RollupStore
from services.usage_tracker.domain.layout import State
from services.usage_tracker.domain.records import EVENTS_TOPIC as EVENTS
from services.usage_tracker.store import BlockStore, LayoutStore, UsageStore

_MOST = 200
_LOOK_SECONDS = 0.5

T = TypeVar("T")


def rejoin_given(
    path: Path | None, data: Path, *, accept_loss: bool, tell: Callable[[str], None]
) -> None:
    """Join databases that were restored by other means to the broker; no service may run.

    Args:
        path: of a backup, where there is one.
        data: the folder of a platform whose secret is meant, where no other is set.
        accept_loss: go on where the broker has lost records that are not counted.
        tell: is told what was done.

    Raises:
        NotRunning: no servers are named.
        NotReady: services run.
        BackupFailed: the databases, the broker and the backup do not fit.
    """
    configure_logs("warning")
    settings = ledger_settings(data)
    backup = BackupFolder(path) if path is not None else None
    if backup is not None:
        require_fit(backup.manifest(), settings, f"{data}/secret")
        require_same_broker(backup.manifest(), settings)
    asyncio.run(rejoin(settings, backup, accept_loss=accept_loss, tell=tell))


async def rejoin(
    settings: Settings,
    backup: BackupFolder | None,
    *,
    accept_loss: bool,
    tell: Callable[[str], None],
) -> None:
    """As ``rejoin_given``. It may be run again, and must be where it was ended while it wrote."""
    async with opened(settings) as ledger:
        partitions = await _partitions(ledger, backup)
        held = await _hold(ledger, partitions, settings.windows_partitions)
        try:
            numbers = await UsageStore(ledger.tracker).last_numbers()
            await _require_older(ledger, numbers)
            if backup is None and (lost := await _gone(ledger.bus, ledger.windows)):
                raise BackupFailed(
                    f"{'; '.join(lost.values())}, and no backup is given that has recorded it"
                )
            gone = await _gone(ledger.bus, ledger.events)
            if gone and not accept_loss:
                raise BackupFailed(
                    f"{'; '.join(gone.values())}: --accept-loss counts what the backup has"
                    " recorded, and then what the broker has"
                )
        except BaseException:
            await held.release(ledger)
            raise
        absent = await _declare(ledger.bus, backup)
        try:
            passed = {}
            for part, epoch in held.windows.items():
                count, passed[part] = await _bring_up(ledger, backup, part, epoch, numbers)
                tell(f"{name_of(WINDOWS, part)}: {count} deltas were applied")
            await _require_all_sent(ledger)
            for part, why in gone.items():
                count = await _count_again(ledger, backup, part, held.events[part])
                tell(f"{why}; {count} records of the backup were published again")
            for part, place in passed.items():
                await ledger.windows.put(part, held.windows[part], place)
        except Fenced as error:
            raise BackupFailed(f"{error}: another `mindweave rejoin` runs") from error
        count = await _tell_again(ledger.bus, backup, absent)
        tell(f"{count} records of other topics were published again")
        await held.release(ledger)


@dataclass(frozen=True, slots=True)
class Held:
    """Our epochs of the partitions of both topics."""

    events: Mapping[int, int]
    windows: Mapping[int, int]

    async def release(self, ledger: Ledger) -> None:
        await ledger.events.release(self.events)
        await ledger.windows.release(self.windows)


async def _partitions(ledger: Ledger, backup: BackupFolder | None) -> int:
    """The ledger's own number of partitions of ``usage.events``, which is the broker's, too.

    Raises:
        BackupFailed: it is not, or is being changed.
    """
    layout = await LayoutStore(ledger.tracker).read()
    if layout is None:
        return max(await ledger.events.read(), default=-1) + 1
    if layout.state is not State.OPEN:
        raise BackupFailed("the databases are of a moment at which partitions were changed")
    there: dict[str, int | None] = {}
    if backup is not None:
        there["the backup"] = backup.manifest().topics.get(EVENTS)
    with suppress(TopicUnknown):
        there["the broker"] = await ledger.bus.partitions(EVENTS)
    for where, count in there.items():
        if count not in (None, layout.partitions):
            raise BackupFailed(
                f"{EVENTS} has {count} partitions in {where} and {layout.partitions} in the"
                " databases: restore what was backed up after `mindweave partitions`"
            )
    return layout.partitions


async def _hold(ledger: Ledger, events: int, windows: int) -> Held:
    """Keep every worker from the partitions, those that start meanwhile as well.

    Raises:
        NotReady: workers run.
    """
    now = asyncio.get_running_loop().time
    give_up = now() + 2 * LEASE
    # Leases in a copy that is seconds old are over soon, those of workers are renewed.
    while True:
        if (first := await ledger.events.hold(events)) is not None:
            if (second := await ledger.windows.hold(windows)) is not None:
                return Held(first, second)
            await ledger.events.release(first)
        if now() > give_up:
            raise NotReady("usage_tracker or analytics runs: end all services first")
        await asyncio.sleep(_LOOK_SECONDS)


async def _require_older(ledger: Ledger, numbers: Mapping[int, int]) -> None:
    """See that analytics has applied nothing that the ledger lacks.

    Raises:
        BackupFailed: it has.
    """
    for source, number in (await RollupStore(ledger.analytics).applied()).items():
        if number > numbers.get(source, 0):
            raise BackupFailed(
                f"analytics has applied delta {number} of part {source}, and usage_tracker has"
                f" {numbers.get(source, 0)}: restore analytics to that moment or an earlier one"
            )


async def _require_all_sent(ledger: Ledger) -> None:
    """See that analytics has applied what the ledger has sent and will not send again.

    Raises:
        BackupFailed: it has not.
    """
    applied = await RollupStore(ledger.analytics).applied()
    for source, number in (await BlockStore(ledger.tracker).sent()).items():
        if applied.get(source, 0) < number:
            raise BackupFailed(
                f"usage_tracker has sent delta {number} of part {source}, and analytics comes to"
                f" {applied.get(source, 0)}: neither the broker nor a backup that was given has"
                " what is between; restore analytics to a later moment"
            )


async def _gone(bus: Bus, places: Places) -> dict[int, str]:
    """By partition, why it cannot be read on from its place."""
    found = {}
    for part, stored in (await places.read()).items():
        why = await _why_not(bus, places.topic, part, stored)
        if why:
            found[part] = why
    return found


async def _why_not(bus: Bus, topic: str, part: int, stored: Stored) -> str:
    if stored.birth is None:
        return ""
    try:
        if await bus.birth(topic, part) != stored.birth:
            return f"{name_of(topic, part)}: the broker has another stream"
        if stored.place is not None:
            await bus.fetch(topic, part, stored.place, max_records=1, wait=0)
    except TopicUnknown:
        return f"{name_of(topic, part)}: the broker has no such topic"
    except OffsetLost as error:
        return str(error)
    return ""


async def _declare(bus: Bus, backup: BackupFolder | None) -> list[str]:
    """Make the backup's topics where they are not there; returns those."""
    absent = []
    for topic, count in (backup.manifest().topics if backup is not None else {}).items():
        try:
            await bus.partitions(topic)
        except TopicUnknown:
            await bus.declare(topic, count, [READERS[topic]] if topic in READERS else ())
            absent.append(topic)
    return absent


async def _count_again(ledger: Ledger, backup: BackupFolder | None, part: int, epoch: int) -> int:
    """Publish what the backup has recorded, and have all that is there counted; repeats are known.

    Returns:
        Records that were published.
    """
    place = (await ledger.events.read())[part].place
    kept = backup.beyond(EVENTS, part, place) if backup is not None else ()
    count = await _publish(ledger.bus, EVENTS, part, kept)
    await ledger.events.put(part, epoch, Stored(None, None))
    return count


async def _bring_up(
    ledger: Ledger,
    backup: BackupFolder | None,
    part: int,
    epoch: int,
    numbers: Mapping[int, int],
) -> tuple[int, Stored]:
    """Apply windows up to the ledger's own numbers, from where analytics is and without a gap.

    Returns:
        Deltas that were applied, and the place behind all that is in the broker.
    """
    bus, store = ledger.bus, RollupStore(ledger.analytics)
    stored = (await ledger.windows.read()).get(part, Stored(None, None))
    why = await _why_not(bus, WINDOWS, part, stored)
    count = 0

    async def apply(values: Sequence[bytes]) -> int:
        records = [_deltas(value) for value in values]
        async with ledger.analytics.session() as connection, connection.transaction():
            await ledger.windows.check(connection, part, epoch)
            appended = await store.append(connection, part, records, numbers)
        store.remember(appended)
        return appended.rows

    # A place before the first record tells of no broker: it may be another one by now.
    if backup is not None and (why or (stored.place is None and backup.is_first(WINDOWS, part))):
        for kept in _in_groups(backup.beyond(WINDOWS, part, stored.place)):
            count += await apply([record.value for record in kept])
    passed = Stored(None, None)
    # Where there is no such topic, the first start makes it.
    with suppress(TopicUnknown):
        end = await bus.end(WINDOWS, part)
        passed = Stored(end, await bus.birth(WINDOWS, part))
        if not why:
            async for records in read_up_to(end, bus, WINDOWS, part, stored.place):
                count += await apply([record.value for record in records])
    return count, passed


def _deltas(value: bytes) -> Windows:
    """Without watermarks: they are of what was counted, and not of what is counted again."""
    return replace(unpack(value, Windows)[1], watermarks={}, sources=None)


async def _tell_again(bus: Bus, backup: BackupFolder | None, absent: Sequence[str]) -> int:
    """Publish what was told, to consumers that may have forgotten it; they know what they know.

    Returns:
        Records that were published.
    """
    count = 0
    topics = told()
    for topic in topics:
        try:
            parts = range(await bus.partitions(topic))
        except TopicUnknown:
            continue
        if topic not in absent and not is_read(topic, topics):
            continue
        for part in parts:
            if backup is not None:
                count += await _publish(bus, topic, part, backup.records(topic, part))
                continue
            end = await bus.end(topic, part)
            async for records in read_up_to(end, bus, topic, part, None, trimmed=True):
                kept = [Kept(r.token, r.key, r.value, dict(r.headers)) for r in records]
                count += await _publish(bus, topic, part, kept)
    return count


async def _publish(bus: Bus, topic: str, part: int, kept: Iterable[Kept]) -> int:
    count = 0
    for some in _in_groups(kept):
        outgoing = [Outgoing(r.value, r.key, part, r.headers) for r in some]
        count += len(await bus.publish(topic, outgoing))
    return count


def _in_groups(items: Iterable[T]) -> Iterator[list[T]]:
    each = iter(items)
    while some := list(islice(each, _MOST)):
        yield some
