from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.usage_tracker.domain.pricing import Cost, PriceBook
from services.usage_tracker.domain.settling import First, settle
from tests.usage_tracker.plain import Arrived, Settled, Sums, batch_of, plain

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
DAY_US = 86_400_000_000
ID = UUID(int=9)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.bundled()


def settled(
    book: PriceBook, *events: Arrived, known: dict[tuple[bytes, bytes], First] | None = None
) -> Settled:
    return plain(settle(batch_of(events), known or {}, book, 8 * DAY_US))


def test_the_first_of_an_identity_counts_and_its_repeats_do_not(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    found = settled(book, arrived(event_id=ID), arrived(event_id=ID), arrived(event_id=ID))

    assert (len(found.accepted), found.duplicates, found.conflicts) == (1, 2, {})
    assert [d.sums[0] for d in found.deltas] == [1]


def test_a_repeat_with_another_body_is_a_conflict_and_counts_nothing(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    first = arrived(event_id=ID, digest=b"1" * 16, input_tokens=1)
    found = settled(book, first, arrived(event_id=ID, digest=b"2" * 16, input_tokens=999))

    assert found.conflicts == {first.row.org_id: [ID.bytes]}
    assert [Sums(*d.sums).input_tokens for d in found.deltas] == [1]


def test_the_same_id_in_two_organizations_are_two_events(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    found = settled(
        book, arrived(event_id=ID), arrived(event_id=ID, org_id=UUID(int=2), digest=b"2" * 16)
    )

    assert len(found.accepted) == 2


def test_an_identity_holds_for_its_days_from_first_acceptance(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    event = arrived(event_id=ID)
    moment = timedelta(microseconds=1)

    def accepted(age: timedelta) -> int:
        received = event.received_at - age // moment
        known = {event.identity: First(event.row.digest, received)}
        return len(settled(book, event, known=known).accepted)

    assert accepted(timedelta(days=8) - moment) == 0
    assert accepted(timedelta(days=8)) == 1


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=3), timedelta(days=300)])
def test_a_repeat_after_the_clock_was_set_back_counts_nothing(
    arrived: Callable[..., Arrived], book: PriceBook, ahead: timedelta
) -> None:
    event = arrived(event_id=ID)
    later = event.received_at + ahead // timedelta(microseconds=1)
    known = {event.identity: First(event.row.digest, later)}

    assert (found := settled(book, event, known=known)).accepted == []
    assert found.duplicates == 1
    found = settled(book, arrived(received_at=NOW + ahead, event_id=ID), event)
    assert (len(found.accepted), found.duplicates) == (1, 1)


def test_a_later_repeat_does_not_prolong_an_identity(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    days = [arrived(received_at=NOW + timedelta(days=n), event_id=ID) for n in (0, 5, 9)]

    assert len(settled(book, *days).accepted) == 2


def test_an_event_with_a_model_has_a_cost_or_is_unpriced_and_one_without_is_neither(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    found = settled(
        book,
        arrived(),
        arrived(model="acme-13b"),
        arrived(model=None, event_type="mcp_tool", mcp_server="github", tool="search"),
        arrived(model=None, event_type="session", session_id="s"),
        arrived(event_type="mcp_tool", mcp_server="github", tool="ask"),
    )

    assert [(p.cost, p.unpriced, p.price_version is not None) for p in found.priced] == [
        (Cost(1_000_000, 500_000, 0, 0), False, True),
        (None, True, False),
        (None, False, False),
        (None, False, False),
        (Cost(1_000_000, 500_000, 0, 0), False, True),
    ]
    assert sum(Sums(*d.sums).unpriced_events for d in found.deltas) == 1


def test_unpriced_events_are_gathered_by_model_with_the_earliest_time(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    early = NOW - timedelta(hours=1)
    found = settled(
        book,
        arrived(model="acme-13b", provider="acme"),
        arrived(model="acme-13b", provider="acme", at=early),
        arrived(model="acme-7b"),
    )

    org = UUID(int=1).bytes
    assert found.unpriced == {
        (org, "acme-13b", "acme"): (2, arrived(at=early).row.at),
        (org, "acme-7b", None): (1, arrived().row.at),
    }


def test_tokens_are_priced_at_the_time_of_the_event_and_not_of_its_arrival(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    new = arrived(model="claude-opus-4-6", input_tokens=300_000, output_tokens=0)
    old = arrived(
        model="claude-opus-4-6",
        input_tokens=300_000,
        output_tokens=0,
        at=NOW.replace(month=3, day=12),
    )

    costs = [p.cost and p.cost.total for p in settled(book, new, old).priced]
    assert costs == [1_500_000_000, 3_000_000_000]
