"""Windows from a real broker into a real PostgreSQL, and what a deletion leaves."""

from __future__ import annotations

import pytest

from common.events.bus import Record
from common.events.ledger import RecordRefused
from services.analytics.consumer import WindowsConsumer
from services.analytics.store import RollupStore

pytestmark = pytest.mark.store


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80", b"nonsense", b"\xc1"])
async def test_a_record_that_is_no_window_is_refused_and_named(service_database, value):
    store = RollupStore(await service_database("analytics"), sources=1)
    consumer = WindowsConsumer(store, partitions=1)
    with pytest.raises(RecordRefused, match=r"usage\.windows/0 17-0"):
        await consumer.append(None, 0, [Record("usage.windows", 0, "17-0", "", value, {})])
