"""What the platform must answer, computed apart from it.

Nothing here comes from the platform: the prices are written down by hand from the providers' own
price pages, the arithmetic is the standard library's Decimal, and the events are those that the
test itself sent and saw acknowledged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from uuid import UUID, uuid5

NANO = Decimal("0.000000001")
MILLION = Decimal(1_000_000)

# USD per million tokens: input, output, cache read, cache write for 5 minutes, for 1 hour.
# None: the provider bills no such tokens.
PRICES: dict[str, tuple[str | None, ...]] = {
    "claude-sonnet-4-5": ("3", "15", "0.30", "3.75", "6"),
    "claude-haiku-4-5": ("1", "5", "0.10", "1.25", "2"),
    "claude-opus-4-8": ("5", "25", "0.50", "6.25", "10"),
    "gpt-5-mini": ("0.25", "2", "0.025", None, None),
    "gemini-2.5-flash": ("0.30", "2.50", "0.03", None, None),
    "command-r7b": ("0.0375", "0.15", None, None, None),
}
# The same beyond this many prompt tokens, cached ones included; for the whole request.
LONG_PROMPTS: dict[str, tuple[int, tuple[str | None, ...]]] = {
    "claude-sonnet-4-5": (200_000, ("6", "22.50", "0.60", "7.50", "12")),
}
KINDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
)
DIMENSIONS = (
    "model",
    "provider",
    "project_id",
    "team_id",
    "user_id",
    "api_key_id",
    "event_type",
    "status",
    "mcp_server",
    "tool",
)
SESSION_GAP = timedelta(minutes=30)
Key = tuple[str | None, ...]
CostOf = Callable[[Mapping[str, Any]], list[Decimal] | None]


@dataclass(slots=True)
class Measures:
    """One group's measures; money in USD, latency in milliseconds."""

    events: int = 0
    errors: int = 0
    unpriced_events: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_usd: Decimal = Decimal(0)
    output_usd: Decimal = Decimal(0)
    cache_read_usd: Decimal = Decimal(0)
    cache_write_usd: Decimal = Decimal(0)
    latencies: list[Decimal] = field(default_factory=list)

    @property
    def cost_usd(self) -> Decimal:
        return self.input_usd + self.output_usd + self.cache_read_usd + self.cache_write_usd

    @property
    def latency_ms_avg(self) -> Decimal | None:
        return sum(self.latencies) / len(self.latencies) if self.latencies else None

    @property
    def latency_ms_p95(self) -> Decimal | None:
        """Nearest rank."""
        if not self.latencies:
            return None
        return sorted(self.latencies)[math.ceil(Decimal("0.95") * len(self.latencies)) - 1]


def cost_of(event: Mapping[str, Any], prices: Mapping[str, Any] = PRICES) -> list[Decimal] | None:
    """USD per kind of token, each rounded half-even to a nano-dollar; None without a price."""
    listed = prices.get(event["model"])
    if listed is None:
        return None
    tokens = [event.get(kind, 0) for kind in KINDS]
    prompt = tokens[0] + tokens[2] + tokens[3] + tokens[4]
    limit, long = LONG_PROMPTS.get(event["model"], (prompt, listed))
    if prompt > limit:
        listed = long
    costs = []
    for count, price in zip(tokens, listed, strict=True):
        if price is None and count:
            return None
        usd = Decimal(count) * Decimal(price or 0) / MILLION
        costs.append(usd.quantize(NANO, rounding=ROUND_HALF_EVEN))
    return costs


def _time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


class Oracle:
    """The books of one organization, kept from acknowledged events alone.

    Args:
        org_id: the organization.
        api_key_id: that the events are sent with.
        cost: of an event, as ``cost_of`` tells it.
    """

    def __init__(self, org_id: str, api_key_id: str | None, cost: CostOf = cost_of) -> None:
        self._org = UUID(org_id)
        self._key = api_key_id
        self._cost = cost
        self.events: dict[str, Mapping[str, Any]] = {}
        # What was found of an event, beside it: each is priced once, however often it is added up.
        self._priced: dict[int, tuple[Mapping[str, Any], list[Decimal] | None]] = {}
        self._labelled: dict[int, tuple[Mapping[str, Any], dict[str, str | None]]] = {}
        self.conflicts = 0

    def acknowledge(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Enter events in the order in which they were acknowledged; the first of an id stays."""
        for event in events:
            kept = self.events.setdefault(event["event_id"], event)
            if kept is not event and kept != event:
                self.conflicts += 1

    def rows(self, granularity: str, group_by: Iterable[str] = ()) -> dict[Key, Measures]:
        """Measures by (start of the unit or None, value of each dimension asked for)."""
        wanted = tuple(group_by)
        found: dict[Key, Measures] = defaultdict(Measures)
        for event in self.events.values():
            labels = self.labels(event)
            key = (self.unit(event, granularity), *(labels[d] for d in wanted))
            self._add(found[key], event)
        return dict(found)

    def sessions(self) -> list[tuple[Key, datetime, datetime, Measures]]:
        """Of each its project, session_id and user, first and last time, and measures.

        The user is None where there are several.
        """
        together: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
        for event in self.events.values():
            labels, named = self.labels(event), event.get("session_id")
            user = labels["user_id"] if named is None else None
            together[labels["project_id"], named, user].append(event)
        found = []
        for (project, named, _), events in together.items():
            run: list[Mapping[str, Any]] = []
            for event in sorted(events, key=_time):
                if run and named is None and _time(event) - _time(run[-1]) >= SESSION_GAP:
                    found.append(self._session(project, named, run))
                    run = []
                run.append(event)
            found.append(self._session(project, named, run))
        return found

    def _session(
        self, project: str | None, named: str | None, events: list[Mapping[str, Any]]
    ) -> tuple[Key, datetime, datetime, Measures]:
        measures = Measures()
        for event in events:
            self._add(measures, event)
        users = {self.labels(event)["user_id"] for event in events}
        user = users.pop() if len(users) == 1 else None
        return (project, named, user), _time(events[0]), _time(events[-1]), measures

    def total(self) -> Measures:
        """Measures of everything."""
        return self.rows("all").get((None,), Measures())

    def labels(self, event: Mapping[str, Any]) -> dict[str, str | None]:
        """The value of each dimension that an event is counted under."""
        if (known := self._labelled.get(id(event))) is not None:
            return known[1]
        labels = {name: event.get(name) for name in DIMENSIONS}
        labels["status"] = event.get("status", "ok")
        labels["api_key_id"] = self._key
        if labels["user_id"] is not None:
            labels["user_id"] = str(uuid5(self._org, labels["user_id"]))
        self._labelled[id(event)] = event, labels
        return labels

    def unit(self, event: Mapping[str, Any], granularity: str) -> str | None:
        """The start of the unit that an event is counted in; None where that is all of time."""
        at = datetime.fromisoformat(event["timestamp"]).astimezone(UTC)
        cut = {
            "minute": at.replace(second=0, microsecond=0),
            "hour": at.replace(minute=0, second=0, microsecond=0),
            "day": at.replace(hour=0, minute=0, second=0, microsecond=0),
            "month": at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
        }
        return cut[granularity].strftime("%Y-%m-%dT%H:%M:%SZ") if granularity != "all" else None

    def _add(self, group: Measures, event: Mapping[str, Any]) -> None:
        group.events += 1
        group.errors += event.get("status") == "error"
        group.input_tokens += event.get("input_tokens", 0)
        group.output_tokens += event.get("output_tokens", 0)
        group.cache_read_tokens += event.get("cache_read_tokens", 0)
        group.cache_write_tokens += event.get("cache_write_5m_tokens", 0)
        group.cache_write_tokens += event.get("cache_write_1h_tokens", 0)
        if event.get("latency_ms") is not None:
            group.latencies.append(Decimal(str(event["latency_ms"])))
        if "model" not in event:
            return
        if id(event) not in self._priced:
            self._priced[id(event)] = event, self._cost(event)
        costs = self._priced[id(event)][1]
        if costs is None:
            group.unpriced_events += 1
            return
        group.input_usd += costs[0]
        group.output_usd += costs[1]
        group.cache_read_usd += costs[2]
        group.cache_write_usd += costs[3] + costs[4]
