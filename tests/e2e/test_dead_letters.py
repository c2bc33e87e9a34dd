"""An event that a consumer cannot handle: retried, buried, listed, shown, replayed, discarded."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import httpx
import pytest

from common.clock import SystemClock
from common.events.bus import Bus, Outgoing
from common.events.dead_letters import DeadLetters
from common.events.drivers import bus_for
from common.events.envelope import encode, envelope_for
from common.testing import silent_telemetry
from fleet.events import broker_settings
from fleet.process import Platform
from mindweave.account.v1.events_pb2 import OrgDeleted
from tests.e2e.own import own_platform
from tests.e2e.processes import metric
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

TOPIC = "platform.events"
PATIENCE = 90.0

T = TypeVar("T")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with own_platform(tmp_path_factory.mktemp("platform") / "data") as platform:
        yield platform


@pytest.fixture(scope="module")
def who(platform: Platform) -> Tenant:
    return tenant(platform.address)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def events(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fleet", "events", *arguments]
    command += ["--data", str(platform.data)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def letters(platform: Platform) -> list[dict[str, Any]]:
    listed = events(platform, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def on_bus(platform: Platform, work: Callable[[Bus], Awaitable[T]]) -> T:
    """Do something on the platform's own broker."""

    async def run() -> T:
        bus = bus_for(broker_settings(platform.data), telemetry=silent_telemetry())
        await bus.start()
        try:
            return await work(bus)
        finally:
            await bus.stop()

    return asyncio.run(run())


def publish(platform: Platform, value: bytes) -> None:
    on_bus(platform, lambda bus: bus.publish(TOPIC, [Outgoing(value)]))


def groups_waiting(platform: Platform) -> list[str]:
    """Of the letters that wait: the group that failed."""

    async def look(bus: Bus) -> list[str]:
        dead_letters = DeadLetters(bus, telemetry=silent_telemetry(), clock=SystemClock())
        return sorted([letter.origin.group async for letter in dead_letters.waiting(TOPIC)])

    return on_bus(platform, look)


def in_projects(platform: Platform, statement: str, *arguments: object) -> Any:
    """What a statement answers in the database of the service ``project``."""

    async def ask() -> Any:
        dsn = platform.run()["database_url"]
        connection = await asyncpg.connect(dsn, database="project")
        answer = await connection.fetchval(statement, *arguments)
        await connection.close()
        return answer

    return asyncio.run(ask())


def measured(platform: Platform, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels, over all processes."""
    return sum(metric(process, name, **labels) for process in platform.run()["processes"])


def test_an_event_that_fails_while_a_consumer_is_broken_takes_effect_once_it_is_replayed(
    platform: Platform, who: Tenant
) -> None:
    org = UUID(who.org_id)
    event = envelope_for(OrgDeleted(org_id=str(org)), "account", SystemClock(), org_id=org)
    projects = "SELECT count(*) FROM projects WHERE org_id = $1"
    assert in_projects(platform, projects, org) > 0
    in_projects(platform, "ALTER TABLE orgs RENAME TO orgs_mislaid")
    publish(platform, encode(event))
    eventually(lambda: groups_waiting(platform) == ["project"])

    (letter,) = letters(platform)
    assert letter["event_id"] == str(event.id)
    assert letter["attempts"] == 5
    assert letter["error"].startswith("UndefinedTableError: ")
    retried = {"group": "project", "topic": TOPIC, "outcome": "retry"}
    assert measured(platform, "mindweave_bus_records_total", **retried) == 4
    assert letter["id"] in events(platform, "list").stdout
    shown = events(platform, "show", letter["id"]).stdout
    assert "org.deleted" in shown
    assert str(org) in shown
    waiting = {"service": "project", "topic": TOPIC, "state": "waiting"}
    eventually(lambda: measured(platform, "mindweave_dead_letters", **waiting) == 1)

    in_projects(platform, "ALTER TABLE orgs_mislaid RENAME TO orgs")
    replayed = events(platform, "replay", letter["id"], "--by", "ada")
    assert replayed.stdout == f"replayed {letter['id']} to project\n", replayed.stderr
    eventually(lambda: in_projects(platform, projects, org) == 0)
    assert groups_waiting(platform) == []
    again = events(platform, "replay", letter["id"])
    assert again.returncode == 1
    assert "was replayed by ada" in again.stderr
    eventually(lambda: measured(platform, "mindweave_dead_letters", **waiting) == 0)


def test_an_event_that_no_consumer_understands_is_buried_by_each_and_discarded(
    platform: Platform,
) -> None:
    publish(platform, b'{"not": "an envelope"}')
    everyone = ["analytics", "auth", "project", "usage_tracker"]
    eventually(lambda: groups_waiting(platform) == everyone)
    assert httpx.get(f"{platform.address}/health/ready").status_code == 200
    first, *rest = letters(platform)
    assert {each["attempts"] for each in (first, *rest)} == {1}

    assert events(platform, "replay", first["id"]).returncode == 0
    eventually(lambda: groups_waiting(platform) == everyone)
    *_, last = letters(platform)
    assert last["replay_of"] == first["id"]
    discarded = events(platform, "discard", "--topic", TOPIC, "--all", "--reason", "sent by a test")
    assert discarded.stdout.endswith("4 discarded.\n")
    assert groups_waiting(platform) == []
