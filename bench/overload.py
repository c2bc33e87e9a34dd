"""A tenant that floods ingest beside a quiet one: who waits, who is refused and how soon.

``uv run python -m bench.overload [--seconds N] [--layout NAME]`` ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from bench.generator import EVENT, Sent, latencies
from bench.ingest import LAYOUTS, Layout, Run, platform_of
from bench.ledger import verdict
from bench.load import Latencies
from bench.platform import facts_of
from bench.tenant import make_tenant
from fleet.process import Platform

FLOOD_BATCH, FLOOD_CONNECTIONS = 1000, 160
# Of the same tenant, from a process that has little to do: what it waits for is the platform.
PACED_RATE = 10_000.0
QUIET_BATCH, QUIET_RATE = 100, 1000.0


class Memory:
    """Of all processes of a platform, in MB, shared pages counted once."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.seen: list[float] = []

    def now(self) -> float:
        found = 0.0
        for process in self._platform.processes():
            with suppress(psutil.Error):
                found += process.memory_full_info().pss / 1e6
        self.seen.append(found)
        return found

    def halves(self) -> tuple[float, float]:
        """The most in the first and in the second half of what was seen."""
        middle = (len(self.seen) + 1) // 2
        return max(self.seen[:middle]), max(self.seen[middle:])

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks twice a second while the block lasts."""

        async def look() -> None:
            while True:
                await asyncio.to_thread(self.now)
                await asyncio.sleep(0.5)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()


async def measure(layout: Layout, folder: Path, seconds: float, buffers: int) -> dict[str, Any]:
    with platform_of(layout, folder / "data", buffers) as platform:
        platform.wait_until_ready()
        tenants = [make_tenant(platform.address, 2) for _ in range(2)]
        runs = []
        for name, tenant in zip(("flood", "quiet"), tenants, strict=True):
            (folder / name).mkdir()
            runs.append(Run(platform, folder / name, [tenant], FLOOD_CONNECTIONS))
        flood, quiet = runs
        await _seen(quiet, await quiet.load(seconds, QUIET_BATCH, QUIET_RATE))
        memory = Memory(platform)
        before = memory.now()
        alone = await quiet.load(seconds, QUIET_BATCH, QUIET_RATE)
        async with memory.watched():
            flooded, paced, beside = await asyncio.gather(
                flood.load(seconds, FLOOD_BATCH),
                flood.load(seconds, FLOOD_BATCH, PACED_RATE),
                quiet.load(seconds, QUIET_BATCH, QUIET_RATE),
            )
        first, second = memory.halves()
        after = await quiet.load(seconds, QUIET_BATCH, QUIET_RATE)
        await _seen(flood, max(flooded, paced, key=lambda sent: sent.accepted_at))
        await _seen(quiet, after)
        files = [file for run in runs for file in run.files]
        found = [
            await verdict(
                facts_of(platform)["database_url"], run.tenants, run.files, np.empty(0, EVENT)
            )
            for run in runs
        ]
        left = memory.now()
    rate = sum(sent.accepted / (sent.ended - sent.began) for sent in (flooded, paced))
    print(f"  flood: {rate:.0f} events/s accepted, 202 {latencies(flooded)}")
    for name, sent in (("flood", flooded), ("paced requests of its tenant", paced)):
        told = Latencies(sent.refused) if sent.refused else "nothing"
        print(f"  {name}: refused {sent.refusals} times, told after {told}")
    for name, sent in (("alone", alone), ("beside it", beside), ("after it", after)):
        print(f"  quiet, {name}: 202 {latencies(sent)}, {sent.refusals} refusals")
    print(
        f"  {len(files)} loads; memory {before:.0f} MB before, {left:.0f} after;"
        f" at most {first:.0f} in the first half of the flood, {second:.0f} in the second"
    )
    return {
        "layout": layout.name,
        "flood_accepted_per_s": round(rate),
        "refusals": flooded.refusals + paced.refusals,
        "refused_ms_p50": _quantile(paced.refused, 0.5),
        "refused_ms_p95": _quantile(paced.refused, 0.95),
        "refused_ms_p99": _quantile(paced.refused, 0.99),
        "quiet_refusals": beside.refusals,
        "quiet_ms_p95_alone": _quantile(alone.latencies, 0.95),
        "quiet_ms_p95_beside": _quantile(beside.latencies, 0.95),
        "quiet_ms_p95_after": _quantile(after.latencies, 0.95),
        "memory_mb": [round(value) for value in (before, first, second, left)],
        "lost": sum(one.lost for one in found),
        "doubled": sum(one.doubled for one in found),
    }


async def _seen(run: Run, sent: Sent) -> None:
    await run.visible(sent.accepted_at)


def _quantile(values: list[float], q: float) -> float | None:
    return round(Latencies(values).quantile(q), 1) if values else None


async def measure_all(wanted: argparse.Namespace) -> None:
    for layout in LAYOUTS:
        if layout.name in (wanted.layout or ["all:redis-streams"]):
            with tempfile.TemporaryDirectory() as folder:
                found = await measure(layout, Path(folder), wanted.seconds, wanted.buffers)
            print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [layout.name for layout in LAYOUTS]
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of four loads")
    parser.add_argument("--layout", action="append", choices=names, help="all:redis-streams")
    parser.add_argument("--buffers", type=int, default=256, help="of PostgreSQL, in MB")
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()}")
    uvloop.run(measure_all(wanted))


if __name__ == "__main__":
    main()
