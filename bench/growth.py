"""Cost against load: what grows faster than the load, by partitions, organizations and events.

``uv run python -m bench.growth [--stored N]…`` prints a table for each and ends with one line of
JSON. Rates are of everything on this machine, the generator too; the processor time of an event and
the sizes say more. Stored events, with their windows, are those of ten other organizations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import asyncpg
import uvloop

from bench.ingest import ENVIRONMENT, Run
from bench.load import HttpConnections
from bench.past import store_past
from bench.platform import facts_of
from bench.tenant import Tenant, make_tenants
from common.settings import Settings, load_settings
from fleet.ports import free_port
from fleet.process import Platform

ORGANIZATIONS = 10
# Requests of one organization each, small enough that all of them have their turn.
BATCH = 100
QUERIES = 7
IDLE_SECONDS = 3.0
# Events a second, little enough for every load and a busy machine.
RATE = 2000
WEEK = timedelta(days=7)
# Tables that grow with events, with those that grow with windows.
DATABASES = ("usage_tracker", "analytics")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a load has cost.

    Attributes:
        load: what it was.
        visible_per_s: events a second at full load, until the last was visible.
        cpu_us: processor time of an event at ``RATE``, of all processes but the generator: the
            faster events come, the less each costs.
        database_us: of that, PostgreSQL's.
        idle_ms: processor time of a second in which nothing comes, which is in the others, too.
        windows: deltas of windows for one event.
        bytes_per_event: by which the tables grew.
        query_ms: of a week by the hour and model of one organization.
    """

    load: int
    visible_per_s: int
    cpu_us: float
    database_us: float
    idle_ms: float
    windows: float
    bytes_per_event: int
    query_ms: float

    def __str__(self) -> str:
        return (
            f"{self.load:>11,} {self.visible_per_s:>11,} {self.cpu_us:>9.1f}"
            f" {self.database_us:>12.1f} {self.idle_ms:>9.0f} {self.windows:>10.3f}"
            f" {self.bytes_per_event:>9} {self.query_ms:>9.1f}"
        )


async def cost(run: Run, load: int, seconds: float, asked: Tenant) -> Cost:
    """Send for so long, and see what it costs until all is visible and exact."""
    asked_of = run.tenants[:ORGANIZATIONS]
    full = await run.load(seconds, BATCH)
    await run.fresh(full.accepted_at, asked_of)
    seen = time.time()
    url = facts_of(run.platform)["database_url"]
    idle = await _idle(run, min(seconds, IDLE_SECONDS))
    before, sizes, deltas = run.cpu(), await _bytes(url), await _deltas(url)
    sent = await run.load(seconds, BATCH, RATE)
    await run.fresh(sent.accepted_at, asked_of)
    used = {name: value - before.get(name, 0.0) for name, value in run.cpu().items()}
    grown = await _bytes(url) - sizes
    added = await _deltas(url) - deltas
    await run.visible(sent.accepted_at)
    micros = 1e6 / sent.accepted
    found = Cost(
        load=load,
        visible_per_s=round(full.accepted / (seen - full.began)),
        cpu_us=round(sum(used.values()) * micros, 1),
        database_us=round(micros * sum(v for n, v in used.items() if n.startswith("postgres")), 1),
        idle_ms=round(idle, 1),
        windows=round(added / sent.accepted, 3),
        bytes_per_event=round(grown / sent.accepted),
        query_ms=round(await _query(run, asked), 1),
    )
    print(found, flush=True)
    return found


async def by_partitions(wanted: argparse.Namespace) -> list[Cost]:
    _head("partitions and workers, a process each")
    found = []
    for count in wanted.partitions:
        scale = ("--scale", "usage_tracker:serve=1", "--scale", f"usage_tracker:work={count}")
        with _platform(partitions=count, options=scale, layout="up") as (platform, folder):
            tenants = make_tenants(platform.address, ORGANIZATIONS, 2)
            run = Run(platform, folder, tenants, wanted.connections)
            found.append(await cost(run, count, wanted.seconds, tenants[0]))
    return found


async def by_organizations(wanted: argparse.Namespace) -> list[Cost]:
    _head("organizations")
    found = []
    with _platform() as (platform, folder):
        tenants = make_tenants(platform.address, sum(wanted.organizations), 1)
        for count in wanted.organizations:
            place = folder / str(count)
            place.mkdir()
            run = Run(platform, place, tenants[:count], wanted.connections)
            found.append(await cost(run, count, wanted.seconds, tenants[0]))
            # What was sent to them is not in the books of the next.
            tenants = tenants[count:]
    return found


async def by_stored(
    wanted: argparse.Namespace,
) -> tuple[list[Cost], dict[int, Mapping[str, float]]]:
    _head("stored events")
    found, sizes, told = [], {}, []
    with _platform() as (platform, folder):
        past = make_tenants(platform.address, ORGANIZATIONS, 2)
        tenants = make_tenants(platform.address, ORGANIZATIONS, 2)
        seed = Run(platform, folder, past, wanted.connections)
        await seed.visible((await seed.load(1.0, BATCH)).accepted_at)
        # Its windows are of series that are stored once their minute is over.
        run = Run(platform, folder / "run", tenants, wanted.connections)
        run.folder.mkdir()
        settings, there = _settings(platform), 0
        for count in wanted.stored:
            filled = await store_past(settings, past, count - there, folder / "rows.npy")
            there, sizes[count] = count, filled.bytes
            told.append(f"  {count:,}: filled in {filled.seconds:.0f} s, {_sized(filled.bytes)}")
            found.append(await cost(run, count, wanted.seconds, past[0]))
    print("\n".join(["bytes of a stored event on disk", *told]))
    return found, sizes


def _head(load: str) -> None:
    print(
        f"\n{load}, load average {os.getloadavg()[0]:.1f}\n       load    events/s  CPU µs/ev"
        "  PostgreSQL's idle ms/s windows/ev  bytes/ev  query ms",
        flush=True,
    )


def _sized(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())


async def _idle(run: Run, seconds: float) -> float:
    # What the load before has left is done first.
    await asyncio.sleep(seconds)
    before, began = sum(run.cpu().values()), time.perf_counter()
    await asyncio.sleep(seconds)
    return (sum(run.cpu().values()) - before) * 1000 / (time.perf_counter() - began)


async def _bytes(database_url: str) -> int:
    """Of all tables of the ledger and of its windows, with their indexes."""
    total = 0
    for database in DATABASES:
        connection = await asyncpg.connect(database_url, database=database)
        total += await connection.fetchval(
            """
            SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
            WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
            """
        )
        await connection.close()
    return total


async def _deltas(database_url: str) -> int:
    connection = await asyncpg.connect(database_url, database="usage_tracker")
    found: int = await connection.fetchval("SELECT coalesce(sum(last_seq), 0)::bigint FROM parts")
    await connection.close()
    return found


async def _query(run: Run, tenant: Tenant) -> float:
    """Milliseconds, the median of some."""
    http = HttpConnections(*run.target)
    now = datetime.now(UTC)
    found = []
    for _ in range(QUERIES):
        began = time.perf_counter()
        await run.usage(
            http,
            tenant,
            start=(now - WEEK).isoformat(),
            end=now.isoformat(),
            granularity="hour",
            group_by="model",
        )
        found.append((time.perf_counter() - began) * 1000)
    await http.close()
    return median(found)


def _settings(platform: Platform) -> Settings:
    return load_settings(
        secret=(platform.data / "secret").read_text().strip(),
        database_url=facts_of(platform)["database_url"],
    )


@contextmanager
def _platform(
    *, partitions: int | None = None, options: Sequence[str] = (), layout: str = "all"
) -> Iterator[tuple[Platform, Path]]:
    environment = {**ENVIRONMENT, "MINDWEAVE_EMBEDDED_BUFFERS_MB": "256"}
    if partitions is not None:
        environment["MINDWEAVE_PARTITIONS"] = str(partitions)
    listen = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            Platform(folder / "data", listen, environment)
            if layout == "all"
            else Platform(folder / "data", listen, environment, layout="up", options=options)
        ) as platform:
            platform.wait_until_ready()
            yield platform, folder


async def measure(wanted: argparse.Namespace) -> None:
    partitions = await by_partitions(wanted)
    organizations = await by_organizations(wanted)
    stored, sizes = await by_stored(wanted)
    print(
        json.dumps(
            {
                "partitions": [asdict(found) for found in partitions],
                "organizations": [asdict(found) for found in organizations],
                "stored": [asdict(found) for found in stored],
                "bytes_per_stored_event": {
                    str(count): {name: round(size, 1) for name, size in found.items()}
                    for count, found in sizes.items()
                },
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--connections", type=int, default=8, help="requests under way at once")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--organizations", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--stored", type=int, nargs="+", default=[1_000_000, 10_000_000])
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, everything on them; batches of {BATCH}, CPU at {RATE} a second")
    uvloop.run(measure(wanted))


if __name__ == "__main__":
    main()
