"""The restore drill: a backup in the middle of a replay, a loss, and what is there afterwards.

First PostgreSQL is lost and the broker is kept, in the middle of the replay: everything is counted
again. Then all is lost but the backup and the secret. `make drill` prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import monotonic

import httpx

from fleet.process import Layout, Platform
from fleet.workload import Event, Workload, read_trace
from tests.common.waiting import eventually
from tests.e2e.checker import Checker
from tests.e2e.comparison import Grouping, differences
from tests.e2e.oracle import NANO, Oracle
from tests.e2e.own import START_PATIENCE, own_platform
from tests.e2e.raw_rows import connect, raw_rows, row_differences, window_differences
from tests.e2e.tenant import Tenant, tenant

TRACE = Path(os.environ.get("MINDWEAVE_TRACE", "../shared/data/azure-llm-2023-conv.csv"))
PATIENCE = 300.0
_BATCH = 250
GROUPINGS: tuple[Grouping, ...] = (
    ("all", ("model",)),
    ("all", ("project_id", "user_id", "status")),
    ("minute", ()),
)


@dataclass
class Restored:
    """What is there after a restore, by the books of what was acknowledged.

    Attributes:
        seconds: of the command.
        lost: acknowledged events that are not there.
        doubled: events that are there more than once.
        nano_dollars_off: by which the costs that are answered differ from those of what is there.
        wrong: every other difference of raw rows, windows and answers from the books.
    """

    seconds: float
    lost: int
    doubled: int
    nano_dollars_off: int
    wrong: list[str]


@dataclass
class Report:
    """Of one drill; ``backed_up`` are the events that the backup alone answers for."""

    accepted: int
    backed_up: int
    backup_seconds: float
    without_database: Restored
    without_anything: Restored


async def drill(root: Path, trace: Path, layout: Layout, options: Sequence[str]) -> Report:
    """Replay a trace and run the drill on a platform of its own; every folder is in ``root``."""
    data, backup = root / "data", root / "backup"
    with own_platform(data, layout=layout, options=options) as platform:
        who = await asyncio.to_thread(tenant, platform.address)
        workload = Workload(read_trace(trace), who.projects, datetime.now(UTC), seed=28)
        scene = Scene(platform, who, Checker(platform.address, who), backup)
        return await scene.play(list(workload.batches(_BATCH)))


class Scene:
    """A platform, who sends to it, and the folder of its backup."""

    def __init__(self, platform: Platform, who: Tenant, checker: Checker, backup: Path) -> None:
        self._platform = platform
        self._who = who
        self._checker = checker
        self._backup = backup
        self._sent = 0
        self._backed_up = asyncio.Event()

    @property
    def _oracle(self) -> Oracle:
        return self._checker.oracle

    async def play(self, batches: list[list[Event]]) -> Report:
        third = len(batches) // 3
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(batches, 2 * third))
            await eventually(lambda: self._sent >= third, PATIENCE)
            before = set(self._oracle.events)
            took = await self._command("backup", str(self._backup))
            self._backed_up.set()
            # Deltas are made of what comes now, with numbers that the backup does not know.
            await eventually(lambda: self._sent >= 2 * third + third // 2, PATIENCE)
            self._platform.kill_everything()
            shutil.rmtree(self._platform.data / "postgres")
            await self._break_off()
            seconds = await self._command("restore", str(self._backup))
            await self._start()
        await self._all_is_counted()
        without_database = await self._judge(seconds, self._oracle)

        self._platform.kill_everything()
        for path in self._platform.data.iterdir():
            if path.name not in ("secret", "mindweave.log"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        seconds = await self._command("restore", str(self._backup), "--accept-loss")
        await self._start()
        without_anything = await self._judge_what_is_left(seconds, before)
        accepted = len(self._oracle.events)
        return Report(accepted, len(before), took, without_database, without_anything)

    async def _break_off(self) -> None:
        """End restores once the copy is there, in order and not: neither leaves one that starts."""
        data = self._platform.data
        for ending in (signal.SIGTERM, signal.SIGKILL):
            process = await self._begun("restore", str(self._backup))
            await eventually((data / "postgres").exists, PATIENCE)
            process.send_signal(ending)
            output, _ = await process.communicate()
            assert process.returncode not in (0, None), output.decode()
            killed = ending is signal.SIGKILL
            found = [(data / name).exists() for name in ("postgres", "restoring")]
            assert found == [killed, killed], output.decode()
            if not killed:
                assert not (data / "postgres.pid").exists()
        for layout in ("all", "up"):
            process = await self._begun(layout)
            output, _ = await process.communicate()
            assert (process.returncode, b"is half restored" in output) == (1, True), output.decode()

    async def _send(self, batches: list[list[Event]], until_backed_up: int) -> None:
        for number, batch in enumerate(batches):
            if number == until_backed_up:
                await self._backed_up.wait()
            assert await self._checker.send(batch, PATIENCE)
            self._sent = number + 1
            await asyncio.sleep(0.02)

    async def _all_is_counted(self) -> None:
        """A service that has just started may be away for a moment."""

        async def counted() -> bool:
            try:
                await self._checker.finish(PATIENCE)
            except httpx.HTTPStatusError:
                return False
            return True

        await eventually(counted, PATIENCE)

    async def _start(self) -> None:
        self._platform.start()
        await asyncio.to_thread(self._platform.wait_until_ready, START_PATIENCE)

    async def _command(self, *words: str) -> float:
        """Run a command of the program on the platform's folder; its seconds."""
        begun = monotonic()
        process = await self._begun(*words)
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return round(monotonic() - begun, 1)

    async def _begun(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fleet", *words, "--data", str(self._platform.data)),
            stdout=PIPE,
            stderr=STDOUT,
        )

    async def _judge(self, seconds: float, oracle: Oracle) -> Restored:
        org_id, client = self._who.org_id, self._who.client
        connection = await connect(self._platform.run()["database_url"])
        rows = await raw_rows(connection, org_id)
        wrong = row_differences(rows, oracle)
        wrong += await window_differences(connection, org_id, oracle)
        await connection.close()
        wrong += await self._answers(oracle)
        answer = client.get("/analytics/costs", params={"org_id": org_id, "granularity": "all"})
        cost = Decimal(answer.json()["totals"]["cost_usd"])
        names = [row[0] for row in rows]
        return Restored(
            seconds,
            lost=len(self._oracle.events.keys() - set(names)),
            doubled=len(names) - len(set(names)),
            nano_dollars_off=int(abs(cost - oracle.total().cost_usd) / NANO),
            wrong=wrong,
        )

    async def _answers(self, oracle: Oracle) -> list[str]:
        """Where answers differ from the books; a 503 of a service that catches up asks again."""
        ask = partial(differences, self._who.client, self._who.org_id, oracle, GROUPINGS)
        give_up = monotonic() + PATIENCE
        while True:
            try:
                return await asyncio.to_thread(ask)
            except AssertionError as refused:
                if '"status":503' not in str(refused) or monotonic() > give_up:
                    raise
                await asyncio.sleep(1)

    async def _judge_what_is_left(self, seconds: float, before: set[str]) -> Restored:
        """Everything that was accepted before the backup, and sums of just what is there."""
        now = datetime.now(UTC)
        self._checker.accepted_at = now
        await self._all_is_counted()
        connection = await connect(self._platform.run()["database_url"])
        there = {row[0] for row in await raw_rows(connection, self._who.org_id)}
        await connection.close()
        oracle = Oracle(self._who.org_id, self._who.key["id"])
        oracle.events = {k: v for k, v in self._oracle.events.items() if k in there}
        found = await self._judge(seconds, oracle)
        found.wrong += [f"{name} was accepted before the backup" for name in before - there]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=("kafka", "redis-streams"), default="kafka")
    parser.add_argument("--layout", choices=("all", "up"), default="up")
    given = parser.parse_args()
    options = ("--broker", given.broker) if given.layout == "up" else ()
    with tempfile.TemporaryDirectory(prefix="mindweave-") as root:
        report = asyncio.run(drill(Path(root), TRACE, given.layout, options))
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    every = (report.without_database, report.without_anything)
    wrong = any(found.wrong or found.doubled or found.nano_dollars_off for found in every)
    sys.exit(bool(report.without_database.lost or wrong))


if __name__ == "__main__":
    main()
