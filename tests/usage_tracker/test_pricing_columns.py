"""Prices of many events are the prices of each."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TimeOfDateConstraint,
)
from hypothesis import given
from hypothesis import strategies as st

from services.usage_tracker.domain import pricing
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import Price, PriceBook, Rate, Tokens

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NANOS = st.sampled_from([0, 1, 250_000, 500_000, 1_500_000, 75_000_000]) | st.integers(0, 10**12)
RATES = st.builds(
    lambda base, steps: Rate(base, tuple(sorted(steps.items(), reverse=True))),
    NANOS,
    st.dictionaries(st.sampled_from([0, 200, 272_000]), NANOS, max_size=2),
)
COUNTS = st.sampled_from([0, 1, 3, 5, 200, 272_001, 2**53]) | st.integers(0, 2**53)


@given(
    st.tuples(*[st.none() | RATES] * 5),
    st.lists(st.tuples(*[COUNTS] * 5), min_size=1, max_size=30),
)
def test_the_costs_of_many_events_are_the_cost_of_each(
    rates: tuple[Rate | None, ...], events: list[tuple[int, ...]]
) -> None:
    price = Price("v", rates)
    nanos, priced = price.costs(np.array(events, np.int64))

    found = [tuple(cost) if ok else None for cost, ok in zip(nanos.tolist(), priced, strict=True)]
    assert found == [price.cost(Tokens(*event)) for event in events]


def test_halves_of_a_nano_dollar_go_to_the_even_one() -> None:
    price = Price("v", (Rate(500_000), None, None, None, None))
    nanos, _ = price.costs(np.array([[count, 0, 0, 0, 0] for count in range(6)]))

    assert nanos[:, 0].tolist() == [0, 0, 1, 2, 2, 2]


def book(*prices: ConditionalPrice) -> PriceBook:
    model = ModelInfo(id="m", match=ClauseEquals("m"), prices=list(prices))
    seller = Provider(
        id="p", name="P", api_pattern="https://p", models=[model], model_match=ClauseEquals("m")
    )
    return PriceBook([seller], "test")


def costing(usd: int, constraint: object = None) -> ConditionalPrice:
    return ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(usd)), constraint=constraint)


AROUND_THE_END = st.integers(16_200, 16_260)


@given(
    st.lists(AROUND_THE_END | st.integers(0, 4 * 86_400), min_size=1, max_size=40),
    st.integers(0, 59),
)
def test_each_time_has_the_price_in_force_then(seconds: list[int], second: int) -> None:
    ended = TimeOfDateConstraint(time(0, 30, second), time(16, 30, 7 * second % 60))
    tables = [
        (costing(1), costing(2, StartDateConstraint(NOW.date() + timedelta(days=2)))),
        (costing(1), costing(2, ended)),
        (costing(1, StartDateConstraint(NOW.date() + timedelta(days=1))),),
    ]
    at = [microseconds(NOW + timedelta(seconds=s)) for s in seconds]
    for table in tables:
        prices = book(*table)
        assert prices.price("m", None, None, microseconds(NOW + timedelta(days=9))) is not None
        found: dict[int, Price | None] = {}
        for price, chosen in prices.prices("m", None, None, np.array(at)):
            found |= dict.fromkeys(chosen.tolist(), price)

        # Each asked of a book that has nothing in memory.
        assert [found[n] for n in range(len(at))] == [
            book(*table).price("m", None, None, moment) for moment in at
        ]


def test_prices_are_found_though_all_tariffs_are_forgotten_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asking:
        """Asks for another model while the price is looked for, as another thread may."""

        def active(self, _: datetime) -> bool:
            prices.price("another", None, None, 0)
            return True

    monkeypatch.setattr(pricing, "_REMEMBERED", 1)
    prices = book(costing(1, Asking()))
    ((price, chosen),) = prices.prices("m", None, None, np.array([0, 1]))
    assert price is not None
    assert chosen.tolist() == [0, 1]
