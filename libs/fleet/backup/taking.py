"""``mindweave backup``: PostgreSQL at one moment, and the records that it has not counted then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common.errors import Unavailable
from common.events.bus import BACKUPS, Bus, OffsetLost, TopicUnknown, token_of
from common.settings import Settings
from common.telemetry import configure_logs
from fleet.access import ledger_settings
from fleet.backup.fitting import broker_of
from fleet.backup.folder import BackupFailed, BackupFolder, Manifest, Writer, fingerprint, name_of
from fleet.backup.ledger import READERS, Ledger, is_read, opened, told
from fleet.backup.postgres import copy_of
from fleet.backup.reading import read_up_to
from services.analytics.consumer import TOPIC as WINDOWS
from services.usage_tracker.domain.layout import State
from services.usage_tracker.domain.records import EVENTS_TOPIC as EVENTS
from services.usage_tracker.store import LayoutStore

# Records of one fetch, and seconds that it waits for one.
_MOST = 500
_WAIT = 0.5


def take_backup(path: Path, data: Path, tell: Callable[[str], None]) -> None:
    """Back up the platform that the settings name, or that runs in the data folder.

    Args:
        path: a folder that is empty or not there.
        data: the folder of a platform.
        tell: is told what was done.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        BackupFailed: it could not be made, or the number of partitions is being changed.
        Unavailable: the database or the broker is.
        SettingsError: a setting is wrong.
    """
    configure_logs("warning")
    asyncio.run(_take(BackupFolder(path), ledger_settings(data), tell))


async def _take(folder: BackupFolder, settings: Settings, tell: Callable[[str], None]) -> None:
    if settings.database_url is None:
        raise BackupFailed(
            "DATABASE_URL is not set: copy each server by its own means,"
            " and after a restore run `mindweave rejoin`"
        )
    began_at = datetime.now(UTC)
    async with opened(settings) as ledger:
        await _settled(ledger)
        folder.make()
        topics = await _topics(ledger.bus)
        held = await _hold(ledger.bus, topics)
        try:
            starts = await _starts(ledger)
            records = await _record(folder, ledger.bus, topics, starts, settings.database_url)
            await _settled(ledger)
        finally:
            # What is kept in vain goes where the broker needs the room.
            with suppress(Unavailable):
                for topic in held:
                    await ledger.bus.forget(topic, BACKUPS)
        folder.finish(
            Manifest(
                version=version("mindweave"),
                broker=broker_of(settings),
                began_at=began_at,
                ended_at=datetime.now(UTC),
                secret=fingerprint(settings.secret),
                topics=topics,
                starts=starts,
                records=records,
            )
        )
        # From here on the broker need not keep what only the backup before would ask for.
        for part in range(topics[EVENTS]):
            place = starts.get(name_of(EVENTS, part))
            if place is not None:
                await ledger.bus.commit(EVENTS, part, BACKUPS, token_of(place))
    size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    seconds = (datetime.now(UTC) - began_at).total_seconds()
    tell(f"{folder.path}: {size / 1e6:,.1f} MB in {seconds:.1f} s")


async def _settled(ledger: Ledger) -> None:
    """See that no rows are on their way from one partition to another.

    Raises:
        BackupFailed: the number of partitions is being changed.
    """
    layout = await LayoutStore(ledger.tracker).read()
    if layout is not None and layout.state is not State.OPEN:
        raise BackupFailed("the number of partitions is being changed: back up afterwards")


async def _topics(bus: Bus) -> dict[str, int]:
    """The topics that are there, with their partitions."""
    found = {}
    for topic in (*READERS, *told()):
        with suppress(TopicUnknown):
            found[topic] = await bus.partitions(topic)
    return found


async def _hold(bus: Bus, topics: Mapping[str, int]) -> list[str]:
    """Let the broker keep what comes; returns the topics of which that is for the backup alone.

    What the ledger has yet to count is kept on, so that it can be counted again: until the next
    backup, or until the broker needs the room.
    """
    read = [topic for topic in topics if topic in READERS or is_read(topic, topics)]
    for topic in read:
        await bus.declare(topic, topics[topic], [BACKUPS])
    return [topic for topic in read if topic != EVENTS]


async def _starts(ledger: Ledger) -> dict[str, str | None]:
    """Where the ledger is in each partition: no later than in the copy that is made from now on."""
    return {
        name_of(places.topic, part): stored.place
        for places in (ledger.events, ledger.windows)
        for part, stored in (await places.read()).items()
    }


async def _record(
    folder: BackupFolder,
    bus: Bus,
    topics: Mapping[str, int],
    starts: Mapping[str, str | None],
    dsn: str,
) -> dict[str, int]:
    """Copy PostgreSQL and record what is published from before until after its moment."""
    copied = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            recording = {
                name_of(topic, part): group.create_task(
                    _record_partition(
                        folder.writer(topic, part),
                        bus,
                        (topic, part),
                        starts.get(name_of(topic, part)),
                        copied,
                    )
                )
                for topic, count in topics.items()
                for part in range(count)
            }
            await copy_of(dsn, folder.postgres)
            copied.set()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return {name: task.result() for name, task in recording.items()}


async def _record_partition(
    writer: Writer, bus: Bus, where: tuple[str, int], after: str | None, copied: asyncio.Event
) -> int:
    """Record what follows a place, up to what was there when the copy had been made."""
    topic, part = where
    try:
        while not copied.is_set():
            records = await bus.fetch(topic, part, after, max_records=_MOST, wait=_WAIT)
            for record in records:
                writer.write(record)
                after = record.place
            if records and topic == WINDOWS:
                await bus.commit(topic, part, BACKUPS, records[-1].token)
        end = await bus.end(topic, part)
        # What was told goes once it was read; so does what the ledger has yet to begin with.
        trimmed = topic not in READERS or after is None
        async for records in read_up_to(end, bus, topic, part, after, trimmed=trimmed):
            for record in records:
                writer.write(record)
    except OffsetLost as error:
        raise BackupFailed(f"{error}: try again") from error
    finally:
        writer.close()
    return writer.count
