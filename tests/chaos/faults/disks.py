"""Full disks under PostgreSQL and under a broker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from tests.chaos.brokers import COUNT
from tests.chaos.disk import Disk
from tests.chaos.faults.hitting import Log, NotRun, shown, until
from tests.chaos.scene import Scene

_SAYS = "No space left on device"
# A broker whose log is a mapped file learns of it so.
_FAULTS = (_SAYS, "unsafe memory access", "SIGBUS", "Shutdown broker")
_FULL = 3.0
# Longer than a start is tried for.
_LONG = 15.0


@asynccontextmanager
async def _full(disk: Disk) -> AsyncIterator[str]:
    if not disk.own:
        raise NotRun("no file system may be mounted here")
    try:
        yield await asyncio.to_thread(disk.fill)
    finally:
        disk.empty()


async def fill_postgres(scene: Scene) -> str:
    """Also its log of writes: a file of it is ended, so that a new one is needed."""
    log = Log(scene.platform.data / "postgres.log")
    await scene.under_load()
    async with _full(scene.disks["postgres"]) as said:
        await _need_space(scene)
        await until(lambda: log.has(_SAYS), "PostgreSQL notices that the disk is full")
        await asyncio.sleep(_FULL)
    panics, refusals = log.count("PANIC"), log.count(_SAYS)
    return shown(refusals, f"{said}: PostgreSQL said so {refusals} times, with {panics} PANIC")


async def kill_postgres_on_a_full_disk(scene: Scene) -> str:
    """It has to start, and perhaps cannot, where there is no space."""
    log, pid = Log(scene.platform.data / "postgres.log"), await scene.pid("postgres")
    await scene.under_load()
    async with _full(scene.disks["postgres"]) as said:
        os.kill(pid, signal.SIGKILL)
        await until(lambda: log.has(_SAYS), "PostgreSQL notices that the disk is full")
        await asyncio.sleep(_LONG)

    async def is_another() -> bool:
        return await scene.pid("postgres") not in (0, pid)

    await until(is_another, "another in place of PostgreSQL")
    refusals = log.count(_SAYS)
    return f"{said}: {pid} → {await scene.pid('postgres')}, PostgreSQL said so {refusals} times"


async def _need_space(scene: Scene) -> None:
    """Ended as soon as the server is."""
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        async with scene.tables.connected() as connection:
            for _ in range(10):
                await connection.execute("SELECT pg_switch_wal()")
                await connection.execute("SELECT pg_logical_emit_message(true, 'full', 'disk')")


async def fill_valkey(scene: Scene) -> str:
    """Where it carries the events: it ends rather than take what it cannot keep."""
    pid = await scene.pid("broker")
    await scene.under_load()
    async with _full(scene.disks["broker"]) as said:
        retries = scene.retries
        await until(lambda: scene.retries > retries + 5, "events are not taken any more")
        await asyncio.sleep(_FULL)
        ended = await scene.pid("broker") != pid
    return f"{said}: {'it ended' if ended else 'it took nothing'}, requests went again"


async def fill_broker(scene: Scene) -> str:
    broker = COUNT - 1
    pid = scene.brokers.pid(broker)
    log = Log(scene.brokers.brokers[broker].folder.parent / "kafka.log")
    await scene.under_load()
    async with _full(scene.disks["broker"]) as said:
        await until(
            lambda: log.has(*_FAULTS) or scene.brokers.pid(broker) != pid,
            "the broker notices that its disk is full",
        )
        await asyncio.sleep(_FULL)
        ended = scene.brokers.pid(broker) != pid
        before = scene.acknowledged
        await until(lambda: scene.acknowledged > before, "the other brokers acknowledge events")
    return f"{said}: broker {broker + 1} {'ended' if ended else 'refused writes'}"
