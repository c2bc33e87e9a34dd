"""Usage events as clients send them: several models, caches, tools; late, early, out of order.

Nothing here comes from the platform, whose own workload would err with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

Event = dict[str, Any]

# What the platform promises to take: events of seven days, and of five minutes to come.
OLDEST = timedelta(days=7)
NEWEST = timedelta(minutes=5)

# Name, provider, weight, whether its provider bills reads and writes of a cache.
MODELS = (
    ("claude-sonnet-4-5", "anthropic", 38, True, True),
    ("claude-haiku-4-5", "anthropic", 27, True, True),
    ("claude-opus-4-8", "anthropic", 12, True, True),
    ("gpt-5-mini", "openai", 12, True, False),
    ("gemini-2.5-flash", "google", 7, True, False),
    # Its tokens cost halves of a nano-dollar.
    ("command-r7b", "cohere", 2, False, False),
    # Nobody lists a price for it.
    ("acme-support-13b", "acme", 2, False, False),
)
_TOOLS = (("github", "search_code"), ("github", "create_issue"), ("postgres", "query"))
_DAY, _HOUR = 86_400.0, 3600.0
_OLDEST, _NEWEST = OLDEST.total_seconds(), NEWEST.total_seconds()
# How often, and between how many seconds before now: first what is usual.
_AGES = (
    (90.0, (0.0, 20.0)),
    (3.0, (60.0, 6 * _HOUR)),
    (2.0, (6 * _HOUR, 6.9 * _DAY)),
    # To the edges of the window, and beyond them: those must not count.
    (1.5, (_OLDEST - 300, _OLDEST - 5)),
    (1.0, (_OLDEST + 1, _OLDEST + _HOUR)),
    (1.5, (5 - _NEWEST, -1.0)),
    (1.0, (-_NEWEST - _HOUR, -_NEWEST - 120)),
)


class Source:
    """Events of one stream of an organization; a seed makes the same, but for their times."""

    def __init__(self, seed: str, projects: Sequence[str]) -> None:
        self._rng = Random(seed)
        self._projects = projects
        self._made = 0

    def fresh(self, count: int) -> list[Event]:
        """New events, not in the order of their times."""
        return [self._event(datetime.now(UTC)) for _ in range(count)]

    def conflicting(self, event: Event) -> Event:
        """The same id with another body."""
        return {**event, "output_tokens": event.get("output_tokens", 0) + 1}

    def _event(self, now: datetime) -> Event:
        rng = self._rng
        self._made += 1
        ((least, most),) = rng.choices([span for _, span in _AGES], [w for w, _ in _AGES])
        at = now - timedelta(seconds=rng.uniform(least, most))
        common: Event = {
            "event_id": str(UUID(int=rng.getrandbits(128), version=4)),
            "timestamp": at.isoformat().replace("+00:00", "Z"),
            "project_id": rng.choice(self._projects),
            "user_id": f"user-{min(int(rng.paretovariate(0.8)), 12):02d}",
            "session_id": f"session-{self._made // 12}",
        }
        kind = rng.random()
        if kind < 0.08:
            server, tool = rng.choice(_TOOLS)
            named = {"event_type": "mcp_tool", "mcp_server": server, "tool": tool}
            return {**common, **named, "latency_ms": round(rng.uniform(5, 900), 3)}
        if kind < 0.1:
            return {**common, "event_type": "session"}
        return {**common, **self._call()}

    def _call(self) -> Event:
        rng = self._rng
        ((name, provider, _, reads, writes),) = rng.choices(MODELS, [m[2] for m in MODELS])
        context = 1 + int(rng.lognormvariate(7, 0.8)) + 200_000 * (rng.random() < 0.005)
        tokens = {"output_tokens": 1 + int(rng.lognormvariate(5, 0.6))}
        if reads and rng.random() < 0.45:
            tokens["cache_read_tokens"] = rng.randrange(context)
            if writes:
                rest = context - tokens["cache_read_tokens"]
                tokens["cache_write_5m_tokens"] = rng.randrange(rest) // 2
                tokens["cache_write_1h_tokens"] = rng.randrange(rest) // 4
        cached = sum(n for kind, n in tokens.items() if kind.startswith("cache_"))
        call: Event = {
            "event_type": "api_call",
            "model": name,
            "provider": provider,
            "latency_ms": round(rng.uniform(180, 9000), 3),
            "input_tokens": context - cached,
            **tokens,
        }
        if rng.random() < 0.02:
            call |= {"status": "error", "error_type": "overloaded", "output_tokens": 0}
        return call
