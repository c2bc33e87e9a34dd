"""What windows are measured by: dimensions, sums, money and latency sketches."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
# The measures that add up; money in nano-dollars, latency in microseconds.
SUMS = (
    "events",
    "errors",
    "unpriced_events",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "input_nano",
    "output_nano",
    "cache_read_nano",
    "cache_write_nano",
    "cost_nano",
    "latency_count",
    "latency_sum_us",
)

# Bin b of a sketch holds latencies in (GAMMA**(b-1), GAMMA**b] µs: within 1 % of its value.
GAMMA = 1.02


def quantile_ms(bins: Sequence[tuple[int, int]], q: float) -> float | None:
    """The q-quantile in milliseconds of a sketch of (bin, count), nearest rank, within 1 %."""
    total = sum(count for _, count in bins)
    if total <= 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for index, count in sorted(bins):
        seen += count
        if seen >= rank:
            return round(2 * GAMMA**index / (GAMMA + 1) / 1000, 6) if index > 0 else 0.001
    return None


def usd(nano: int) -> str:
    """Nano-dollars as a decimal string in USD with nine decimals."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), 1_000_000_000)
    return f"{sign}{whole}.{part:09d}"
