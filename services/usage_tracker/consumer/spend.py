"""What is used and spent, as metrics."""

from __future__ import annotations

import numpy as np

from common.telemetry import Telemetry
from services.usage_tracker.domain.pricing import NANO
from services.usage_tracker.domain.windows import TOKENS, Deltas

OTHER = "other"
# Clients name models as they like, and every name is series for good.
MOST_MODELS = 50


class Spend:
    """Counts tokens and cost by model: the first fifty with a price that a process meets."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tokens = telemetry.counter(
            "mindweave_tokens_total",
            "Tokens of stored events, by model; unpriced ones and those beyond fifty are other.",
            ["model", "kind"],
        )
        self._cost = telemetry.counter(
            "mindweave_cost_usd_total",
            "What stored events cost when they were counted, without later adjustments.",
            ["model"],
        )
        self._models: set[str] = set()

    def add(self, deltas: Deltas) -> None:
        """Count what a commit has added to the windows."""
        model, names = deltas.dimensions["model"], (*TOKENS, "cost_nano")
        sums = np.stack(
            [np.bincount(model.codes, deltas.sums[n], len(model.values)) for n in names], axis=1
        )
        for name, row in zip(model.values, sums.tolist(), strict=True):
            *tokens, nano = row
            shown = self._shown(name, nano)
            self._cost.of(model=shown).inc(nano / NANO)
            for kind, count in zip(TOKENS, tokens, strict=True):
                self._tokens.of(model=shown, kind=kind.removesuffix("_tokens")).inc(count)

    def _shown(self, name: str | None, nano: float) -> str:
        if name is None:
            return OTHER
        if nano > 0 and len(self._models) < MOST_MODELS:
            self._models.add(name)
        return name if name in self._models else OTHER
