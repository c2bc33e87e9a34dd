"""The columns come to what settling event by event comes to, to the nano-dollar."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.settling import First, settle
from tests.usage_tracker import plain
from tests.usage_tracker.plain import Arrived

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
DAY = timedelta(days=1)
IDENTITY_US = 8 * DAY // timedelta(microseconds=1)


def ids(*numbers: int) -> st.SearchStrategy[UUID | None]:
    return st.sampled_from([None, *(UUID(int=n) for n in numbers)])


TOKENS = st.sampled_from([0, 1, 3, 200_001, 2**40, 2**40 + 1, 2**53]) | st.integers(0, 10**6)
EVENTS = st.fixed_dictionaries(
    {
        "event_id": st.integers(1, 12).map(lambda n: UUID(int=n)),
        "org_id": st.sampled_from([UUID(int=1), UUID(int=2)]),
        "digest": st.sampled_from([b"a" * 16, b"b" * 16]),
        "received_at": st.sampled_from([NOW - 9 * DAY, NOW - 8 * DAY, NOW - DAY, NOW]),
        "at": st.sampled_from([NOW, NOW - 250 * DAY])
        | st.integers(0, 10_000).map(
            lambda minutes: NOW - timedelta(minutes=minutes, seconds=minutes % 7)
        ),
        "api_key_id": ids(7, 8),
        "project_id": ids(3),
        "team_id": ids(4),
        "user_id": ids(5, 6),
        "user_ref": st.sampled_from([None, "jan"]),
        "model": st.sampled_from(
            [
                *(None, "claude-haiku-4-5", "claude-sonnet-4-5", "gemini-2.5-pro", "acme-13b"),
                *("deepseek-chat", "deepseek-v4-pro", "gpt-5-mini", "o1-pro", "claude-opus-4-6"),
            ]
        ),
        "provider": st.sampled_from([None, "anthropic"]),
        "service_tier": st.sampled_from([None, "batch", "flex"]),
        "status": st.sampled_from(["ok", "error"]),
        "tool": st.sampled_from([None, "search"]),
        "request_id": st.none() | st.text("ab", min_size=1, max_size=3),
        "metadata": st.sampled_from([None, b"{}", '{"a":"é"}'.encode()]),
        "latency_us": st.none() | st.integers(0, 10**9),
        "client_cost_nano": st.none() | st.integers(0, 10**18),
        "input_tokens": TOKENS,
        "output_tokens": TOKENS,
        "cache_read_tokens": TOKENS,
        "cache_write_5m_tokens": TOKENS,
        "cache_write_1h_tokens": TOKENS,
    }
)
KNOWN = st.dictionaries(
    st.tuples(st.integers(1, 2), st.integers(1, 12)).map(
        lambda pair: (UUID(int=pair[0]).bytes, UUID(int=pair[1]).bytes)
    ),
    st.builds(
        First,
        st.sampled_from([b"a" * 16, b"b" * 16]),
        st.sampled_from([NOW - 9 * DAY, NOW - DAY]).map(lambda at: int(at.timestamp() * 10**6)),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.bundled()


@settings(max_examples=120, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=40), KNOWN)
def test_columns_settle_as_events_do_one_by_one(
    arrived: Callable[..., Arrived],
    book: PriceBook,
    events: list[dict[str, Any]],
    known: dict[tuple[bytes, bytes], First],
) -> None:
    came = [arrived(**event) for event in events]

    found = plain.plain(settle(plain.batch_of(came), known, book, IDENTITY_US))
    wanted = plain.settle(came, known, book, IDENTITY_US)

    assert found.accepted == wanted.accepted
    assert found.priced == wanted.priced
    assert (found.duplicates, found.conflicts) == (wanted.duplicates, dict(wanted.conflicts))
    assert found.unpriced == wanted.unpriced
    assert [(d.key._replace(alone=-1), d.sums, d.latencies) for d in found.deltas] == [
        (d.key._replace(alone=-1), d.sums, d.latencies) for d in wanted.deltas
    ]
