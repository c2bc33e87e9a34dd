from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest
import xxhash

from common.events.envelope import Envelope, EventRefused, pack, unpack
from services.usage_tracker.domain.records import (
    EVENTS_TOPIC,
    UsageEvents,
    events_data,
    events_partition,
    windows_data,
    windows_partition,
)
from services.usage_tracker.domain.settling import Arrived

pytestmark = pytest.mark.unit


def packed(data: dict[str, object]) -> bytes:
    return pack(
        Envelope(
            id=uuid4(),
            type=EVENTS_TOPIC,
            source="usage_tracker",
            timestamp=datetime(2026, 11, 21, tzinfo=UTC),
            data=msgspec.msgpack.encode(data),
        )
    )


def test_a_record_gives_back_the_rows_that_were_packed(arrived: Callable[..., Arrived]) -> None:
    rows = [
        arrived(user_ref="jané", user_id=UUID(int=4), latency_us=12, metadata=b'{"a":1}').row,
        arrived(model=None, client_cost_nano=5).row,
    ]
    key = uuid4().bytes
    _, data = unpack(packed(events_data(rows, 1_700_000_000_000_000, key)), UsageEvents)

    assert list(data.rows()) == rows
    assert (data.received_at, data.api_key_id) == (1_700_000_000_000_000, key)


def test_columns_of_different_lengths_are_no_record(arrived: Callable[..., Arrived]) -> None:
    data = events_data([arrived().row], 0, None)
    columns = data["columns"]
    assert isinstance(columns, dict)

    with pytest.raises(EventRefused):
        unpack(packed({**data, "columns": {**columns, "at": []}}), UsageEvents)


@pytest.mark.parametrize("value", ["7", 1.5, None])
def test_a_column_of_another_type_is_no_record(
    arrived: Callable[..., Arrived], value: object
) -> None:
    data = events_data([arrived().row], 0, None)
    columns = data["columns"]
    assert isinstance(columns, dict)

    with pytest.raises(EventRefused):
        unpack(packed({**data, "columns": {**columns, "input_tokens": [value]}}), UsageEvents)


def test_the_partitions_are_hashes_that_others_can_compute() -> None:
    org, event = UUID(int=1), UUID(int=2)

    assert events_partition(org.bytes, event.bytes, 16) == (
        xxhash.xxh3_64_intdigest(bytes(15) + b"\x01" + bytes(15) + b"\x02") % 16
    )
    assert windows_partition(org, 16) == xxhash.xxh3_64_intdigest(bytes(15) + b"\x01") % 16


def test_a_windows_record_names_its_numbers_and_one_of_watermarks_has_none() -> None:
    assert windows_data(3, {"seq": [5, 6, 9]}, {}) == {
        "source": 3,
        "first": 5,
        "last": 9,
        "columns": {"seq": [5, 6, 9]},
        "watermarks": {},
    }
    assert windows_data(None, None, {0: 1, 1: 2}) == {
        "source": None,
        "first": None,
        "last": None,
        "columns": None,
        "watermarks": {0: 1, 1: 2},
    }
