"""``mindweave all``: every service in one process, on embedded servers unless others are named."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from common.lifecycle import Host
from common.service import Service
from common.settings import Settings
from common.telemetry import configure_logs
from fleet.migrate import migrate_all
from fleet.running import until_asked_to_end
from fleet.services import load
from fleet.surroundings import Surroundings, surroundings, watch

LAYOUT = "all"


def run_all(data: Path, listen: str | None) -> None:
    """Run the platform until SIGTERM or SIGINT.

    Raises:
        Exception: as ``surroundings``, ``migrate_all`` and ``Host.start`` say.
    """
    given = {} if listen is None else {"listen": listen}
    # The servers start while the services are imported.
    with ThreadPoolExecutor(1) as importing:
        services: Future[list[Service]] = importing.submit(load)
        with surroundings(data, **given) as found:
            configure_logs(found.settings.log_level)
            uvloop.run(_serve(services.result(), found))


async def _serve(services: list[Service], found: Surroundings) -> None:
    host = Host(services, found.settings, version=version("mindweave"))
    watching = asyncio.create_task(watch(found.servers))

    def tell() -> None:
        found.folder.write_run(_facts(host, found))
        _announce(host, found)

    try:
        await until_asked_to_end(_start(host, services, found.settings), tell)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await host.stop()


async def _start(host: Host, services: list[Service], settings: Settings) -> None:
    await migrate_all(services, settings)
    await host.start()


def _facts(host: Host, found: Surroundings) -> dict[str, Any]:
    process = {
        "name": LAYOUT,
        "service": LAYOUT,
        "role": "",
        "pid": os.getpid(),
        "rpc": host.rpc_address,
        "http": host.http_address,
        "metrics": host.metrics_address,
    }
    return {
        "version": version("mindweave"),
        "pid": os.getpid(),
        "address": f"http://{host.http_address}",
        "layout": LAYOUT,
        **found.facts(),
        "processes": [process],
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
