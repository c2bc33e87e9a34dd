from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest
import xxhash

from common.events.envelope import Envelope, EventRefused, pack, unpack
from services.usage_tracker.domain.columns import Columns, columns_of
from services.usage_tracker.domain.judging import Row
from services.usage_tracker.domain.records import (
    EVENTS_TOPIC,
    UsageEvents,
    events_partition,
    windows_data,
    windows_partition,
)
from tests.usage_tracker.plain import Arrived, events_of

pytestmark = pytest.mark.unit


def packed(data: object) -> bytes:
    return pack(
        Envelope(
            id=uuid4(),
            type=EVENTS_TOPIC,
            source="usage_tracker",
            timestamp=datetime(2026, 11, 21, tzinfo=UTC),
            data=msgspec.msgpack.encode(data),
        )
    )


def test_the_fields_of_a_row_are_the_columns_of_a_record() -> None:
    assert Columns.__struct_fields__ == Row._fields


def test_a_record_gives_back_the_rows_that_were_packed(arrived: Callable[..., Arrived]) -> None:
    rows = [
        arrived(user_ref="jané", user_id=UUID(int=4), latency_us=12, metadata=b'{"a":1}').row,
        arrived(model=None, client_cost_nano=5, input_tokens=2**53, latency_us=0).row,
        arrived(session_id="s", request_id="a", input_tokens=0).row,
        arrived(session_id="s", request_id="b").row,
    ]
    key = uuid4().bytes
    for some in (rows, rows[:1], rows[2:]):
        sent = UsageEvents(1_700_000_000_000_000, key, columns_of(some))
        _, data = unpack(packed(sent), UsageEvents)

        assert events_of(data) == [Arrived(row, 1_700_000_000_000_000, key) for row in some]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", b"\0" * 8),
        ("event_id", b"\0" * 16),
        ("digest", b"\0" * 47),
        ("input_tokens", b"\0" * 21),
        ("input_tokens", 7),
        ("metadata", None),
        ("model", [["a", "b"], b""]),
        ("model", [["a", "b"], b"\0\0" * 4]),
        ("model", [["a", "b"], b"\2\0" * 3]),
        ("model", [[], b""]),
        ("model", [[1], b""]),
        ("org_id", [[None], b""]),
    ],
)
def test_columns_that_do_not_fit_each_other_are_no_record(
    arrived: Callable[..., Arrived], name: str, value: object
) -> None:
    whole = UsageEvents(0, None, columns_of([arrived().row for _ in range(3)]))
    data = msgspec.to_builtins(whole, builtin_types=(bytes,))
    data["columns"][name] = value

    with pytest.raises(EventRefused):
        unpack(packed(data), UsageEvents)


def test_the_partitions_are_hashes_that_others_can_compute() -> None:
    org, event = UUID(int=1), UUID(int=2)

    assert events_partition(org.bytes, event.bytes, 16) == (
        xxhash.xxh3_64_intdigest(bytes(15) + b"\x01" + bytes(15) + b"\x02") % 16
    )
    assert windows_partition(org, 16) == xxhash.xxh3_64_intdigest(bytes(15) + b"\x01") % 16


def test_a_windows_record_names_its_numbers_and_one_of_watermarks_has_none() -> None:
    assert windows_data(3, {"seq": b"567"}, {}) == {
        "source": 3,
        "columns": {"seq": b"567"},
        "watermarks": {},
        "sources": None,
    }
    assert windows_data(None, None, {0: 1, 1: 2}, (7, 2)) == {
        "source": None,
        "columns": None,
        "watermarks": {0: 1, 1: 2},
        "sources": (7, 2),
    }
