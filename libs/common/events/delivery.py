"""What happens to a record that was read for a group: its handler, retries, the dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic, time

from prometheus_client import Gauge

from common.errors import DeadlineExceeded, Unavailable
from common.events.bus import (
    DEAD,
    SETTLED,
    Backoff,
    Bus,
    DeadLetter,
    Handler,
    Outgoing,
    Record,
    retry_topic,
)
from common.events.dead_letters import LetterCount, identity, letter_id
from common.events.origin import (
    ERROR,
    NOT_BEFORE,
    REPLAY_OF,
    WHEN,
    Origin,
    number,
    origin_of,
    own_headers,
)
from common.telemetry import Family, Telemetry
from common.telemetry.masking import masked

# Not the record's fault: worth trying until it works.
TRANSIENT = (Unavailable, DeadlineExceeded, ConnectionError, TimeoutError)

Pause = Callable[[float], Awaitable[None]]

_ERROR_LENGTH = 500
# Seconds between two looks at the number of dead letters.
_COUNT_EVERY = 15.0
# Seconds after which a handler that has not returned is taken to hang.
PATIENCE = 300.0
_logger = logging.getLogger(__name__)


class Delivery:
    """Brings the records of some topics to a group's handler, each until it is done with.

    A record that fails goes to the group's retry topic and comes back from there; where the
    subscription is ordered it stays in its place instead. A driver reads every topic that
    ``prepare`` names and hands each record to ``deliver``; the rest is the same for all of them.
    """

    def __init__(
        self,
        bus: Bus,
        handler: Handler,
        *,
        telemetry: Telemetry,
        topics: Sequence[str],
        group: str,
        ordered: bool = False,
        max_attempts: int = 5,
        backoff: Backoff | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.backoff = backoff or Backoff()
        self.group = group
        self.topics = tuple(topics)
        self.telemetry = telemetry
        self._bus = bus
        self._handler = handler
        self._ordered = ordered
        self._max_attempts = max_attempts
        self._patience = patience
        self._retried = {retry_topic(topic, group): topic for topic in topics}
        self._begun: dict[tuple[str, int], tuple[float, Record]] = {}
        self._letters = LetterCount(bus, self.topics, telemetry)
        self._counted_at = -_COUNT_EVERY
        self._lag = lag_gauge(telemetry)
        self._outcomes = telemetry.counter(
            "mindweave_bus_records_total",
            "Deliveries of records to handlers: done, retried in place, put off (retry) or dead.",
            ["topic", "group", "outcome"],
        )

    async def prepare(self) -> dict[str, int]:
        """Declare what the subscription needs; the topics to read with their partitions.

        Raises:
            TopicUnknown: nobody has declared one of the subscription's topics.
        """
        reads: dict[str, int] = {}
        for topic in self.topics:
            reads[topic] = await self._bus.partitions(topic)
        for topic, count in reads.items():
            await self._bus.declare(topic, count, [self.group])
            await self._bus.declare(topic + DEAD, 1)
        await self._bus.declare(SETTLED, 1)
        for topic in self._retried:
            await self._bus.declare(topic, 1, [self.group])
            reads[topic] = 1
        return reads

    async def measure(self) -> int:
        """Set the gauges of lag and of dead letters; returns the lag, retries included."""
        total = 0
        for topic in (*self.topics, *self._retried):
            lag = await self._bus.lag(topic, self.group)
            self._lag.of(topic=topic, group=self.group).set(lag)
            total += lag
        if monotonic() - self._counted_at >= _COUNT_EVERY:
            await self._letters.refresh()
            self._counted_at = monotonic()
        return total

    @property
    def stalled(self) -> str:
        """Which record's handler hangs; "" where none does."""
        late = monotonic() - self._patience
        return next((_place(record) for at, record in self._begun.values() if at < late), "")

    async def deliver(self, record: Record, pause: Pause = asyncio.sleep) -> None:
        """Returns when the record is done with: handled, put off or a dead letter.

        Args:
            record: as it was read, from one of the topics that ``prepare`` named.
            pause: how to wait; a wait may be ended by an exception.
        """
        keeps_place = self._ordered and record.topic not in self._retried
        origin = self._origin(record)
        if record.topic in self._retried:
            await self._until_due(record, pause)
        failures, waits = origin.attempts, 0
        while True:
            try:
                await self._attempt(record, origin, failures + waits + 1)
            except TRANSIENT as error:
                _logger.warning("%s waits: %s", _place(record), error, extra=_trace(record))
                waits += 1
                delay = self.backoff.delay(waits)
            except DeadLetter as error:
                origin = replace(origin, attempts=failures + 1)
                return await self._bury(record, origin, error, pause)
            except Exception as error:
                failures += 1
                _logger.exception(
                    "%s failed, attempt %d", _place(record), failures, extra=_trace(record)
                )
                origin = replace(origin, attempts=failures)
                if failures >= self._max_attempts:
                    return await self._bury(record, origin, error, pause)
                delay = self.backoff.delay(failures)
                if not keeps_place:
                    return await self._put_off(record, origin, delay, pause)
            else:
                return self._count(origin, "done")
            self._count(origin, "retried")
            await pause(delay)

    def _origin(self, record: Record) -> Origin:
        first = self._retried.get(record.topic)
        if first is None:
            return Origin(record.topic, record.partition, record.token, self.group)
        return replace(origin_of(record), topic=first, group=self.group)

    async def _until_due(self, record: Record, pause: Pause) -> None:
        left = number(record.headers, NOT_BEFORE, 0) / 1000 - time()
        if left > 0:
            await pause(min(left, self.backoff.limit))

    async def _attempt(self, record: Record, origin: Origin, attempt: int) -> None:
        shown = replace(
            record,
            topic=origin.topic,
            partition=origin.partition,
            token=origin.token,
            attempt=attempt,
        )
        hand = record.topic, record.partition
        self._begun[hand] = monotonic(), record
        try:
            with self.telemetry.continued(record.headers, f"{origin.topic} process"):
                await self._handler(shown)
        finally:
            del self._begun[hand]

    async def _put_off(self, record: Record, origin: Origin, delay: float, pause: Pause) -> None:
        due = {NOT_BEFORE: str(int((time() + delay) * 1000))}
        await self._pass_on(retry_topic(origin.topic, self.group), record, origin, due, pause)
        self._count(origin, "retry")

    async def _bury(self, record: Record, origin: Origin, error: Exception, pause: Pause) -> None:
        text = _described(error)
        told = {ERROR: text, WHEN: datetime.now(UTC).isoformat(timespec="milliseconds")}
        token = await self._pass_on(origin.topic + DEAD, record, origin, told, pause)
        self._count(origin, "dead")
        self.telemetry.log.error(
            "a record is a dead letter",
            letter=letter_id(origin.topic + DEAD, 0, token),
            topic=origin.topic,
            group=self.group,
            attempts=origin.attempts,
            error=text,
            **_trace(record),
            **identity(record.value),
        )

    async def _pass_on(
        self, topic: str, record: Record, origin: Origin, told: Mapping[str, str], pause: Pause
    ) -> str:
        """Publish the record elsewhere, as often as it takes; until then it stays in its place."""
        lineage = {k: v for k, v in record.headers.items() if k == REPLAY_OF}
        headers = {**own_headers(record.headers), **lineage, **origin.headers(), **told}
        outgoing = Outgoing(record.value, record.key, partition=0, headers=headers)
        failures = 0
        while True:
            try:
                (token,) = await self._bus.publish(topic, [outgoing])
            except Exception as unsent:
                failures += 1
                known = isinstance(unsent, TRANSIENT)
                _logger.warning(
                    "%s cannot go to %s yet: %s",
                    _place(record),
                    topic,
                    unsent,
                    exc_info=None if known else unsent,
                )
                await pause(self.backoff.delay(failures))
            else:
                return token

    def _count(self, origin: Origin, outcome: str) -> None:
        self._outcomes.of(topic=origin.topic, group=self.group, outcome=outcome).inc()


def lag_gauge(telemetry: Telemetry) -> Family[Gauge]:
    """How far behind a group is, by ``topic`` and ``group``."""
    return telemetry.gauge(
        "mindweave_bus_lag_records",
        "Records that a group has not committed.",
        ["topic", "group"],
    )


def _described(error: Exception) -> str:
    """The error in a header: short, without secrets, and text that every broker takes."""
    text = masked(f"{type(error).__name__}: {error}"[: 8 * _ERROR_LENGTH])[:_ERROR_LENGTH]
    return str(text).encode(errors="replace").decode()


def _trace(record: Record) -> dict[str, str]:
    """The trace that the record is of, as log lines name it: outside of its spans they lack it."""
    _, _, rest = record.headers.get("traceparent", "").partition("-")
    return {"trace_id": rest[:32]} if rest else {}


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition} {record.token}"
