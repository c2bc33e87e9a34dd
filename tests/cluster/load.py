"""Reads and writes at a steady rate while something is done to the fleet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.running import demand, until
from tests.e2e.open_loop import Calls, reads_and_writes, steadily
from tests.e2e.tenant import Tenant, tenant

# Requests a second; a third of them writes.
RATE = 200.0
PROJECTS = 20
SETTLED_SECONDS = 10.0
EVENTS = "POST /v1/events"


@contextmanager
def under_load(address: str, rate: float = RATE) -> Iterator[Calls]:
    """Send requests from another thread while the block runs, each once.

    Raises:
        SystemExit: one fails before anything is done, or an accepted event is not counted once.
    """
    who = tenant(f"http://{address}", PROJECTS)
    calls: list[Calls] = []
    over = threading.Event()

    async def drive() -> None:
        async with steadily(address, rate, reads_and_writes(who)) as sent:
            calls.append(sent)
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(drive()), daemon=True)
    thread.start()
    try:
        until("requests are sent", lambda: calls)
        time.sleep(SETTLED_SECONDS)
        demand_no_failure(calls[0], "while nothing is done")
        yield calls[0]
    finally:
        over.set()
        thread.join()
    print(f"   {calls[0].sent} requests at {rate:.0f} a second, {told(calls[0])}", flush=True)
    accepted = calls[0].succeeded_of[EVENTS]
    until("accepted events are shown", lambda: counted(who) >= accepted)
    if not calls[0].failed:
        demand(counted(who) == accepted, (counted(who), "events counted of", accepted))


def demand_no_failure(calls: Calls, when: str) -> None:
    """Go on only where none has failed.

    Raises:
        SystemExit: one has.
    """
    demand(not calls.failed, f"each call succeeds {when}: {told(calls)}")


def counted(who: Tenant) -> int:
    """Events of the tenant that analytics shows."""
    answer = who.client.get("/analytics/usage", params={"granularity": "all"})
    return int(answer.json()["totals"]["events"]) if answer.is_success else -1


def told(calls: Calls) -> str:
    """How many failed, and how."""
    lines = [f"{count} {what}" for what, count in calls.failed.most_common(9)]
    return "\n   ".join([f"{calls.failed.total()} failed", *lines])
