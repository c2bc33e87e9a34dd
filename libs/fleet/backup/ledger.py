"""What a command opens to look at the ledger beside its services: two databases and the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from common.database import Database
from common.events.bus import RETRY, Bus, retry_topic
from common.events.catalog import event_types
from common.events.drivers import bus_for
from common.events.ledger import Places
from common.settings import Settings
from fleet.access import database
from fleet.services import owners
from services.analytics.consumer import TOPIC as WINDOWS
from services.usage_tracker.domain.records import EVENTS_TOPIC as EVENTS

# Whom the broker keeps records of the ledger's topics for.
READERS = {EVENTS: "usage_tracker", WINDOWS: "analytics"}


@dataclass(frozen=True, slots=True)
class Ledger:
    """Both ends of ``usage.windows``, and the broker between them."""

    bus: Bus
    tracker: Database
    analytics: Database

    @property
    def events(self) -> Places:
        return Places(self.tracker, EVENTS)

    @property
    def windows(self) -> Places:
        return Places(self.analytics, WINDOWS)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger that the settings name, as the runtime roles of its services."""
    async with (
        database(settings, "usage_tracker", size=2) as tracker,
        database(settings, "analytics", size=2) as analytics,
    ):
        bus = bus_for(settings, telemetry=tracker.telemetry)
        try:
            await bus.start()
            yield Ledger(bus, tracker, analytics)
        finally:
            await bus.stop()


def told() -> list[str]:
    """Topics that tell what has happened, in the order in which they are published again."""
    topics = sorted({event.topic for event in event_types().values()} - READERS.keys())
    retries = [retry_topic(topic, owner.name) for topic in topics for owner in owners()]
    return topics + retries


def is_read(topic: str, topics: Iterable[str]) -> bool:
    """Whether services consume it; of what nobody does the broker keeps the last anyway."""
    return topic.endswith(RETRY) or any(
        other.startswith(f"{topic}.") and other.endswith(RETRY) for other in topics
    )
