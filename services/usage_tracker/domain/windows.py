"""Windows of one minute, as deltas that only ever add; and the sketch of latencies in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple

from services.usage_tracker.domain.judging import Row
from services.usage_tracker.domain.pricing import Cost

MINUTE_US = 60_000_000

# Bin b holds latencies in (GAMMA**(b-1), GAMMA**b] microseconds, bin 0 all up to 1 µs. The value
# 2 * GAMMA**b / (GAMMA + 1) of a bin is then within 1 % of every latency in it.
GAMMA = 1.02
_LOG_GAMMA = math.log(GAMMA)

# An event beyond these is a delta by itself: so many of a batch stay within 64 bits.
_LARGE_TOKENS = 2**40
_LARGE_NANO = 2**45


class Key(NamedTuple):
    """What a delta is of. Ids are their 16 bytes, ``minute`` counts from 1970.

    ``alone`` tells apart the deltas of single large events; it is no dimension.
    """

    org_id: bytes
    minute: int
    model: str | None
    provider: str | None
    project_id: bytes | None
    team_id: bytes | None
    user_id: bytes | None
    api_key_id: bytes | None
    event_type: str
    status: str
    mcp_server: str | None
    tool: str | None
    alone: int = -1


class Sums(NamedTuple):
    """What adds up in a window; money in nano-dollars."""

    events: int
    errors: int
    unpriced_events: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    input_nano: int
    output_nano: int
    cache_read_nano: int
    cache_write_nano: int
    cost_nano: int
    latency_count: int
    latency_sum_us: int


@dataclass(slots=True)
class Delta:
    """What a batch adds to one window."""

    key: Key
    sums: tuple[int, ...]
    latencies: Counter[int] = field(default_factory=Counter)

    @property
    def bins(self) -> list[int]:
        return sorted(self.latencies)

    @property
    def counts(self) -> list[int]:
        return [self.latencies[b] for b in self.bins]


class Priced(NamedTuple):
    """An event with its cost; None where it is unpriced or has no model to price."""

    row: Row
    cost: Cost | None
    price_version: str | None

    @property
    def unpriced(self) -> bool:
        return self.row.model is not None and self.cost is None


def latency_bin(latency_us: int) -> int:
    """The bin of the sketch that holds a latency."""
    return math.ceil(math.log(latency_us) / _LOG_GAMMA) if latency_us > 1 else 0


def deltas_of(events: Iterable[Priced], api_key_ids: Sequence[bytes | None]) -> list[Delta]:
    """What the events add, one delta for each window and combination of dimensions.

    Args:
        events: in the order of ``api_key_ids``.
        api_key_ids: the key that each event came with.
    """
    found: dict[Key, Delta] = {}
    for index, (event, api_key_id) in enumerate(zip(events, api_key_ids, strict=True)):
        row = event.row
        sums = _sums(event)
        large = max(sums[3:8]) > _LARGE_TOKENS or sums[12] > _LARGE_NANO
        key = Key(
            row.org_id,
            row.at // MINUTE_US,
            row.model,
            row.provider,
            row.project_id,
            row.team_id,
            row.user_id,
            api_key_id,
            row.event_type,
            row.status,
            row.mcp_server,
            row.tool,
            index if large else -1,
        )
        delta = found.get(key)
        if delta is None:
            delta = found[key] = Delta(key, sums)
        else:
            delta.sums = tuple(map(add, delta.sums, sums))
        if row.latency_us is not None:
            delta.latencies[latency_bin(row.latency_us)] += 1
    return list(found.values())


_FREE = Cost(0, 0, 0, 0)


def _sums(event: Priced) -> Sums:
    row = event.row
    cost = event.cost or _FREE
    timed = row.latency_us is not None
    return Sums(
        1,
        int(row.status == "error"),
        int(event.unpriced),
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens,
        row.cache_write_5m_tokens,
        row.cache_write_1h_tokens,
        *cost,
        cost.total,
        int(timed),
        row.latency_us or 0,
    )
