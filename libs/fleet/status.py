"""What runs, and how it is: a table from what each process says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

import httpx
from rich.console import Console
from rich.table import Column, Table

from fleet.embedded.folder import read_run
from fleet.layout.supervisor import Remote

_ASK_SECONDS = 10.0


class NotRunning(Exception):
    """There is no platform where one was looked for."""


@dataclass(frozen=True)
class ProcessStatus:
    """A process and its services; without any it does not answer, and ``detail`` says why."""

    name: str
    services: Sequence[Mapping[str, Any]] = field(default_factory=list)
    detail: str = ""

    @property
    def ready(self) -> bool:
        return bool(self.services) and all(service["ready"] for service in self.services)


def of_folder(data: Path) -> list[ProcessStatus]:
    """Every process of the platform that runs in the data folder.

    Raises:
        NotRunning: none runs there.
    """
    run = read_run(data)
    if run is None:
        raise NotRunning(
            f"No platform runs in {data}: start one with `mindweave all` or `mindweave up`."
        )
    return asyncio.run(_ask_each(run))


async def _ask_each(run: Mapping[str, Any]) -> list[ProcessStatus]:
    processes = run["processes"]
    states = _states(run["supervisor"]) if "supervisor" in run else {}
    async with httpx.AsyncClient(timeout=_ASK_SECONDS) as http:
        answers = await asyncio.gather(*(_report(http, p["metrics"]) for p in processes))
    return [
        ProcessStatus(
            process["name"],
            answer,
            "" if answer else states.get(process["name"], "does not answer"),
        )
        for process, answer in zip(processes, answers, strict=True)
    ]


async def _report(http: httpx.AsyncClient, address: str) -> list[dict[str, Any]]:
    """What a process says of its services; nothing where it says nothing."""
    try:
        answer = await http.get(f"http://{address}/health/ready")
        services: list[dict[str, Any]] = answer.json()["services"]
    except (httpx.HTTPError, ValueError, KeyError):
        return []
    return services


def _states(supervisor: str) -> dict[str, str]:
    """What the supervisor says of each process, such as "backoff: Exited too quickly"."""
    try:
        found = Remote(supervisor).processes()
    except (OSError, Fault):
        return {}
    return {p["name"]: f"{p['statename'].lower()}: {p['description']}" for p in found}


def of_address(address: str) -> list[ProcessStatus]:
    """The process that answers at a REST address, as ``GET /health/ready`` reports it.

    Raises:
        NotRunning: nothing answers there.
    """
    url = address if "://" in address else f"http://{address}"
    try:
        report = httpx.get(f"{url}/health/ready", timeout=_ASK_SECONDS).json()
        services: list[dict[str, Any]] = report["services"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise NotRunning(f"Nothing answers at {url}/health/ready: {error!r}") from error
    return [ProcessStatus("", services)]


def show(processes: Sequence[ProcessStatus], console: Console) -> bool:
    """Print them; whether all of it is up."""
    table = Table(Column("process", no_wrap=True))
    for title in ("service", "part", "up", "version", "lag", "detail"):
        table.add_column(title, overflow="fold")
    for process in processes:
        if not process.services:
            table.add_row(process.name, "", "", _mark(False), "", "", process.detail)
        name = process.name
        for service in process.services:
            table.add_row(
                name, service["name"], "", _mark(service["ready"]), service["version"], "", ""
            )
            name = ""
            for part in service["parts"]:
                lag = "" if part["lag"] is None else str(part["lag"])
                table.add_row("", "", part["name"], _mark(part["ready"]), "", lag, part["detail"])
    console.print(table)
    return bool(processes) and all(process.ready for process in processes)


def _mark(up: bool) -> str:
    return "[green]yes[/]" if up else "[red]no[/]"
