from __future__ import annotations

import pytest

from common.testing import silent_telemetry
from services.usage_tracker.consumer.spend import MOST_MODELS, OTHER, Spend
from services.usage_tracker.domain.pricing import NANO, PriceBook
from services.usage_tracker.domain.settling import settle
from services.usage_tracker.domain.windows import Deltas
from tests.usage_tracker.conftest import MakeArrived
from tests.usage_tracker.plain import batch_of

pytestmark = pytest.mark.unit

SONNET = {"model": "claude-sonnet-4-5", "input_tokens": 1_200, "output_tokens": 350}
NOBODYS = {"model": "house-7b", "input_tokens": 10, "output_tokens": 0}


class Shown:
    """What a worker has spent."""

    def __init__(self) -> None:
        telemetry = silent_telemetry("usage_tracker")
        self.spend = Spend(telemetry)
        self._registry = telemetry.metrics.registry

    def tokens(self, model: str, kind: str) -> float | None:
        labels = {"service": "usage_tracker", "model": model, "kind": kind}
        return self._registry.get_sample_value("mindweave_tokens_total", labels)

    def cost(self, model: str) -> float | None:
        labels = {"service": "usage_tracker", "model": model}
        return self._registry.get_sample_value("mindweave_cost_usd_total", labels)


def deltas(*events: object) -> Deltas:
    return settle(batch_of(list(events)), {}, PriceBook.bundled(), 1).deltas


def test_tokens_and_cost_add_up_by_model(arrived: MakeArrived) -> None:
    shown = Shown()
    for _ in range(2):
        shown.spend.add(deltas(arrived(**SONNET), arrived(**SONNET)))
    assert shown.tokens("claude-sonnet-4-5", "input") == 4_800
    assert shown.tokens("claude-sonnet-4-5", "output") == 1_400
    assert shown.tokens("claude-sonnet-4-5", "cache_write_1h") == 0
    assert shown.cost("claude-sonnet-4-5") == pytest.approx(4 * 0.00885)


def test_a_model_without_a_price_and_no_model_at_all_are_other(arrived: MakeArrived) -> None:
    shown = Shown()
    tool = arrived(event_type="mcp_tool", model=None, mcp_server="files", tool="read")
    shown.spend.add(deltas(arrived(**NOBODYS), arrived(**SONNET), tool))
    assert shown.tokens("house-7b", "input") is None
    assert shown.tokens(OTHER, "input") >= 10
    assert shown.cost(OTHER) == 0
    assert shown.cost("claude-sonnet-4-5") > 0


def test_models_beyond_fifty_are_other(arrived: MakeArrived) -> None:
    shown, found = Shown(), deltas(arrived(**SONNET))
    (cost,) = found.sums["cost_nano"].tolist()
    for number in range(MOST_MODELS + 1):
        model = found.dimensions["model"]
        named = type(model)([f"model-{number}"], model.codes)
        shown.spend.add(Deltas(found.minutes, {"model": named}, found.sums, found.sketches))
    assert shown.cost("model-0") == shown.cost(OTHER) == cost / NANO
    assert shown.cost(f"model-{MOST_MODELS}") is None
