from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from common.events.bus import BACKUPS, Outgoing
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from services.usage_tracker.consumer import backups
from services.usage_tracker.consumer.backups import BackupRoom

pytestmark = pytest.mark.bus


async def test_the_room_that_is_left_is_shown_once_there_was_a_backup(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"topic-{uuid4().hex[:12]}"
    monkeypatch.setattr(backups, "EVENTS_TOPIC", topic)
    telemetry = silent_telemetry("usage_tracker")
    labels = {"service": "usage_tracker", "topic": topic}
    shown = partial(
        telemetry.metrics.registry.get_sample_value, "mindweave_backup_room_ratio", labels
    )
    bus = RedisStreamsBus(valkey.url, telemetry=telemetry, max_records=4)
    room = BackupRoom(bus, telemetry)
    await room.measure()
    await bus.declare(topic, 1, ["ledger"])
    await room.measure()
    assert shown() is None
    await bus.declare(topic, 1, [BACKUPS])
    await bus.publish(topic, [Outgoing(b"x")])
    await room.measure()
    assert shown() == 0.75
    await bus.forget(topic, BACKUPS)
    await room.measure()
    assert shown() is None
    await bus.declare(topic, 1, [BACKUPS])
    await room.measure()
    await bus.stop()
    gone = RedisStreamsBus("redis://127.0.0.1:1", telemetry=telemetry)
    await BackupRoom(gone, telemetry).measure()
    assert shown() == 0.75
    await gone.stop()
