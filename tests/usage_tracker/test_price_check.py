"""The comparison with a second source: what differs is told with its reason, nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bench.price_check import Check, Difference, report
from services.usage_tracker.domain.pricing import PriceBook

pytestmark = pytest.mark.unit

# As its maker lists them: 1 dollar of input, 5 of output, 1.25 and 2 of cache writes, 0.1 of reads.
HAIKU = {
    "litellm_provider": "anthropic",
    "input_cost_per_token": 1e-06,
    "output_cost_per_token": 5e-06,
    "cache_read_input_token_cost": 1e-07,
    "cache_creation_input_token_cost": 1.25e-06,
    "cache_creation_input_token_cost_above_1hr": 2e-06,
}


def differences(name: str, **changed: float | None) -> list[Difference]:
    check = Check(PriceBook.bundled(), datetime(2026, 11, 21, tzinfo=UTC))
    found = list(check.differences({name: {**HAIKU, **changed}}))
    assert check.counts["models that both price"] == 1
    assert list(report(check, found))
    return found


def test_what_agrees_is_not_told() -> None:
    assert differences("claude-haiku-4-5") == []


@pytest.mark.parametrize(
    ("changed", "kind", "theirs", "reason"),
    [
        ({"output_cost_per_token": 7e-06}, "output", 7 * 10**9, "another figure"),
        ({"output_cost_per_token": 5.01e-06}, "output", 5_010_000_000, "rounded"),
        ({"cache_read_input_token_cost": None}, "cache_read", None, "no price of this kind"),
        (
            {"input_cost_per_token_above_200k_tokens": 2e-06},
            "input",
            2 * 10**9,
            "they have a step",
        ),
    ],
)
def test_what_differs_is_told_with_its_reason(
    changed: dict[str, float | None], kind: str, theirs: int | None, reason: str
) -> None:
    (found,) = differences("claude-haiku-4-5", **changed)
    assert (found.kind, found.theirs) == (kind, theirs)
    assert reason in found.reason
