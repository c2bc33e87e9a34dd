"""Events as they are kept, with what became of their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.usage_tracker.domain.pricing import Cost

MONEY = (*Cost._fields, "cost_nano")


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What an event costs more or less; ``nanos`` by the names of ``MONEY``."""

    old_version: str | None
    new_version: str | None
    unpriced: int
    nanos: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RawEvent:
    """An event by the columns of its row, which stay as it was counted."""

    row: Mapping[str, Any]
    adjustments: Sequence[Adjustment] = ()

    @property
    def priced(self) -> bool:
        """Whether it has a price now."""
        lacks = self.row["cost_nano"] is None
        return int(lacks) + sum(a.unpriced for a in self.adjustments) == 0

    @property
    def unpriced(self) -> bool:
        """Whether it has a model and no price."""
        return self.row["model"] is not None and not self.priced

    @property
    def version(self) -> str | None:
        """The price it has now."""
        version: str | None = self.row["price_version"]
        return self.adjustments[-1].new_version if self.adjustments else version

    def nano(self, name: str) -> int | None:
        """What it costs now, by a name of ``MONEY``; None without a price."""
        if not self.priced:
            return None
        return (self.row[name] or 0) + sum(a.nanos[name] for a in self.adjustments)
