"""How long the broker goes on keeping what the last backup needs beside it."""

from __future__ import annotations

from datetime import timedelta

from common.errors import Unavailable
from common.events.bus import BACKUPS, Bus, TopicUnknown
from common.periodic import Periodic
from common.telemetry import Telemetry
from services.usage_tracker.domain.records import EVENTS_TOPIC

_EVERY = timedelta(seconds=15)


class BackupRoom:
    """Shows how much may come before a restore of the last backup loses usage.

    Nothing is shown before the first backup, after the hold was ended, and on a broker that keeps
    records by their age.
    """

    def __init__(self, bus: Bus, telemetry: Telemetry) -> None:
        self._bus = bus
        self._gauge = telemetry.gauge(
            "mindweave_backup_room_ratio",
            "Share of a partition that is left before records go that the last backup needs.",
            ["topic"],
        )

    def periodic(self) -> Periodic:
        return Periodic("room for backups", self.measure, every=_EVERY)

    async def measure(self) -> None:
        """Show what the broker says; where it is away, what it said last."""
        try:
            room = await self._bus.room(EVENTS_TOPIC, BACKUPS)
        except (Unavailable, TopicUnknown):
            return
        if room is None:
            self._gauge.forget(topic=EVENTS_TOPIC)
        else:
            self._gauge.of(topic=EVENTS_TOPIC).set(room)
