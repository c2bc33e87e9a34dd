"""A platform of many processes on three brokers, its clients, and all that can be done to it."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from shutil import which
from time import monotonic

import httpx
import redis.asyncio as redis

from common.settings import db_password, load_settings
from fleet.embedded.folder import DataFolder
from fleet.layout.supervisor import Remote
from fleet.ports import free_port
from fleet.process import Platform
from fleet.surroundings import KAFKA
from tests.chaos.books import Books
from tests.chaos.brokers import COUNT, Cluster, cluster
from tests.chaos.disk import Disk, mounted
from tests.chaos.ledger import (
    Findings,
    counting,
    fresh,
    held,
    judged,
    judged_answers,
)
from tests.chaos.link import HOST, Link
from tests.chaos.load import Source
from tests.chaos.sending import Gate, Stream, client
from tests.chaos.tables import Tables
from tests.common.plain import PLAIN
from tests.common.waiting import eventually
from tests.e2e.comparison import Grouping, differences
from tests.e2e.own import START_PATIENCE
from tests.e2e.processes import pid_of
from tests.e2e.tenant import Tenant, tenant

INGEST = ("usage_tracker-serve-1", "usage_tracker-serve-2")
WORKERS = ("usage_tracker-work-1", "usage_tracker-work-2")
# Seconds in which everything has to come back by itself.
PATIENCE = 90.0
_ORGS, _STREAMS = 3, 2
_ASK_SECONDS = 3.0
# What analytics is asked for at the end of a round: each dimension in one of them.
GROUPINGS: tuple[Grouping, ...] = (
    ("minute", ()),
    ("hour", ("model", "provider")),
    ("day", ("project_id", "user_id", "status")),
    ("all", ("team_id", "api_key_id", "event_type")),
    ("month", ("mcp_server", "tool")),
)
_LOOK_EVERY = 0.2


class Hangs(Exception):
    """Something did not come back by itself; the message says what."""


@dataclass
class Client:
    """An organization, its books, and the key it sends with."""

    who: Tenant
    books: Books
    http: httpx.AsyncClient


@dataclass
class Scene:
    """See the module; ``clients`` are those of the round."""

    platform: Platform
    brokers: Cluster
    database: Link
    edge: Link
    disks: dict[str, Disk]
    tables: Tables
    rng: Random
    gate: Gate = field(default_factory=Gate)
    clients: list[Client] = field(default_factory=list)
    repeats_before: int = 0

    @property
    def acknowledged(self) -> int:
        return sum(len(one.books.acknowledged) for one in self.clients)

    @property
    def retries(self) -> int:
        return sum(one.books.retries for one in self.clients)

    async def pid(self, name: str) -> int:
        """Of a process or server of the platform; 0 where it does not run."""
        return await asyncio.to_thread(pid_of, self.platform, name)

    def remote(self) -> Remote:
        """The supervisor of the platform's processes."""
        return Remote(self.platform.run()["supervisor"])

    async def under_load(self, seconds: float = 0.5) -> None:
        """Returns at a random moment while events are acknowledged."""
        before = self.acknowledged
        try:
            await eventually(lambda: self.acknowledged > before, PATIENCE)
        except TimeoutError:
            raise Hangs(f"after {PATIENCE:.0f} s: nothing is acknowledged") from None
        await asyncio.sleep(self.rng.uniform(0.05, seconds))

    async def whole(self) -> str:
        """Returns once everything works again by itself: how long that took, and for what.

        Raises:
            Hangs: something does not.
        """
        begun, last = monotonic(), ""
        missing = await self.missing()
        while missing:
            last = f" for {'; '.join(missing)}"
            if monotonic() > begun + PATIENCE:
                raise Hangs(f"after {PATIENCE:.0f} s: {'; '.join(missing)}")
            await asyncio.sleep(_LOOK_EVERY)
            missing = await self.missing()
        return f"whole {monotonic() - begun:.1f} s later{last}"

    async def missing(self) -> list[str]:
        """What does not work now."""
        asked = await asyncio.gather(
            self._unready(),
            self._unshared(),
            self._brokers_out_of_step(),
            self._cache_away(),
            return_exceptions=True,
        )
        return [
            repr(found) if isinstance(found, BaseException) else found for found in asked if found
        ]

    async def _unready(self) -> str:
        async with httpx.AsyncClient(timeout=_ASK_SECONDS, verify=PLAIN) as http:

            async def is_ready(address: str) -> bool:
                try:
                    return (await http.get(f"http://{address}/health/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            addresses = {p["name"]: p["metrics"] for p in self.platform.run()["processes"]}
            addresses["envoy"] = self.platform.address.removeprefix("http://")
            answers = await asyncio.gather(*(is_ready(a) for a in addresses.values()))
        away = [name for name, ready in zip(addresses, answers, strict=True) if not ready]
        return f"not ready: {', '.join(away)}" if away else ""

    async def _unshared(self) -> str:
        if await self.tables.shared(len(WORKERS)):
            return ""
        owners = await self.tables.owners()
        return f"{len(owners)} partitions are worked on by {len(set(owners.values()))}"

    async def _brokers_out_of_step(self) -> str:
        return "" if await self.brokers.in_step() else "brokers are not in step"

    async def _cache_away(self) -> str:
        cache = redis.from_url(self.platform.run()["cache_url"], socket_timeout=_ASK_SECONDS)
        try:
            await cache.ping()
        finally:
            await cache.aclose()
        return ""

    async def examine(self) -> Findings:
        """Everything against the books; nothing is under way meanwhile.

        Raises:
            Hangs: clients are not answered.
            NotFresh: analytics does not come to show what was acknowledged.
        """
        found = Findings()
        async with self.gate.shut():
            for one in self.clients:
                await fresh(one.http, [one.books], PATIENCE)
                async with self.tables.connected() as connection:
                    there = await held(connection, one.who.org_id)
                found.add(await asyncio.to_thread(judged, there, one.books))
                answers = await asyncio.to_thread(judged_answers, one.who.client, one.books, there)
                found.add(answers)
        return found

    async def examine_answers(self, one: Client) -> Findings:
        """All that analytics answers about an organization; nothing may be under way."""
        books = one.books
        await fresh(one.http, [books], PATIENCE)
        async with self.tables.connected() as connection:
            there = await held(connection, one.who.org_id)
        oracle = books.oracle_of(counting(there, books))
        found = await asyncio.to_thread(
            differences, one.who.client, one.who.org_id, oracle, GROUPINGS
        )
        return Findings(others=found)

    @asynccontextmanager
    async def sending(self, seed: str, pause: float) -> AsyncIterator[None]:
        """New organizations whose clients send while the block runs.

        Raises:
            ExceptionGroup: a client was not answered, or answered wrongly.
        """
        async with AsyncExitStack() as stack:
            self.clients = []
            self.repeats_before = await self.tables.repeats()
            streams: list[Stream] = []
            for number in range(_ORGS):
                who = await asyncio.to_thread(tenant, self.platform.address)
                http = await stack.enter_async_context(
                    client(f"http://{self.edge.address}", who.key["key"])
                )
                books = Books(who.org_id, who.key["id"])
                self.clients.append(Client(who, books, http))
                for stream in range(_STREAMS):
                    name = f"{seed}:{number}:{stream}"
                    source = Source(name, who.projects)
                    streams.append(Stream(http, books, source, Random(f"{name}:ways")))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            sending = [group.create_task(one.run(self.gate, pause)) for one in streams]
            yield
            for task in sending:
                task.cancel()


@asynccontextmanager
async def scene(
    root: Path, broker: str, rng: Random, tell: Callable[[str], None]
) -> AsyncIterator[Scene]:
    """All of it in ``root``, which is empty; nothing of it outlives the block.

    Args:
        root: a folder.
        broker: one of ``fleet.surroundings.BROKERS``.
        rng: rolls the dice of the faults.
        tell: is given lines.
    """
    async with AsyncExitStack() as stack:
        disks = {
            name: stack.enter_context(mounted(root / f"disk-{name}"))
            for name in ("postgres", "broker")
        }
        data, last = root / "data", disks["broker"].folder / "broker"
        last.mkdir()
        await asyncio.to_thread(_cluster_on, disks["postgres"], data)
        brokers = Cluster((), ())
        if broker == KAFKA:
            folders = [root / f"broker-{n}" for n in range(1, COUNT)]
            for folder in folders:
                folder.mkdir()
            brokers = await stack.enter_async_context(cluster([*folders, last]))
            tell(f"{COUNT} brokers at {brokers.addresses}")
        else:
            (data / "broker").symlink_to(last)
        database = await stack.enter_async_context(Link(free_port(), data / ".s.PGSQL.5432"))
        listen = free_port()
        edge = await stack.enter_async_context(Link(free_port(), (HOST, listen)))
        platform = Platform(
            data,
            f"{HOST}:{listen}",
            _environment(brokers, database),
            layout="up",
            options=("--broker", broker),
        )
        stack.callback(_end, platform)
        platform.start()
        seconds = await asyncio.to_thread(platform.wait_until_ready, START_PATIENCE)
        tell(f"the platform is ready after {seconds:.0f} s")
        yield Scene(platform, brokers, database, edge, disks, Tables(platform), rng)


def _cluster_on(disk: Disk, data: Path) -> None:
    """A database cluster whose files are on that disk."""
    folder = DataFolder(data)
    try:
        folder.postgres().prepare()
    finally:
        folder.close()
    # With its owner, who is not this process's.
    there = disk.folder / "postgres"
    subprocess.run([which("cp") or "cp", "-a", str(data / "postgres"), str(there)], check=True)
    subprocess.run([which("rm") or "rm", "-r", str(data / "postgres")], check=True)
    (data / "postgres").symlink_to(there)


def _environment(brokers: Cluster, database: Link) -> dict[str, str]:
    secret = secrets.token_hex(32)
    password = db_password(load_settings(secret=secret), "usage_tracker")
    kafka = {
        "KAFKA_BROKERS": brokers.addresses,
        "MINDWEAVE_KAFKA_REPLICATION": str(COUNT),
    }
    return (kafka if brokers.brokers else {}) | {
        "MINDWEAVE_SECRET": secret,
        "DATABASE_URL_USAGE_TRACKER": f"postgresql://usage_tracker:{password}"
        f"@{database.address}/usage_tracker",
        "MINDWEAVE_DRAIN_DELAY": "0.5",
        "MINDWEAVE_COMPACTION_SECONDS": "1",
    }


def _end(platform: Platform) -> None:
    platform.kill_everything()
