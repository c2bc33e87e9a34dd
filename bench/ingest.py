"""Events through everything: how many a second, how soon visible, at what cost, exactly once.

``uv run python -m bench.ingest [--seconds N] [--batch M] [--layout NAME]…`` prints a line of JSON
for each layout and ends with that of the best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform as machine
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import uvloop

from bench.durability import durability
from bench.generator import Job, Sent, latencies, send
from bench.ledger import verdict
from bench.load import HttpConnections
from bench.platform import facts_of
from bench.probes import Probes
from bench.tenant import Tenant, make_tenant
from fleet.process import Platform

PROJECTS = 20
SHARE = 0.2
SIZES = (1, 10, 100, 1000)
SIZE_SECONDS = 4.0
PROBE_SECONDS = 10.0
PROBE_EVERY = 0.02
# The one caller of a benchmark is many callers.
ENVIRONMENT = {"MINDWEAVE_LIMITS__REQUESTS_PER_SECOND": "1000000"}
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to run the platform."""

    layout: str
    broker: str
    listen: str

    @property
    def name(self) -> str:
        return f"{self.layout}:{self.broker}"


LAYOUTS = (
    Layout("all", "redis-streams", "127.0.0.1:18090"),
    Layout("up", "redis-streams", "127.0.0.1:18091"),
    Layout("up", "kafka", "127.0.0.1:18092"),
)


@dataclass
class Run:
    """One started platform under load."""

    platform: Platform
    folder: Path
    tenant: Tenant
    connections: int
    acknowledged: int = 0
    files: list[Path] = field(default_factory=list)

    @property
    def target(self) -> tuple[str, int]:
        host, port = self.platform.address.removeprefix("http://").split(":")
        return host, int(port)

    async def load(self, seconds: float, batch: int, rate: float | None = None) -> Sent:
        """Send; ``rate`` in events a second."""
        host, port = self.target
        file = self.folder / f"ids-{len(self.files)}"
        sent = await send(
            Job(
                host=host,
                port=port,
                key=self.tenant.key,
                projects=self.tenant.projects,
                seconds=seconds,
                batch=batch,
                connections=self.connections,
                seed=len(self.files),
                ids=str(file),
                batches_per_s=None if rate is None else rate / batch,
            )
        )
        self.files.append(file)
        self.acknowledged += sent.accepted
        return sent

    async def visible(self, accepted_at: datetime) -> float:
        """Wait until all that was acknowledged is in ``GET /analytics/usage``; when it was.

        Looks for ``fresh_until`` in an answer about a minute without events, which costs little,
        and then at the whole.
        """
        http = HttpConnections(*self.target)
        past = accepted_at - timedelta(days=2)
        minute = {"start": past.isoformat(), "end": (past + timedelta(minutes=1)).isoformat()}
        end = time.time() + PATIENCE
        while time.time() < end:
            fresh = (await self._usage(http, **minute))["fresh_until"]
            if fresh is not None and datetime.fromisoformat(fresh) > accepted_at:
                break
            await asyncio.sleep(0.05)
        found = (await self._usage(http))["totals"]["events"]
        seen = time.time()
        await http.close()
        if found != self.acknowledged:
            raise ValueError(f"{found} of {self.acknowledged} events are visible")
        return seen

    async def _usage(self, http: HttpConnections, **asked: str) -> Any:
        query = urlencode({"org_id": self.tenant.org_id, "granularity": "all", **asked})
        head = (
            f"GET /analytics/usage?{query} HTTP/1.1\r\nHost: {self.target[0]}\r\n"
            f"Authorization: Bearer {self.tenant.key}\r\n\r\n"
        )
        return await http.get(head.encode())

    def cpu(self) -> dict[str, float]:
        """Seconds that each program of the platform has used, ended children included."""
        used: dict[str, float] = {}
        for process in self.platform.processes():
            with process.oneshot():
                times, name = process.cpu_times(), _program(process)
            used[name] = used.get(name, 0.0) + sum(times[:4])
        return used


async def measure(layout: Layout, folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """All figures of one layout."""
    with _platform(layout, folder / "data") as platform:
        platform.wait_until_ready()
        facts = facts_of(platform)
        print(f"{layout.name}: {json.dumps(await durability(facts))}", flush=True)
        run = Run(platform, folder, make_tenant(platform.address, PROJECTS), wanted.connections)
        await run.visible((await run.load(1.0, wanted.batch)).accepted_at)
        full = await _full(run, wanted)
        rate = SHARE * full["visible_per_s"]
        part = await _partial(run, wanted, rate)
        sizes = [await _size(run, size) for size in (SIZES if wanted.table else ())]
        found = await verdict(facts["database_url"], run.tenant.org_id, run.files)
    print(f"  raw rows {found.rows}, in windows {found.windows}, acknowledged {run.acknowledged}")
    for line in sizes:
        print("  " + line)
    return {
        "layout": layout.layout,
        "broker": layout.broker,
        **full,
        **part,
        "lost": found.lost,
        "doubled": found.doubled,
    }


async def _full(run: Run, wanted: argparse.Namespace) -> dict[str, Any]:
    before = run.cpu()
    sent = await run.load(wanted.seconds, wanted.batch)
    seen = await run.visible(sent.accepted_at)
    after = run.cpu()
    micros = {
        name: round((used - before.get(name, 0.0)) / sent.accepted * 1e6, 2)
        for name, used in sorted(after.items())
        if used - before.get(name, 0.0) > 0.05
    }
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


async def _partial(run: Run, wanted: argparse.Namespace, rate: float) -> dict[str, Any]:
    other = make_tenant(run.platform.address, PROJECTS)
    http = HttpConnections(*run.target)
    probes = Probes(http, run.target[0], other)
    batch = min(wanted.batch, max(1, round(rate / 20)))
    sent, seen = await asyncio.gather(
        run.load(PROBE_SECONDS, batch, rate), probes.run(PROBE_SECONDS, PROBE_EVERY)
    )
    await http.close()
    await run.visible(sent.accepted_at)
    print(f"  at {rate:.0f} events/s in batches of {batch}: 202 {latencies(sent)}")
    print(f"  202 to visible {seen}")
    return {
        "ack_ms_p95": round(latencies(sent).quantile(0.95), 1),
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
    """Its name; for a backend of PostgreSQL the database that it serves, too."""
    name, line = process.name(), process.cmdline()
    if name == "postgres" and line and line[0].startswith("postgres: "):
        return " ".join(line[0].split()[:3:2])
    return name


def _platform(layout: Layout, data: Path) -> Platform:
    if layout.layout == "all":
        return Platform(data, layout.listen, ENVIRONMENT)
    options = ("--broker", layout.broker)
    return Platform(data, layout.listen, ENVIRONMENT, layout="up", options=options)


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
    parser.add_argument("--no-table", dest="table", action="store_false")
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, {machine.platform()}, Python {machine.python_version()}")
    print("everything on them, the generator too; load average", os.getloadavg())
    chosen = [layout for layout in LAYOUTS if layout.name in (wanted.layout or names)]
    uvloop.run(measure_all(wanted, chosen))


if __name__ == "__main__":
    sys.exit(main())
