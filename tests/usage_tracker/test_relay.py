"""The relay of ``usage.windows`` when it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast
from uuid import UUID

import pytest

from common.clock import SystemClock
from common.events.bus import Bus, Outgoing
from common.testing import silent_telemetry
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.relay import WindowsRelay
from services.usage_tracker.store import UsageStore
from tests.usage_tracker.conftest import layouts_of

pytestmark = pytest.mark.unit


class Backlog:
    """Deltas without end."""

    def __init__(self) -> None:
        self._numbers = count(1)

    async def unsent(self, part: int, limit: int) -> dict[str, list[Any]]:
        numbers = [next(self._numbers) for _ in range(limit)]
        empty: dict[str, list[Any]] = {
            name: [None] * limit for name in ("model", "provider", "reason")
        }
        return {"seq": numbers, "org_id": [UUID(int=1).bytes] * limit, **empty}

    async def sent_up_to(self, part: int) -> int:
        return 0

    async def sent(self, part: int, seq: int) -> None:
        await asyncio.sleep(0)

    async def note_watermarks(self, watermarks: Mapping[int, datetime]) -> None: ...


class Taking:
    """A bus that takes everything."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.taken = asyncio.Event()

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        self.values += [record.value for record in records]
        self.taken.set()
        return ["1-1" for _ in records]


class CaughtUp:
    def held(self) -> list[int]:
        return [0, 1]

    def caught_up_at(self, part: int) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC)


async def test_a_stop_does_not_wait_for_a_backlog_and_leaves_its_watermark_unsent() -> None:
    bus = Taking()
    relay = WindowsRelay(
        bus=cast(Bus, bus),
        store=cast(UsageStore, Backlog()),
        progress=CaughtUp(),
        clock=SystemClock(),
        telemetry=silent_telemetry(),
        partitions=2,
        skew=timedelta(),
        layouts=layouts_of(2),
        recent=RecentDeltas(),
    )
    await relay.start()
    await bus.taken.wait()
    async with asyncio.timeout(5):
        await relay.stop()
    assert not any(b"watermarks\x81" in value for value in bus.values)
