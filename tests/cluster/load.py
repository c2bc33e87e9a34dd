"""Reads and writes at a steady rate while something is done to the fleet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

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
    counted_once(who, calls[0], datetime.now(UTC))


def counted_once(who: Tenant, calls: Calls, ended: datetime) -> None:
    """Wait until analytics has all that was accepted; an event of a failed call may be among it.

    Raises:
        SystemExit: one is missing, or counted twice.
    """
    until("analytics has seen all events", lambda: _usage(who)[1] > ended)
    counted, accepted = _usage(who)[0], calls.succeeded_of[EVENTS]
    unknown = sum(count for what, count in calls.failed.items() if what.startswith(EVENTS))
    demand(accepted <= counted <= accepted + unknown, (counted, "events counted of", accepted))


def _usage(who: Tenant) -> tuple[int, datetime]:
    """The tenant's events that analytics shows, and until when it has all."""
    answer = who.client.get("/analytics/usage", params={"granularity": "all"})
    if not answer.is_success:
        return 0, datetime.min.replace(tzinfo=UTC)
    said = answer.json()
    return int(said["totals"]["events"]), datetime.fromisoformat(said["fresh_until"])


def demand_no_failure(calls: Calls, when: str) -> None:
    """Go on only where none has failed.

    Raises:
        SystemExit: one has.
    """
    demand(not calls.failed, f"each call succeeds {when}: {told(calls)}")


def told(calls: Calls) -> str:
    """How many failed, and how."""
    lines = [f"{count} {what}" for what, count in calls.failed.most_common(9)]
    return "\n   ".join([f"{calls.failed.total()} failed", *lines])
