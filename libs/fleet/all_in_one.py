"""``mindweave all``: every service in one process, on embedded servers unless others are named."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import uvloop

from common.lifecycle import Host
from common.service import Service
from common.settings import PREFIX, Settings, load_settings
from common.telemetry import configure_logs
from fleet.embedded import DataFolder, DidNotStart
from fleet.embedded.daemon import Daemon
from fleet.embedded.folder import start_together
from fleet.migrate import migrate_all
from fleet.services import SERVICES, load

_WATCH_SECONDS = 1.0


@dataclass
class Surroundings:
    """The settings of this run, and the servers that it started itself."""

    folder: DataFolder
    settings: Settings
    servers: list[Daemon] = field(default_factory=list)

    def stop(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.servers))) as pool:
            for stopped in [pool.submit(server.stop) for server in self.servers]:
                stopped.result()


@contextmanager
def surroundings(data: Path, services: Sequence[str], **given: Any) -> Iterator[Surroundings]:
    """Hold the data folder, and start there what no setting names; it all ends with the block.

    Raises:
        InUse: another process holds the folder.
        SettingsError: a setting is wrong.
        DidNotStart: an embedded server did not come up.
    """
    folder = DataFolder(data)
    try:
        found = _configure(folder, services, **given)
        try:
            start_together(found.servers)
            yield found
        finally:
            found.stop()
    finally:
        folder.close()


def _configure(folder: DataFolder, services: Sequence[str], **given: Any) -> Surroundings:
    if f"{PREFIX}SECRET" not in os.environ:
        given.setdefault("secret", folder.secret)
    settings = load_settings(data=folder.path, **given)
    named = {name: settings.database_urls.get(name) for name in services if name != "gateway"}
    servers: list[Daemon] = []
    found: dict[str, str] = {}
    if settings.database_url is None and not all(named.values()):
        postgres = folder.postgres()
        servers.append(postgres)
        found["database_url"] = postgres.admin_dsn
    if settings.redis_url is None:
        broker, cache = folder.broker(), folder.cache()
        servers += [broker, cache]
        found |= {"redis_url": broker.url, "cache_url": settings.cache_url or cache.url}
    return Surroundings(folder, settings.model_copy(update=found), servers)


def run_all(data: Path, listen: str | None) -> None:
    """Run the platform until SIGTERM or SIGINT.

    Raises:
        Exception: as ``surroundings``, ``migrate_all`` and ``Host.start`` say.
    """
    given = {} if listen is None else {"listen": listen}
    # The servers start while the services are imported.
    with ThreadPoolExecutor(1) as importing:
        services: Future[list[Service]] = importing.submit(load)
        with surroundings(data, tuple(SERVICES), **given) as found:
            configure_logs(found.settings.log_level)
            uvloop.run(_serve(services.result(), found))


async def _serve(services: list[Service], found: Surroundings) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    host = Host(services, found.settings, version=version("mindweave"))
    watching = asyncio.create_task(_watch(found.servers))
    starting = asyncio.create_task(_start(host, services, found.settings))
    asked_to_end = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({starting, asked_to_end}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            found.folder.write_run(_facts(host, found))
            _announce(host, found)
            await asked_to_end
    finally:
        for task in (starting, asked_to_end, watching):
            task.cancel()
        await asyncio.gather(starting, asked_to_end, watching, return_exceptions=True)
        await host.stop()


async def _start(host: Host, services: list[Service], settings: Settings) -> None:
    await migrate_all(services, settings)
    await host.start()


async def _watch(servers: Sequence[Daemon]) -> None:
    """Start an embedded server again that ended by itself."""
    log = structlog.get_logger(service="fleet")
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        for server in servers:
            if server.process is not None:
                continue
            log.error("an embedded server ended and is started again", server=server.name)
            try:
                await asyncio.to_thread(server.start)
            except (DidNotStart, OSError) as error:
                log.error("an embedded server does not start", error=str(error))


def _facts(host: Host, found: Surroundings) -> dict[str, Any]:
    return {
        "version": version("mindweave"),
        "pid": os.getpid(),
        "address": f"http://{host.http_address}",
        "rpc": host.rpc_address,
        "metrics": f"http://{host.metrics_address}/metrics",
        "servers": {server.name: server.pid for server in found.servers},
        "database_url": found.settings.database_url,
        "redis_url": found.settings.redis_url,
        "cache_url": found.settings.cache_url,
    }


def _announce(host: Host, found: Surroundings) -> None:
    address = f"http://{host.http_address}"
    lines = {
        "MindWeave": f"{version('mindweave')} is ready",
        "REST": f"{address}  (reference: {address}/docs)",
        "gRPC": host.rpc_address,
        "metrics": f"http://{host.metrics_address}/metrics",
        "data": str(found.folder.path),
    }
    print("\n".join(f"{name:<10}{text}" for name, text in lines.items()), flush=True)


def run_migrations(data: Path) -> dict[str, list[str]]:
    """Migrate every service's database; what was applied, by service."""
    with surroundings(data, tuple(SERVICES)) as found:
        return asyncio.run(migrate_all(load(), found.settings))
