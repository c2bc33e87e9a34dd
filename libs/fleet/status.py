"""What runs, and how it is: a table from the platform's own report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from fleet.embedded.folder import read_run


class NotRunning(Exception):
    """There is no platform where one was looked for."""


def find_address(data: Path) -> str:
    """The REST address of the platform that runs in the data folder.

    Raises:
        NotRunning: none runs there.
    """
    run = read_run(data)
    if run is None:
        raise NotRunning(f"No platform runs in {data}: start one with `mindweave all`.")
    return str(run["address"])


def ask(address: str) -> list[dict[str, Any]]:
    """Every service with its parts, as ``GET /health/ready`` reports them.

    Raises:
        NotRunning: nothing answers there.
    """
    url = address if "://" in address else f"http://{address}"
    try:
        report = httpx.get(f"{url}/health/ready", timeout=10.0).json()
        services: list[dict[str, Any]] = report["services"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise NotRunning(f"Nothing answers at {url}/health/ready: {error!r}") from error
    return services


def show(services: list[dict[str, Any]], console: Console) -> bool:
    """Print them; whether all of it is up."""
    table = Table("service", "part", "up", "version", "lag", "detail")
    for service in services:
        table.add_row(service["name"], "", _mark(service["ready"]), service["version"], "", "")
        for part in service["parts"]:
            lag = "" if part["lag"] is None else str(part["lag"])
            table.add_row("", part["name"], _mark(part["ready"]), "", lag, part["detail"])
    console.print(table)
    return bool(services) and all(service["ready"] for service in services)


def _mark(up: bool) -> str:
    return "[green]yes[/]" if up else "[red]no[/]"
