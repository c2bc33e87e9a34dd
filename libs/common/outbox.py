"""The relay: sends what committed transactions left in the outbox, in order, at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Protocol

import asyncpg

from common.background import PartStatus
from common.database import Connection, Database
from common.database.connection import using
from common.errors import Unavailable
from common.events.bus import Backoff, Outgoing
from common.events.worker import cut

_CHANNEL = "mindweave_outbox"
# Seconds after which a relay asks again whether the one that sends is gone.
_STANDBY = 1.0
# The age is measured over the oldest row, the lag counted up to this many.
_MOST_COUNTED = 10_000


class Publisher(Protocol):
    """What the relay needs of a bus."""

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]: ...


@dataclass(slots=True)
class _Blocked:
    """A topic that took nothing, so many times in a row, and when it is tried again."""

    failures: int
    until: float


class Relay:
    """Sends a service's outbox; of several, the one that holds an advisory lock.

    Rows go in the order of their ids and are deleted after the broker's acknowledgement. A relay
    that ends in between sends them again, with the same envelope ids. A topic that takes nothing
    waits, the others go on.
    """

    name = "outbox"

    def __init__(
        self,
        db: Database,
        bus: Publisher,
        *,
        batch: int = 200,
        poll: float = 1.0,
        patience: float = 5.0,
        backoff: Backoff | None = None,
    ) -> None:
        """A relay between a service's database and the bus.

        Args:
            db: the service's.
            bus: every topic must have been declared there.
            batch: rows sent at once.
            poll: seconds after which the outbox is read though nobody has notified.
            patience: seconds that ``stop`` leaves the batch at hand.
            backoff: between two attempts at a broker or a database that is down.
        """
        self._db = db
        self._bus = bus
        self._batch = batch
        self._poll = poll
        self._patience = patience
        self._backoff = backoff or Backoff(limit=5.0)
        self._blocked: dict[str, _Blocked] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._state = "stopped"
        self._lag: int | None = None
        self._measured = 0.0
        self._age = db.telemetry.gauge(
            "mindweave_outbox_age_seconds", "Age of the oldest message that is not sent yet."
        ).of()
        self._waiting = db.telemetry.gauge(
            "mindweave_outbox_messages", "Messages that are not sent yet, counted up to 10,000."
        ).of()
        self._sent = db.telemetry.counter(
            "mindweave_outbox_sent_total", "Messages that the broker has acknowledged.", ["topic"]
        )

    async def start(self) -> None:
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name=f"{self._db.name} outbox")

    async def stop(self) -> None:
        """Finish the batch at hand; what is left is sent after the next start."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._patience)
            await cut(self._task)
        self._state = "stopped"

    def status(self) -> PartStatus:
        """Ready also while the broker is down: the outbox takes what is published."""
        waiting = ", ".join(sorted(self._blocked))
        running = self._task is not None and not self._task.done()
        return PartStatus(
            ready=running and self._state != "no database",
            detail=f"{self._state}; waits to send {waiting}" if waiting else self._state,
            lag=self._lag,
            live=self._task is None or running,
        )

    async def _run(self) -> None:
        log = self._db.telemetry.log
        failures = 0
        while not self._stopping:
            try:
                connection = await self._db.connect()
                failures = 0
                await self._serve_on(connection)
            except Unavailable as error:
                self._state = "no database"
                log.warning("the outbox waits for its database", error=str(error))
            except Exception:
                self._state = "failing"
                log.exception("the outbox cannot be read")
            failures += 1
            await self._rest(self._backoff.delay(failures))

    async def _serve_on(self, connection: Connection) -> None:
        try:
            with using(connection):
                await self._serve(connection)
        finally:
            if not connection.is_closed():
                connection.terminate()

    async def _serve(self, connection: Connection) -> None:
        connection.add_termination_listener(self._notified)
        while not self._stopping and not await self._lead(connection):
            self._state = "standby"
            await self._measure(connection)
            await self._rest(min(self._poll, _STANDBY))
        await connection.add_listener(_CHANNEL, self._notified)
        self._state = "sending"
        while not self._stopping:
            self._wake.clear()
            found = await self._send(connection)
            if not found or monotonic() - self._measured > self._poll:
                await self._measure(connection)
            if not found:
                await self._sleep(self._pause())

    async def _lead(self, connection: Connection) -> bool:
        held: bool = await connection.fetchval(
            "SELECT pg_try_advisory_lock(hashtextextended('mindweave.outbox', 0))"
        )
        return held

    async def _send(self, connection: Connection) -> bool:
        """Send the oldest rows of the topics that do not wait; False where there were none."""
        now = monotonic()
        rows = await connection.fetch(
            """
            SELECT id, topic, key, value, headers FROM outbox
            WHERE topic <> ALL($1::text[]) ORDER BY id LIMIT $2
            """,
            [topic for topic, blocked in self._blocked.items() if blocked.until > now],
            self._batch,
        )
        by_topic: dict[str, list[asyncpg.Record]] = {}
        for row in rows:
            by_topic.setdefault(row["topic"], []).append(row)
        for topic, oldest in by_topic.items():
            await self._send_topic(connection, topic, oldest)
        return bool(rows)

    async def _send_topic(
        self, connection: Connection, topic: str, rows: list[asyncpg.Record]
    ) -> None:
        blocked = self._blocked.get(topic)
        if blocked is not None:
            # Fewer at a time go where more have no room.
            rows = rows[: max(1, self._batch >> blocked.failures)]
        try:
            await self._bus.publish(
                topic, [Outgoing(r["value"], key=r["key"], headers=r["headers"]) for r in rows]
            )
        except Unavailable as error:
            self._block(topic)
            self._db.telemetry.log.warning("the outbox waits", topic=topic, error=str(error))
            return
        except Exception:
            self._block(topic)
            self._db.telemetry.log.exception("the outbox waits", topic=topic)
            return
        await connection.execute(
            "DELETE FROM outbox WHERE id = ANY($1::bigint[])", [row["id"] for row in rows]
        )
        self._blocked.pop(topic, None)
        self._sent.of(topic=topic).inc(len(rows))

    def _block(self, topic: str) -> None:
        blocked = self._blocked.get(topic)
        failures = blocked.failures + 1 if blocked else 1
        self._blocked[topic] = _Blocked(failures, monotonic() + self._backoff.delay(failures))

    async def _measure(self, connection: Connection) -> None:
        row = await connection.fetchrow(
            """
            SELECT (SELECT created_at FROM outbox ORDER BY id LIMIT 1) AS oldest,
                (SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS waiting) AS lag
            """,
            _MOST_COUNTED,
        )
        self._measured = monotonic()
        if row is not None:
            self._lag = row["lag"]
            self._waiting.set(row["lag"])
            age = self._db.clock.now() - row["oldest"] if row["oldest"] else timedelta()
            self._age.set(max(0.0, age.total_seconds()))

    def _pause(self) -> float:
        """Seconds until there may be something to do though nobody notifies."""
        times = [blocked.until - monotonic() for blocked in self._blocked.values()]
        return max(0.01, min([self._poll, *times]))

    async def _rest(self, seconds: float) -> None:
        """Sleep whatever has been notified before; only ``stop`` cuts it short."""
        self._wake.clear()
        if not self._stopping:
            await self._sleep(seconds)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _notified(self, *_: object) -> None:
        self._wake.set()
