"""`mindweave partitions N` while events keep coming: each of them counts once."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from fleet.embedded.folder import read_run
from fleet.process import Platform
from fleet.workload import Workload, generate
from tests.e2e.checker import Checker
from tests.e2e.comparison import differences
from tests.e2e.own import own_platform
from tests.e2e.raw_rows import connect, raw_rows, row_differences, window_differences
from tests.e2e.tenant import tenant

pytestmark = pytest.mark.e2e

PATIENCE = 120.0


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with own_platform(tmp_path_factory.mktemp("partitions") / "data") as platform:
        yield platform


@asynccontextmanager
async def changing(platform: Platform, count: int):
    """The command as a process; it is killed where it still runs at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fleet", "partitions", str(count)),
        *("--data", str(platform.data)),
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def says(process: Process, text: str) -> str:
    """Its output up to the line with that text."""
    seen = ""
    async with asyncio.timeout(PATIENCE):
        while text not in seen:
            line = await process.stdout.readline()
            assert line, f"it ended and had not said {text!r}: {seen}"
            seen += line.decode()
    return seen


async def partition_counts(platform: Platform) -> tuple[int, set[int]]:
    """The ledger's own count, and the parts that hold raw rows or identities."""
    run = read_run(platform.data)
    connection = await connect(run["database_url"])
    count = await connection.fetchval("SELECT partitions FROM layout")
    rows = await connection.fetch("SELECT part FROM events UNION SELECT part FROM event_ids")
    await connection.close()
    return count, {row["part"] for row in rows}


async def exact(platform: Platform, checker: Checker, who) -> list[str]:
    """Every difference from the books, in raw rows, in the ledger's windows and in answers."""
    await checker.finish(PATIENCE)
    run = read_run(platform.data)
    connection = await connect(run["database_url"])
    found = row_differences(await raw_rows(connection, who.org_id), checker.oracle)
    found += await window_differences(connection, who.org_id, checker.oracle)
    await connection.close()
    return found + differences(who.client, who.org_id, checker.oracle)


@pytest.mark.parametrize(("count", "killed"), [(6, False), (3, True)])
async def test_a_change_of_the_number_under_load_loses_nothing_and_doubles_nothing(
    platform: Platform, count: int, killed: bool
) -> None:
    who = tenant(platform.address)
    checker = Checker(platform.address, who)
    workload = Workload(generate(seed=count, count=1500), who.projects, datetime.now(UTC), count)
    batches = list(workload.batches(100))
    half = len(batches) // 2
    for batch in batches[:half]:
        assert await checker.send(batch)
    async with checker.replaying(count, streams=2):
        if killed:
            async with changing(platform, count) as process:
                await says(process, "all that was acknowledged is counted")
                process.send_signal(signal.SIGKILL)
        async with changing(platform, count) as process:
            await says(process, "events come in again")
            assert await process.wait() == 0
    assert checker.retries > 0
    for batch in batches[half:]:
        assert await checker.send(batch)
    # What came before the change comes again, in other batches.
    events = [event for batch in batches for event in batch]
    for start in range(0, len(events), 130):
        assert await checker.send(events[start : start + 130])

    assert await exact(platform, checker, who) == []
    stored, parts = await partition_counts(platform)
    assert (stored, parts) == (count, set(range(count)))


async def test_a_platform_that_starts_again_takes_the_number_as_it_is(platform: Platform) -> None:
    platform.stop()
    platform.start()
    platform.wait_until_ready(PATIENCE)
    who = tenant(platform.address)
    checker = Checker(platform.address, who)
    workload = Workload(generate(seed=9, count=200), who.projects, datetime.now(UTC), 9)
    for batch in workload.batches(100):
        assert await checker.send(batch)
    assert await exact(platform, checker, who) == []
