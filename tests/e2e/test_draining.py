"""Processes that end in order under load: no call is lost, though no client sends one again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from fleet.process import Platform
from tests.common.waiting import eventually
from tests.e2e.faults.watching import until
from tests.e2e.open_loop import Request, steadily
from tests.e2e.own import own_platform
from tests.e2e.processes import health, member, pid_of
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

RATE = 200.0
ENDED = ("project-1", "gateway-1", "usage_tracker-serve-1", "project-2")


def requests_of(who: Tenant) -> list[Request]:
    """Four reads and two writes of each project."""
    session, key = who.owner.tokens["access_token"], who.key["key"]

    def renamed() -> dict[str, str]:
        return {"name": f"Name {uuid4()}"}

    def events() -> dict[str, Any]:
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "project_id": who.projects[0],
        }
        return {"events": [event]}

    def reads(project: str, other: str) -> list[Request]:
        return [
            Request("GET", f"/projects/{project}", session),
            Request("GET", other, session),
        ]

    return [
        request
        for project in who.projects
        for request in (
            *reads(project, f"/orgs/{who.org_id}"),
            Request("PATCH", f"/projects/{project}", session, renamed),
            *reads(project, f"/projects?org_id={who.org_id}"),
            Request("POST", "/v1/events", key, events),
        )
    ]


def end_in_order(platform: Platform, name: str) -> None:
    """SIGTERM; returns when the supervisor has another one running that is ready."""
    pid = pid_of(platform, name)
    os.kill(pid, signal.SIGTERM)
    until(lambda: pid_of(platform, name) not in (0, pid))
    until(lambda: health(member(platform, name), "ready") == 200)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two of each that ends."""
    options = [part for name in ("project", "gateway") for part in ("--scale", f"{name}=2")]
    with own_platform(tmp_path_factory.mktemp("draining"), layout="up", options=options) as found:
        yield found


async def test_two_hundred_requests_a_second_lose_nothing_when_processes_drain(
    platform: Platform,
) -> None:
    who = await asyncio.to_thread(tenant, platform.address, 20)
    async with steadily(platform.address.removeprefix("http://"), RATE, requests_of(who)) as calls:
        await eventually(lambda: calls.succeeded + calls.failed.total() > 10 * RATE)
        assert not calls.failed, ("though nothing drains", calls.failed.most_common(20))
        begun, before = time.perf_counter(), calls.sent
        for name in ENDED:
            await asyncio.to_thread(end_in_order, platform, name)
        sent, seconds = calls.sent - before, time.perf_counter() - begun
    assert not calls.failed, calls.failed.most_common(20)
    assert calls.succeeded == calls.sent
    assert sent > 0.9 * RATE * seconds
