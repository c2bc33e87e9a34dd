"""Sends a workload through ``POST /v1/events`` until every batch is acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fleet.workload import Event

# Answers after which the same batch is sent again, unchanged.
_AGAIN = frozenset({429, 500, 502, 503, 504})


class ReplayFailed(Exception):
    """The platform refused a batch for good, or did not answer within the patience."""


@dataclass(slots=True)
class Outcome:
    """What was acknowledged; ``acknowledged`` holds each accepted event in order of answers."""

    accepted: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    accepted_at: datetime | None = None
    rejected: list[dict[str, Any]] = field(default_factory=list)
    acknowledged: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends batches in order, a few under way at once.

    Attributes:
        patience: seconds for which one batch is tried again while the platform is away.
        concurrency: batches under way at once; at most ``workload.REPEAT_DISTANCE``.
    """

    client: httpx.AsyncClient
    concurrency: int = 4
    patience: float = 60.0

    async def send(
        self, batches: Sequence[list[Event]], progress: Callable[[int], None] | None = None
    ) -> Outcome:
        """Send every batch; returns when the last one is acknowledged.

        Raises:
            ReplayFailed: a batch was refused whole, or not answered in time.
        """
        outcome = Outcome()
        begun = time.monotonic()
        waiting = iter(batches)

        async def work() -> None:
            for batch in waiting:
                await self._deliver(batch, outcome)
                if progress is not None:
                    progress(len(batch))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        outcome.seconds = time.monotonic() - begun
        return outcome

    async def _deliver(self, batch: list[Event], outcome: Outcome) -> None:
        deadline = time.monotonic() + self.patience
        pause = 0.05
        while True:
            outcome.requests += 1
            try:
                answer = await self.client.post("/v1/events", json={"events": batch})
            except httpx.TransportError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == httpx.codes.ACCEPTED:
                    self._note(batch, answer.json(), outcome)
                    return
                failure = f"{answer.status_code}: {answer.text[:500]}"
                if answer.status_code not in _AGAIN:
                    raise ReplayFailed(failure)
            if time.monotonic() > deadline:
                raise ReplayFailed(f"no acknowledgement in {self.patience:.0f} s, last: {failure}")
            outcome.retries += 1
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _note(self, batch: list[Event], answer: dict[str, Any], outcome: Outcome) -> None:
        refused = {item["index"] for item in answer["rejected"]}
        outcome.accepted += answer["accepted"]
        outcome.rejected += answer["rejected"]
        outcome.acknowledged += [e for i, e in enumerate(batch) if i not in refused]
        at = datetime.fromisoformat(answer["accepted_at"])
        outcome.accepted_at = max(at, outcome.accepted_at or at)


async def wait_until_fresh(
    client: httpx.AsyncClient, org_id: str, moment: datetime, patience: float = 60.0
) -> float:
    """Wait until analytics shows all that was accepted before ``moment``; returns the seconds.

    Raises:
        ReplayFailed: ``fresh_until`` did not pass the moment in time.
    """
    begun = time.monotonic()
    while True:
        answer = await client.get(
            "/analytics/usage", params={"org_id": org_id, "granularity": "all"}
        )
        answer.raise_for_status()
        fresh = answer.json()["fresh_until"]
        if fresh is not None and datetime.fromisoformat(fresh) > moment:
            return time.monotonic() - begun
        if time.monotonic() - begun > patience:
            raise ReplayFailed(f"fresh_until stands at {fresh} after {patience:.0f} s")
        await asyncio.sleep(0.1)


def send_with_progress(
    address: str, key: str, batches: Sequence[list[Event]], console: Console
) -> Outcome:
    """Send the batches with the key, a progress bar on the console.

    Raises:
        ReplayFailed: see ``Sender.send``.
    """
    total = sum(len(batch) for batch in batches)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("Replaying", total=total)

        async def run() -> Outcome:
            async with client(address, key) as http:
                return await Sender(http).send(batches, lambda n: progress.advance(bar, n))

        return asyncio.run(run())


def client(address: str, key: str) -> httpx.AsyncClient:
    """An HTTP client of the platform at ``http://HOST:PORT`` that shows the key or token."""
    return httpx.AsyncClient(
        base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30.0
    )
