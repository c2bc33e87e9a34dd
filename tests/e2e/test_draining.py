"""Processes that end in order under load: no call is lost, though no client sends one again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from fleet.process import Platform
from tests.common.waiting import eventually
from tests.e2e.faults.watching import until
from tests.e2e.open_loop import reads_and_writes, steadily
from tests.e2e.own import own_platform
from tests.e2e.processes import health, member, pid_of
from tests.e2e.tenant import tenant

pytestmark = pytest.mark.e2e

RATE = 200.0
ENDED = ("project-1", "gateway-1", "usage_tracker-serve-1", "project-2")


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
    async with steadily(
        platform.address.removeprefix("http://"), RATE, reads_and_writes(who)
    ) as calls:
        await eventually(lambda: calls.succeeded + calls.failed.total() > 10 * RATE)
        assert not calls.failed, ("though nothing drains", calls.failed.most_common(20))
        begun, before = time.perf_counter(), calls.sent
        for name in ENDED:
            await asyncio.to_thread(end_in_order, platform, name)
        sent, seconds = calls.sent - before, time.perf_counter() - begun
    assert not calls.failed, calls.failed.most_common(20)
    assert calls.succeeded == calls.sent
    assert sent > 0.9 * RATE * seconds
