"""What happens to a record that was read for a group: its handler, retries, the dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from prometheus_client import Gauge

from common.errors import DeadlineExceeded, Unavailable
from common.events.bus import DEAD, Backoff, Bus, DeadLetter, Handler, Outgoing, Record
from common.telemetry import Family, Telemetry

# Not the record's fault: worth trying until it works.
TRANSIENT = (Unavailable, DeadlineExceeded, ConnectionError, TimeoutError)

Pause = Callable[[float], Awaitable[None]]

_ERROR_LENGTH = 500
_logger = logging.getLogger(__name__)


class Delivery:
    """Brings records to a group's handler, each until it is done or a dead letter."""

    def __init__(
        self,
        bus: Bus,
        handler: Handler,
        *,
        telemetry: Telemetry,
        group: str,
        max_attempts: int,
        backoff: Backoff,
    ) -> None:
        self.backoff = backoff
        self.group = group
        self._bus = bus
        self._handler = handler
        self._max_attempts = max_attempts
        self.telemetry = telemetry
        self._outcomes = telemetry.counter(
            "mindweave_bus_records_total",
            "Deliveries of records to handlers: done, retried or dead.",
            ["topic", "group", "outcome"],
        )

    async def deliver(self, record: Record, pause: Pause = asyncio.sleep) -> None:
        """Returns when the record is done with.

        Args:
            record: as it was read.
            pause: how to wait between attempts.
        """
        attempt, refusals = 1, 0
        while True:
            try:
                await self._attempt(record, attempt)
            except TRANSIENT as error:
                _logger.warning("%s waits: %s", _place(record), error)
            except DeadLetter as error:
                _logger.warning("%s is refused: %s", _place(record), error)
                return await self._bury(record, error, attempt, pause)
            except Exception as error:
                _logger.exception("%s failed, attempt %d", _place(record), attempt)
                refusals += 1
                if refusals >= self._max_attempts:
                    return await self._bury(record, error, attempt, pause)
            else:
                return self._count(record, "done")
            self._count(record, "retried")
            await pause(self.backoff.delay(attempt))
            attempt += 1

    async def _attempt(self, record: Record, attempt: int) -> None:
        with self.telemetry.continued(record.headers, f"{record.topic} process"):
            await self._handler(replace(record, attempt=attempt))

    async def _bury(self, record: Record, error: Exception, attempt: int, pause: Pause) -> None:
        letter = Outgoing(
            record.value,
            record.key,
            headers={
                **record.headers,
                "origin-topic": record.topic,
                "origin-partition": str(record.partition),
                "origin-token": record.token,
                "origin-group": self.group,
                "error": f"{type(error).__name__}: {error}"[:_ERROR_LENGTH],
                "attempt": str(attempt),
            },
        )
        failures = 0
        while True:
            try:
                await self._bus.publish(record.topic + DEAD, [letter])
            except TRANSIENT as unsent:
                failures += 1
                _logger.warning("the dead letter of %s waits: %s", _place(record), unsent)
                await pause(self.backoff.delay(failures))
            else:
                return self._count(record, "dead")

    def _count(self, record: Record, outcome: str) -> None:
        self._outcomes.of(topic=record.topic, group=self.group, outcome=outcome).inc()


def lag_gauge(telemetry: Telemetry) -> Family[Gauge]:
    """How far behind a group is, by ``topic`` and ``group``."""
    return telemetry.gauge(
        "mindweave_bus_lag_records",
        "Records that a group has not committed.",
        ["topic", "group"],
    )


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition} {record.token}"
