"""What broker and database take of our records alone: events a second, and CPU on both sides.

``uv run python -m bench.limits [--events N] [--stored N]`` runs one server after the other, each
with the platform's own settings, and one client that waits for each answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import asyncpg
import msgspec
import numpy as np
import uvloop

import services.analytics
import services.usage_tracker
from bench.stages import PARTITIONS, records_of, settled_of
from common.clock import SystemClock
from common.database import Database, bootstrap, migrate
from common.database.copying import copy_rows
from common.events.bus import Outgoing
from common.events.drivers import bus_for
from common.events.envelope import PACKED_HEADERS
from common.settings import Settings, load_settings
from common.testing import sealer_of, silent_telemetry
from fleet.embedded import Kafka, Postgres, Valkey
from fleet.embedded.daemon import Daemon
from services.analytics.domain.windows import Windows
from services.analytics.store import RollupStore
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.records import EVENTS_TOPIC, windows_data
from services.usage_tracker.domain.sessions import session_deltas_of
from services.usage_tracker.domain.settling import Settled
from services.usage_tracker.store import BlockStore, UsageStore, days_around
from services.usage_tracker.store.blocks import keep
from services.usage_tracker.store.rows import EVENT_COLUMNS, ID_COLUMNS, event_rows, id_rows
from services.usage_tracker.store.sessions import SessionStore, append_session_deltas

ROUNDS = 7
BATCH = 1000
SECRET = "of a benchmark, longer than needed"
Step = Callable[[int], Awaitable[object]]


@dataclass
class Limits:
    """Steps of one server, each of so many events."""

    server: Daemon
    events: int
    found: dict[str, dict[str, float]] = field(default_factory=dict)

    async def run(self, name: str, step: Step) -> None:
        """The medians over some rounds, of which each is handed its number."""
        took, ours, theirs = [], [], []
        for number in range(ROUNDS):
            before, began = self._server_seconds(), time.perf_counter()
            cpu = time.process_time()
            await step(number)
            took.append((time.perf_counter() - began) / self.events)
            ours.append((time.process_time() - cpu) / self.events)
            theirs.append((self._server_seconds() - before) / self.events)
        seconds, client, server = map(statistics.median, (took, ours, theirs))
        self.found[name] = {
            "events_per_s": round(1 / seconds),
            "server_us": round(server * 1e6, 2),
            "client_us": round(client * 1e6, 2),
        }
        spread = f"{1 / max(took):9.0f} to {1 / min(took):9.0f}"
        print(
            f"{1 / seconds:9.0f}/s ({spread})  server {server * 1e6:6.2f} µs"
            f"  client {client * 1e6:6.2f} µs  {name}",
            flush=True,
        )

    def _server_seconds(self) -> float:
        process = self.server.process
        if process is None:
            raise RuntimeError(f"{self.server.name} has ended")
        family = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)


async def of_broker(server: Kafka | Valkey, settings: Settings, events: int) -> Limits:
    bus = bus_for(settings, telemetry=silent_telemetry())
    limits = Limits(server, events)
    packed = [
        Outgoing(v, partition=p, headers=PACKED_HEADERS) for p, v in records_of(events, BATCH)
    ]
    await bus.start()
    await bus.declare(EVENTS_TOPIC, PARTITIONS)

    async def publish(_: int) -> None:
        for start in range(0, len(packed), PARTITIONS):
            await bus.publish(EVENTS_TOPIC, packed[start : start + PARTITIONS])

    await limits.run(f"{bus.name}: publish, {BATCH} events a request", publish)
    await bus.stop()
    return limits


async def of_database(server: Postgres, settings: Settings, events: int, stored: int) -> Limits:
    limits = Limits(server, events)
    tracker = await _opened(settings, "usage_tracker", services.usage_tracker.__path__[0])
    await UsageStore(tracker).prepare_days(days_around(datetime.now(UTC)))
    if stored:
        await _store_identities(server, stored)
    batches = [settled_of(events) for _ in range(ROUNDS)]

    async def rows(number: int, kinds: Sequence[str]) -> None:
        settled = batches[number]
        made = {
            "event_ids": (ID_COLUMNS, lambda: id_rows(0, settled.accepted)),
            "events": (EVENT_COLUMNS, lambda: event_rows(0, settled)),
        }
        async with tracker.session() as connection, connection.transaction():
            for kind in kinds:
                columns, rows_of = made[kind]
                await copy_rows(connection, kind, columns, rows_of())

    print(f"{len(batches[0].deltas) / events:.2f} deltas an event")
    for kinds in (["event_ids"], ["events"]):
        await limits.run(f"PostgreSQL: rows of {kinds[0]}", lambda n, k=kinds: rows(n, k))

    async def blocks(number: int) -> None:
        settled = batches[number]
        async with tracker.session() as connection, connection.transaction():
            await keep(connection, 0, Numbered(_first(number, settled) + 1, settled.deltas))

    async def add_up(number: int) -> None:
        await blocks(number)
        await tracker_blocks.add_up(0, 2**60)

    tracker_blocks = BlockStore(tracker)
    await limits.run("PostgreSQL: deltas as blocks", blocks)
    async with tracker.session() as connection:
        await connection.execute("DELETE FROM delta_blocks")
        await connection.execute("INSERT INTO relays (part, seq) VALUES (0, 2^60::bigint)")
    await limits.run("PostgreSQL: deltas as blocks, each made rows at once", add_up)
    await _of_sessions(limits, tracker, batches)
    await tracker.close()

    analytics = await _opened(settings, "analytics", services.analytics.__path__[0])
    store = RollupStore(analytics)

    async def append(number: int) -> None:
        windows = _windows(number, batches[number])
        async with analytics.session() as connection, connection.transaction():
            appended = await store.append(connection, 0, [windows])
        store.remember(appended)

    async def roll_up(number: int) -> None:
        await append(ROUNDS + number)
        await store.roll_up(0, later)

    later = datetime.now(UTC) + timedelta(hours=1)
    await limits.run("PostgreSQL: windows of analytics, appended", append)
    await store.roll_up(0, later)
    batches += batches
    await limits.run("PostgreSQL: windows appended and rolled up", roll_up)
    await analytics.close()
    return limits


async def _of_sessions(limits: Limits, db: Database, batches: Sequence[Settled]) -> None:
    store, numbers = SessionStore(db, timedelta(minutes=30)), count()
    async with db.session() as connection:
        await connection.execute("INSERT INTO parts (part) VALUES (0) ON CONFLICT DO NOTHING")

    async def append(number: int) -> None:
        found = session_deltas_of(batches[number].accepted, batches[number].costs)
        async with db.session() as connection, connection.transaction():
            await append_session_deltas(connection, 0, next(numbers), found)

    async def append_and_move(number: int) -> None:
        await append(number)
        for org_id in await store.due(timedelta(0), 0):
            await store.compact(org_id)

    await limits.run("PostgreSQL: deltas of sessions, made and appended", append)
    await append_and_move(0)
    await limits.run("PostgreSQL: the same, and made rows at once", append_and_move)


def _first(number: int, settled: Settled) -> int:
    return number * len(settled.deltas)


def _windows(number: int, settled: Settled) -> Windows:
    deltas = settled.deltas
    first = _first(number, settled) + 1
    columns = deltas.packed(first, np.arange(len(deltas)))
    return msgspec.msgpack.decode(
        msgspec.msgpack.encode(windows_data(0, columns, {})), type=Windows
    )


async def _store_identities(server: Postgres, count: int) -> None:
    admin = await asyncpg.connect(server.admin_dsn, database="usage_tracker")
    await admin.execute(
        """INSERT INTO event_ids
           SELECT 0, gen_random_uuid(), gen_random_uuid(), now(), decode(repeat('00', 16), 'hex')
           FROM generate_series(1, $1)""",
        count,
        timeout=600,
    )
    await admin.execute("CHECKPOINT")
    await admin.close()


async def _opened(settings: Settings, name: str, folder: str) -> Database:
    await bootstrap(str(settings.database_url), name, settings)
    await migrate(settings.owner_dsn(name), name, Path(folder) / "migrations")
    return await Database.open(
        settings.runtime_dsn(name),
        name=name,
        size=4,
        clock=SystemClock(),
        sealer=sealer_of(settings, name),
        telemetry=silent_telemetry(name),
    )


async def measure(folder: Path, wanted: argparse.Namespace) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for server in (Valkey(folder / "valkey", "password", durable=True), Kafka(folder / "kafka")):
        server.start()
        try:
            named = server.access if isinstance(server, Kafka) else {"redis_url": server.url}
            settings = load_settings(secret=SECRET, data=folder, **named)
            found |= (await of_broker(server, settings, wanted.events)).found
        finally:
            server.stop()
    database = Postgres(folder / "postgres", "password")
    database.start()
    try:
        settings = load_settings(secret=SECRET, data=folder, database_url=database.admin_dsn)
        found |= (await of_database(database, settings, wanted.events, wanted.stored)).found
    finally:
        database.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="of a round")
    parser.add_argument("--stored", type=int, default=1_000_000, help="identities there before")
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()}")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(uvloop.run(measure(Path(folder), wanted))))


if __name__ == "__main__":
    main()
