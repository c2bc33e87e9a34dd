"""Clients that never give up: what gets no answer goes again, as it was or in other batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from time import monotonic
from typing import Any

import httpx

from tests.chaos.books import Books, WrongAnswer
from tests.chaos.load import Event, Source

# An answer that did not come in this time is taken for lost.
ANSWER_SECONDS = 5.0
_AGAIN = frozenset({429, 500, 502, 503, 504})
_LONGEST_PAUSE = 0.5
# Of the batches: those sent once more as they were, those with events of earlier ones among new
# ones, those with an id that is known with another body, and requests that go again otherwise.
_REPEATED, _MIXED, _CONFLICTING, _REBATCHED = 0.06, 0.12, 0.04, 0.5
_REMEMBERED = 2000


class NoAnswer(Exception):
    """A batch was not acknowledged for so long that the platform must be taken for stuck."""


class Gate:
    """Through which every request goes; while it is shut nothing is under way.

    Attributes:
        silence: the longest time, in seconds, in which nobody was answered since ``listen``.
    """

    def __init__(self) -> None:
        self.silence = 0.0
        self._heard_at = monotonic()
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    def listen(self) -> None:
        """Begin to measure silence."""
        self.silence, self._heard_at = 0.0, monotonic()

    def hear(self) -> None:
        """A request has been answered."""
        now = monotonic()
        self.silence, self._heard_at = max(self.silence, now - self._heard_at), now

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Let nobody in any more; begins when all who were inside have been answered."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()


class Stream:
    """One client of an organization: its next batch leaves when the one before is acknowledged.

    So which copy of an id came first is known.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        books: Books,
        source: Source,
        rng: Random,
        *,
        size: int = 10,
        patience: float = 120.0,
    ) -> None:
        """Args: ``patience`` in seconds, for one batch."""
        self._http = http
        self._books = books
        self._source = source
        self._rng = rng
        self._size = size
        self._patience = patience
        self._known: list[Event] = []

    async def run(self, gate: Gate, pause: float) -> None:
        """Send until cancelled.

        Raises:
            NoAnswer: a batch was not acknowledged in time.
            WrongAnswer: see ``Books.answered``.
        """
        while True:
            async with gate.passing():
                await self.deliver(self._next(), gate.hear)
            await asyncio.sleep(pause)

    async def deliver(self, batch: list[Event], hear: Callable[[], None]) -> None:
        """Send a batch until each of its events is answered, and now and then once more."""
        deadline = monotonic() + self._patience
        waiting, pause = [batch], 0.05
        while waiting:
            if monotonic() > deadline:
                raise NoAnswer(f"no acknowledgement in {self._patience:.0f} s")
            if await self._send(waiting[0]):
                hear()
                pause = 0.05
                del waiting[0]
            else:
                self._books.retries += 1
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                waiting = self._changed(waiting)
        if self._rng.random() < _REPEATED:
            await self.deliver(list(batch), hear)
        self._remember(batch)

    async def _send(self, batch: Sequence[Event]) -> bool:
        sent_at = datetime.now(UTC)
        self._books.attempt(batch, sent_at)
        try:
            answer = await self._http.post("/v1/events", json={"events": batch})
        except httpx.TransportError:
            return False
        if answer.status_code in _AGAIN:
            return False
        told: dict[str, Any] = answer.json()
        if answer.status_code != httpx.codes.ACCEPTED and "rejected" not in told:
            raise WrongAnswer(f"{answer.status_code}: {answer.text[:500]}")
        self._books.answered(batch, told, sent_at)
        return True

    def _changed(self, waiting: list[list[Event]]) -> list[list[Event]]:
        """What waits, in other batches, together with new events; or as it was."""
        if self._rng.random() >= _REBATCHED:
            return waiting
        events = [event for batch in waiting for event in batch]
        self._books.rebatched += len(events)
        events += self._source.fresh(2)
        self._rng.shuffle(events)
        half = self._rng.randrange(1, len(events))
        return [events[:half], events[half:]]

    def _next(self) -> list[Event]:
        batch = self._source.fresh(self._size)
        kind = self._rng.random()
        if self._known and kind < _MIXED:
            batch += self._rng.sample(self._known, min(5, len(self._known)))
        elif self._known and kind < _MIXED + _CONFLICTING:
            batch.append(self._source.conflicting(self._rng.choice(self._known)))
        elif kind > 1 - _CONFLICTING:
            batch.append(batch[0])
        self._rng.shuffle(batch)
        return batch

    def _remember(self, batch: Sequence[Event]) -> None:
        """Events of which copies may follow: those that were acknowledged, as they were first."""
        kept = self._books.acknowledged
        self._known += [e for e in batch if kept.get(e["event_id"]) is e]
        del self._known[:-_REMEMBERED]


@asynccontextmanager
async def client(address: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """Of the platform at ``http://HOST:PORT``, showing the key."""
    shown = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=address, headers=shown, timeout=ANSWER_SECONDS) as http:
        yield http
