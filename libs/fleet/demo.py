"""The main job on real input: one hour of usage in, its exact cost out."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fleet.process import Platform, PlatformEnded
from fleet.replay import Outcome, client, send_with_progress, wait_until_fresh
from fleet.workload import Request, Workload, generate, read_trace

TABLE_WIDTH = 132
TRACE = Path("../shared/data/azure-llm-2023-conv.csv")


class DemoFailed(Exception):
    """A step of the demonstration did not succeed; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the demonstration registered through the public API."""

    user_id: str
    email: str
    password: str
    org_id: str
    projects: dict[str, str]
    key: str


def run(data: Path, listen: str, *, once: bool, seed: int = 1) -> None:
    """Start the platform, replay an hour, report, and stay until Ctrl-C unless ``once``.

    Raises:
        DemoFailed: a step was refused.
        PlatformEnded: the platform did not start.
    """
    console = Console()
    # Numbers are never cut: a narrower terminal wraps the lines instead.
    console.width = max(console.width, TABLE_WIDTH)
    address = f"http://{listen}"
    platform = Platform(data, listen)
    console.print(f"Starting the embedded platform in {data} (log: {platform.log}) ...")
    with platform:
        waited = platform.wait_until_ready()
        console.print(f"MindWeave is ready at {address} after {waited:.1f} s.")
        account = _register(address)
        requests = _requests(console, seed)
        workload = Workload(requests, list(account.projects), datetime.now(UTC), seed)
        outcome = send_with_progress(address, account.key, workload.batches(), console)
        waited = _wait_until_shown(address, account, outcome)
        _report(console, address, account, outcome, waited)
        _next_steps(console, address, account)
        if not once:
            console.print("\nThe platform keeps running; Ctrl-C stops it.")
            _stay(platform)


def _register(address: str) -> Account:
    email = f"demo-{secrets.token_hex(4)}@example.com"
    password = secrets.token_urlsafe(18)
    with httpx.Client(base_url=address, timeout=30) as http:
        user = _post(
            http,
            "/auth/register",
            {"email": email, "password": password, "display_name": "Demo"},
        )
        login = _post(http, "/auth/login", {"email": email, "password": password})
        http.headers["Authorization"] = f"Bearer {login['access_token']}"
        org = _post(http, "/orgs", {"name": "Demo organization"})
        projects = {
            _post(http, "/projects", {"org_id": org["id"], "name": name})["id"]: name
            for name in ("Support assistant", "Code review")
        }
        key = _post(
            http,
            "/auth/api-keys",
            {"name": "demo", "scopes": ["events:write", "analytics:read"]},
        )
    return Account(user["id"], email, password, org["id"], projects, key["key"])


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    if answer.is_error:
        raise DemoFailed(f"POST {path}: {answer.status_code} {answer.text}")
    parsed: dict[str, Any] = answer.json()
    return parsed


def _requests(console: Console, seed: int) -> list[Request]:
    path = Path(os.environ.get("MINDWEAVE_TRACE", TRACE))
    if path.is_file():
        console.print(f"Input: {path.name}, a real trace of requests to LLM services.")
        console.print("Models, users and projects are assigned to it by a seeded rule.")
        return read_trace(path)
    console.print(f"Input: a generated workload (seed {seed}); no trace at {path}.")
    return generate(seed)


def _wait_until_shown(address: str, account: Account, outcome: Outcome) -> float:
    if outcome.accepted_at is None:
        raise DemoFailed("the platform acknowledged nothing")

    async def wait(moment: datetime) -> float:
        async with client(address, account.key) as http:
            return await wait_until_fresh(http, account.org_id, moment)

    return asyncio.run(wait(outcome.accepted_at))


def _report(
    console: Console, address: str, account: Account, outcome: Outcome, waited: float
) -> None:
    rate = outcome.accepted / outcome.seconds
    console.print(
        f"\n{outcome.accepted:,} events accepted in {outcome.seconds:.1f} s ({rate:,.0f}/s),"
        f" {len(outcome.rejected)} rejected;"
        f" all of them visible {waited:.1f} s after the last acknowledgement.\n"
    )
    with httpx.Client(
        base_url=address, headers={"Authorization": f"Bearer {account.key}"}, timeout=30
    ) as http:
        for title, granularity, dimension in (
            ("By model", "all", "model"),
            ("By project", "all", "project_id"),
            ("By hour (UTC)", "hour", None),
        ):
            console.print(_table(http, account, title, granularity, dimension))


def _table(
    http: httpx.Client, account: Account, title: str, granularity: str, dimension: str | None
) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(title.removeprefix("By "), no_wrap=True)
    for name in ("Events", "Errors", "Unpriced", "Input", "Output", "Cache read", "Cache write"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Cost, USD", justify="right", no_wrap=True)
    now = datetime.now(UTC)
    params: dict[str, str | int] = {
        "org_id": account.org_id,
        "start": (now - timedelta(days=2)).isoformat(),
        "end": (now + timedelta(minutes=1)).isoformat(),
        "granularity": granularity,
        "page_size": 500,
    }
    if dimension is not None:
        params["group_by"] = dimension
    answer = http.get("/analytics/usage", params=params)
    if answer.is_error:
        raise DemoFailed(f"GET /analytics/usage: {answer.status_code} {answer.text}")
    body = answer.json()
    rows = body["rows"]
    if dimension is not None:
        rows.sort(key=lambda row: Decimal(row["cost_usd"]), reverse=True)
    for row in rows:
        label = row["start"][:16].replace("T", " ") if dimension is None else row[dimension]
        table.add_row(account.projects.get(label, label) or "(no model)", *_cells(row))
    table.add_section()
    table.add_row("Total", *_cells(body["totals"]), style="bold")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    counts = (
        "events",
        "errors",
        "unpriced_events",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
    )
    unpriced = row["unpriced_events"] and not Decimal(row["cost_usd"])
    cost = "unpriced" if unpriced else row["cost_usd"]
    return [*(f"{row[name]:,}" for name in counts), cost]


def _next_steps(console: Console, address: str, account: Account) -> None:
    project = next(iter(account.projects))
    event = (
        '{"timestamp": "\'$(date -u +%Y-%m-%dT%H:%M:%SZ)\'", "event_type": "api_call",'
        f' "model": "claude-sonnet-4-5", "user_id": "{account.user_id}",'
        f' "project_id": "{project}", "input_tokens": 1200, "output_tokens": 350}}'
    )
    lines = (
        "",
        f"Address:  {address}   (API page: {address}/docs)",
        f"Log in:   {account.email}   password: {account.password}",
        f"API key:  {account.key}",
        "",
        "Send one event:",
        f"curl -s {address}/v1/track -H 'Authorization: Bearer {account.key}'"
        f" -H 'Content-Type: application/json' -d '{event}'",
        "",
        "Read its cost (3,600,000 + 5,250,000 nano-dollars), a moment later:",
        f"curl -s '{address}/analytics/costs?granularity=all&user_id={account.user_id}'"
        f" -H 'Authorization: Bearer {account.key}'",
        "",
        "Next: README.md says how to send your own events; CONTRIBUTING.md how to extend it.",
    )
    for line in lines:
        # Whole lines, so that a terminal's width does not cut a command in two.
        console.out(line, highlight=False)


def _stay(platform: Platform) -> None:
    try:
        code = platform.process.wait()
    except KeyboardInterrupt:
        return
    raise PlatformEnded(f"code {code}:\n{platform.last_lines()}")
