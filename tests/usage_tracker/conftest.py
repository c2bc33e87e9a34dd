"""What the tests of usage_tracker share: events as they are recorded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from common.events.bus import Record
from common.events.envelope import PACKED_HEADERS, Envelope, pack
from services.usage_tracker.domain.judging import Row, microseconds
from services.usage_tracker.domain.records import EVENTS_TOPIC, events_data
from services.usage_tracker.domain.settling import Arrived

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
MakeArrived = Callable[..., Arrived]
MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def arrived() -> MakeArrived:
    """Makes an event that has arrived; every field may be given."""

    def make(received_at: datetime = NOW, api_key_id: UUID | None = None, **fields: Any) -> Arrived:
        row: dict[str, Any] = {
            "event_id": uuid4(),
            "org_id": UUID(int=1),
            "team_id": None,
            "at": NOW,
            "event_type": "api_call",
            "project_id": None,
            "user_id": None,
            "model": "claude-haiku-4-5",
            "status": "ok",
            "input_tokens": 1000,
            "output_tokens": 100,
            "cache_read_tokens": 0,
            "cache_write_5m_tokens": 0,
            "cache_write_1h_tokens": 0,
            "digest": b"the same digest!",
            **fields,
        }
        row = {k: v.bytes if isinstance(v, UUID) else v for k, v in row.items()}
        row["at"] = microseconds(row["at"])
        whole = Row(**{name: row.get(name) for name in Row._fields})
        key = api_key_id.bytes if api_key_id is not None else None
        return Arrived(whole, microseconds(received_at), key)

    return make


@pytest.fixture(scope="session")
def record() -> MakeRecord:
    """Makes a record of ``usage.events`` of events that arrived with one request."""

    def make(*events: Arrived, part: int = 0, number: int = 1) -> Record:
        first = events[0]
        data = events_data([e.row for e in events], first.received_at, first.api_key_id)
        envelope = Envelope(
            id=uuid4(),
            type=EVENTS_TOPIC,
            source="usage_tracker",
            timestamp=NOW,
            data=msgspec.msgpack.encode(data),
        )
        return Record(EVENTS_TOPIC, part, f"1-{number}", "", pack(envelope), PACKED_HEADERS)

    return make
