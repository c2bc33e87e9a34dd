"""Events through everything: how many a second, how soon visible, at what cost, exactly once.

``uv run python -m bench.ingest [--seconds N] [--stored N] [--layout NAME]…`` prints a line of JSON
for each layout and ends with that of the best. Rates, and the processor time of an event, are of
events that are new: what is sent again is counted apart, as ``repeats``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform as machine
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
import uvloop

from bench.durability import durability
from bench.generator import EVENT, Job, Sent, latencies, send
from bench.ledger import verdict
from bench.load import HttpConnections
from bench.platform import facts_of
from bench.probes import Probes
from bench.restart import Restart, restart
from bench.stored import Stored, store_identities
from bench.tenant import Tenant, make_tenant
from common.settings import load_settings
from fleet.ports import free_port
from fleet.process import Platform

ORGANIZATIONS = 10
PROJECTS = 20
# Events in a request of a client that does not wait for many.
FEW = 100
SHARE = 0.2
SIZES = (1, 10, 100, 1000, 10_000)
SIZE_SECONDS = 4.0
PROBE_EVERY = 0.02
# The one caller of a benchmark is many callers.
ENVIRONMENT = {"MINDWEAVE_LIMITS__REQUESTS_PER_SECOND": "1000000"}
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to run the platform."""

    layout: str
    broker: str

    @property
    def name(self) -> str:
        return f"{self.layout}:{self.broker}"


LAYOUTS = (
    Layout("all", "redis-streams"),
    Layout("up", "redis-streams"),
    Layout("up", "kafka"),
)


@dataclass
class Run:
    """One started platform under load."""

    platform: Platform
    folder: Path
    tenants: Sequence[Tenant]
    connections: int
    stored: Stored | None = None
    beside: Sequence[int] = ()
    acknowledged: int = 0
    repeats: int = 0
    files: list[Path] = field(default_factory=list)

    @property
    def target(self) -> tuple[str, int]:
        host, port = self.platform.address.removeprefix("http://").split(":")
        return host, int(port)

    async def load(self, seconds: float, batch: int, rate: float | None = None) -> Sent:
        """Send; ``rate`` in events a second."""
        host, port = self.target
        seed = len(self.files)
        file = self.folder / f"ids-{seed}"
        self.files.append(file)
        sent = await send(
            Job(
                host=host,
                port=port,
                tenants=self.tenants,
                seconds=seconds,
                batch=batch,
                connections=self.connections,
                seed=seed,
                ids=str(file),
                stored=None if self.stored is None else str(self.stored.rows),
                batches_per_s=None if rate is None else rate / batch,
            )
        )
        self.acknowledged += sent.accepted
        self.repeats += sent.repeats
        return sent

    async def visible(self, accepted_at: datetime) -> float:
        """Wait until all that was acknowledged is in ``GET /analytics/usage``; when it was."""
        await self.fresh(accepted_at, self.tenants)
        http = HttpConnections(*self.target)
        answers = [await self.usage(http, tenant) for tenant in self.tenants]
        found = sum(answer["totals"]["events"] for answer in answers)
        seen = time.time()
        await http.close()
        if found != self.acknowledged:
            raise ValueError(f"{found} of {self.acknowledged} events are visible")
        return seen

    async def fresh(self, accepted_at: datetime, tenants: Sequence[Tenant]) -> None:
        """Wait until what was accepted up to a time is shown of these.

        Looks for ``fresh_until`` in answers about a minute without events, which cost little.
        """
        http = HttpConnections(*self.target)
        past = accepted_at - timedelta(days=2)
        minute = {"start": past.isoformat(), "end": (past + timedelta(minutes=1)).isoformat()}
        end = time.time() + PATIENCE
        for tenant in tenants:
            while time.time() < end:
                fresh = (await self.usage(http, tenant, **minute))["fresh_until"]
                if fresh is not None and datetime.fromisoformat(fresh) > accepted_at:
                    break
                await asyncio.sleep(0.05)
        await http.close()

    async def usage(self, http: HttpConnections, tenant: Tenant, **asked: str) -> Any:
        """What ``GET /analytics/usage`` answers of an organization, by default of a day."""
        query = urlencode({"org_id": tenant.org_id, "granularity": "all", **asked})
        head = (
            f"GET /analytics/usage?{query} HTTP/1.1\r\nHost: {self.target[0]}\r\n"
            f"Authorization: Bearer {tenant.key}\r\n\r\n"
        )
        return await http.get(head.encode())

    def cpu(self) -> dict[str, float]:
        """Seconds that each program of the platform has used, ended children included."""
        used: dict[str, float] = {}
        given = [psutil.Process(pid) for pid in self.beside]
        servers = [p for server in given for p in (server, *server.children(recursive=True))]
        for process in (*self.platform.processes(), *servers):
            # Servers end some of their processes whenever they like.
            with suppress(psutil.NoSuchProcess), process.oneshot():
                times, name = process.cpu_times(), _program(process)
                used[name] = used.get(name, 0.0) + sum(times[:4])
        return used

    def used_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds of each program that has used some, the most first."""
        used = {name: total - before.get(name, 0.0) for name, total in self.cpu().items()}
        return {k: used[k] for k in sorted(used, key=used.__getitem__)[::-1] if used[k] > 0.05}


async def measure(layout: Layout, folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """All figures of one layout."""
    with platform_of(layout, folder / "data", wanted.buffers) as platform:
        platform.wait_until_ready()
        tenants = [
            make_tenant(platform.address, PROJECTS // ORGANIZATIONS) for _ in range(ORGANIZATIONS)
        ]
        run = Run(platform, folder, tenants, wanted.connections, beside=wanted.beside or ())
        again = None
        if wanted.stored:
            run.stored = await _store(run, wanted.stored)
            again = _restart(platform, run.stored.partitions)
        facts = facts_of(platform)
        print(f"{layout.name}: {json.dumps(await durability(facts))}", flush=True)
        await run.visible((await run.load(1.0, wanted.batch)).accepted_at)
        full = await _full(run, wanted)
        rate = SHARE * full["visible_per_s"]
        part = await _partial(run, wanted, rate, max(1, round(rate / 20)))
        few = await _partial(run, wanted, rate, FEW)
        sizes = [await _size(run, size) for size in (SIZES if wanted.table else ())]
        before = np.empty(0, EVENT) if run.stored is None else run.stored.events
        found = await verdict(facts["database_url"], tenants, run.files, before)
    print(
        f"  raw rows {found.rows}, in windows {found.windows}, acknowledged {run.acknowledged}"
        f" and {run.repeats} repeats, which were counted as {found.duplicates} duplicates"
    )
    for line in sizes:
        print("  " + line)
    if found.windows != run.acknowledged:
        raise ValueError(f"{found.windows} of {run.acknowledged} events are in windows")
    if found.conflicts:
        raise ValueError(f"{found.conflicts} repeats were taken for other events of the same id")
    return {
        "layout": layout.layout,
        "broker": layout.broker,
        **full,
        **part,
        f"ack_ms_p95_of_{FEW}": few["ack_ms_p95"],
        "lost": found.lost,
        "doubled": found.doubled,
        "repeats": run.repeats,
        "stored": wanted.stored,
        "bytes_per_identity": None if again is None else round(again.bytes_per_identity, 2),
        "restart_s": None if again is None else round(again.seconds, 2),
    }


async def _store(run: Run, count: int) -> Stored:
    settings = load_settings(
        secret=(run.platform.data / "secret").read_text().strip(),
        database_url=facts_of(run.platform)["database_url"],
    )
    stored = await store_identities(settings, run.tenants, count, run.folder / "stored.npy")
    print(
        f"{count} identities of the past days stored in {stored.seconds:.1f} s,"
        f" vacuum and checkpoint {stored.vacuum_seconds:.1f} s",
        flush=True,
    )
    return stored


def _restart(platform: Platform, partitions: int) -> Restart:
    found = restart(platform, partitions)
    for reading in found.readings:
        print(f"  {reading}")
    print(
        f"  stopped in {found.stop_seconds:.2f} s, ready {found.ready_seconds:.2f} s after the"
        f" start, all parts read after {found.seconds:.2f} s;"
        f" {found.bytes_per_identity:.2f} bytes an identity",
        flush=True,
    )
    return found


async def _full(run: Run, wanted: argparse.Namespace) -> dict[str, Any]:
    before = run.cpu()
    sent = await run.load(wanted.seconds, wanted.batch)
    seen = await run.visible(sent.accepted_at)
    micros = {k: round(v / sent.accepted * 1e6, 2) for k, v in run.used_since(before).items()}
    accepted = sent.accepted / (sent.ended - sent.began)
    print(f"  full load: {accepted:.0f} events/s accepted, 202 {latencies(sent)}")
    print(f"  all visible {seen - sent.ended:.2f} s after the last; {sent.refusals} refusals")
    print(f"  CPU µs an event: {micros}, generator {sent.cpu_seconds / sent.accepted * 1e6:.2f}")
    return {
        "accepted_per_s": round(accepted),
        "visible_per_s": round(sent.accepted / (seen - sent.began)),
        "ack_full_ms_p95": round(latencies(sent).quantile(0.95), 1),
        "cpu_us_per_event": round(sum(micros.values()), 1),
    }


async def _partial(run: Run, wanted: argparse.Namespace, rate: float, batch: int) -> dict[str, Any]:
    other = make_tenant(run.platform.address, PROJECTS)
    http = HttpConnections(*run.target)
    probes = Probes(http, run.target[0], other)
    batch = min(wanted.batch, batch)
    seconds = wanted.probe_seconds
    before = run.cpu()
    alone = await run.load(seconds, batch, rate)
    used = {name: round(cpu / seconds * 1e3) for name, cpu in run.used_since(before).items()}
    beside, seen = await asyncio.gather(
        run.load(seconds, batch, rate), probes.run(seconds, PROBE_EVERY)
    )
    await http.close()
    await run.visible(max(alone.accepted_at, beside.accepted_at))
    print(f"  at {rate:.0f} events/s in batches of {batch}: 202 {latencies(alone)}")
    print(f"  CPU ms a second: {used}, {sum(used.values())} in all")
    print(f"  beside questions: 202 {latencies(beside)}, 202 to visible {seen}")
    return {
        "ack_ms_p95": round(latencies(alone).quantile(0.95), 1),
        "ack_ms_p95_beside_questions": round(latencies(beside).quantile(0.95), 1),
        "visible_ms_p99": round(seen.quantile(0.99), 1),
    }


async def _size(run: Run, size: int) -> str:
    before = run.cpu()
    sent = await run.load(SIZE_SECONDS, size)
    seen = await run.visible(sent.accepted_at)
    micros = (sum(run.cpu().values()) - sum(before.values())) / sent.accepted * 1e6
    accepted, visible = (sent.accepted / (t - sent.began) for t in (sent.ended, seen))
    return (
        f"{size:>5} events a request: {accepted:8.0f}/s accepted, {visible:8.0f}/s visible, "
        f"{micros:6.1f} µs CPU an event, 202 {latencies(sent)}"
    )


def _program(process: psutil.Process) -> str:
    """Its name; for a backend of PostgreSQL its database, for one of ours what it runs."""
    name, line = process.name(), process.cmdline()
    if "fleet" in line[:-1]:
        return line[line.index("fleet") + 1]
    if name == "postgres" and line and line[0].startswith("postgres: "):
        return " ".join(line[0].split()[:3:2])
    return name


def platform_of(layout: Layout, data: Path, buffers: int) -> Platform:
    """Not started yet."""
    environment = {**ENVIRONMENT, "MINDWEAVE_EMBEDDED_BUFFERS_MB": str(buffers)}
    listen = f"127.0.0.1:{free_port()}"
    if layout.layout == "all":
        return Platform(data, listen, environment)
    options = ("--broker", layout.broker)
    return Platform(data, listen, environment, layout="up", options=options)


async def measure_all(wanted: argparse.Namespace, layouts: Sequence[Layout]) -> None:
    found = []
    for layout in layouts:
        with tempfile.TemporaryDirectory() as folder:
            found.append(await measure(layout, Path(folder), wanted))
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps(max(found, key=lambda result: result["visible_per_s"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [layout.name for layout in LAYOUTS]
    parser.add_argument("--seconds", type=float, default=20.0, help="of full load")
    parser.add_argument("--batch", type=int, default=1000, help="events in a request")
    parser.add_argument("--connections", type=int, default=8, help="requests under way at once")
    parser.add_argument("--layout", action="append", choices=names, help="all when absent")
    parser.add_argument("--stored", type=int, default=20_000_000, help="identities before the run")
    parser.add_argument("--buffers", type=int, default=256, help="of PostgreSQL, in MB")
    parser.add_argument("--probe-seconds", type=float, default=10.0, help="of a fifth of the load")
    parser.add_argument(
        "--beside",
        action="append",
        type=int,
        metavar="PID",
        help="of a server that the environment gives, whose processor time counts too",
    )
    parser.add_argument("--no-table", dest="table", action="store_false")
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, {machine.platform()}, Python {machine.python_version()}")
    print("everything on them, the generator too; load average", os.getloadavg())
    chosen = [layout for layout in LAYOUTS if layout.name in (wanted.layout or names)]
    uvloop.run(measure_all(wanted, chosen))


if __name__ == "__main__":
    main()
