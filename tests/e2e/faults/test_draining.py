"""Processes that end in order under load: no call is lost, though no client sends one again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest

from fleet.process import Platform
from tests.e2e.faults.open_loop import Request, steadily
from tests.e2e.faults.watching import until
from tests.e2e.processes import health, member, pid_of
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

RATE = 200.0
ENDED = ("project-1", "gateway-1", "usage_tracker-serve-1", "project-2")


def requests_of(who: Tenant) -> list[Request]:
    """Four reads and two writes."""
    session = {"Authorization": f"Bearer {who.owner.tokens['access_token']}"}
    key = {"Authorization": f"Bearer {who.key['key']}"}

    def read(path: str) -> Request:
        return lambda http: http.build_request("GET", path, headers=session)

    def rename(http: httpx.AsyncClient) -> httpx.Request:
        body = {"name": f"Name {uuid4()}"}
        path = f"/projects/{who.projects[uuid4().int % len(who.projects)]}"
        return http.build_request("PATCH", path, headers=session, json=body)

    def send(http: httpx.AsyncClient) -> httpx.Request:
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "project_id": who.projects[0],
        }
        return http.build_request("POST", "/v1/events", headers=key, json={"events": [event]})

    first, second, *_ = who.projects
    return [
        read(f"/projects/{first}"),
        rename,
        read(f"/orgs/{who.org_id}"),
        read(f"/projects?org_id={who.org_id}"),
        send,
        read(f"/projects/{second}"),
    ]


def end_in_order(platform: Platform, name: str) -> None:
    """SIGTERM; returns when the supervisor has another one running that is ready."""
    pid = pid_of(platform, name)
    os.kill(pid, signal.SIGTERM)
    until(lambda: pid_of(platform, name) not in (0, pid))
    until(lambda: health(member(platform, name), "ready") == 200)


async def test_two_hundred_requests_a_second_lose_nothing_when_processes_drain(
    platform: Platform,
) -> None:
    who = await asyncio.to_thread(tenant, platform.address, 20)
    async with steadily(platform.address, RATE, requests_of(who)) as calls:
        begun = time.perf_counter()
        for name in ENDED:
            await asyncio.to_thread(end_in_order, platform, name)
        sent, seconds = calls.sent, time.perf_counter() - begun
    assert calls.failed == []
    assert calls.answered == calls.sent
    assert sent > 0.9 * RATE * seconds
