"""Windows of one minute, as deltas that only ever add; and the sketch of latencies in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from common.columns import (
    Coded,
    Column,
    Integers,
    Mask,
    alone,
    dense,
    grouped,
    joined,
    packed_column,
    packed_numbers,
)
from common.sketches import Sketches, sketches_of
from services.usage_tracker.domain.columns import ABSENT, Batch
from services.usage_tracker.domain.pricing import Cost

MINUTE_US = 60_000_000

# Bin b holds latencies in (GAMMA**(b-1), GAMMA**b] microseconds, bin 0 all up to 1 µs. The value
# 2 * GAMMA**b / (GAMMA + 1) of a bin is then within 1 % of every latency in it.
GAMMA = 1.02
_LOG_GAMMA = math.log(GAMMA)
_BINS = 2**11

# An event beyond these is a delta by itself: so many of a batch stay within 64 bits.
_LARGE_TOKENS = 2**40
_LARGE_NANO = 2**45

# The dimensions of a window, beside its minute; ids are their 16 bytes.
DIMENSIONS = (
    *("org_id", "model", "provider", "project_id", "team_id", "user_id", "api_key_id"),
    *("event_type", "status", "mcp_server", "tool"),
)
TOKENS = (
    *("input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_5m_tokens", "cache_write_1h_tokens"),
)
# What adds up in a window; money in nano-dollars.
SUMS = (
    *("events", "errors", "unpriced_events", *TOKENS, *Cost._fields),
    *("cost_nano", "latency_count", "latency_sum_us"),
)
# Of a delta's number as it travels.
SEQ = np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class Deltas:
    """What a batch adds to windows, a window each; ``minutes`` count from 1970."""

    minutes: Integers
    dimensions: Mapping[str, Column]
    sums: Mapping[str, Integers]
    sketches: Sketches

    def __len__(self) -> int:
        return len(self.minutes)

    def take(self, chosen: Integers) -> Deltas:
        """Some of them, by their places."""
        return Deltas(
            self.minutes[chosen],
            {name: column.take(chosen) for name, column in self.dimensions.items()},
            {name: sums[chosen] for name, sums in self.sums.items()},
            self.sketches.take(chosen),
        )

    def packed(self, first: int, chosen: Integers, reason: str | None = None) -> dict[str, Any]:
        """Some deltas as they are sent on, in their order; ``first`` is the number of the 0th."""
        sketches = self.sketches.take(chosen)
        return {
            "seq": (chosen + first).astype(SEQ).tobytes(),
            "minute": packed_numbers(self.minutes[chosen]),
            "reason": Coded([reason], b""),
            **{name: packed_column(c, chosen) for name, c in self.dimensions.items()},
            **{name: packed_numbers(sums[chosen]) for name, sums in self.sums.items()},
            "latency_bins": packed_numbers(sketches.bins),
            "latency_counts": packed_numbers(sketches.counts),
            "latency_ends": packed_numbers(sketches.ends),
        }


def joined_deltas(several: Sequence[Deltas]) -> Deltas:
    """All of them, behind each other."""
    if len(several) == 1:
        return several[0]
    return Deltas(
        np.concatenate([deltas.minutes for deltas in several]),
        {n: joined(_pairs(several, n)) for n in DIMENSIONS},
        {n: np.concatenate([deltas.sums[n] for deltas in several]) for n in SUMS},
        sketches_of([deltas.sketches for deltas in several]),
    )


def added_up(deltas: Deltas, numbers: Integers) -> tuple[Deltas, Integers]:
    """Those of one window and combination of dimensions as one, where 64 bits hold the sums.

    Args:
        deltas: at least one.
        numbers: of each.

    Returns:
        The sums, and of each the number of one of the deltas that are in it.
    """
    firsts, groups = grouped([*_keys(deltas.dimensions), dense(deltas.minutes), alone(deltas.sums)])
    return Deltas(
        deltas.minutes[firsts],
        {name: column.take(firsts) for name, column in deltas.dimensions.items()},
        _summed(deltas.sums, firsts, groups),
        deltas.sketches.added_up(groups, len(firsts)),
    ), numbers[firsts]


def _pairs(several: Sequence[Deltas], name: str) -> Iterator[tuple[Sequence[Any], Integers]]:
    return ((d.dimensions[name].values, d.dimensions[name].codes) for d in several)


@dataclass(frozen=True, slots=True)
class Costs:
    """What each event of a batch costs.

    ``nanos`` are of shape (events, 4) in the order of ``Cost``, 0 where ``priced`` is false;
    ``versions`` tells by which price, None where by none.
    """

    nanos: Integers
    priced: Mask
    versions: Column


def latency_bin(latency_us: int) -> int:
    """The bin of the sketch that holds a latency."""
    return math.ceil(math.log(latency_us) / _LOG_GAMMA) if latency_us > 1 else 0


def latency_bins(latencies_us: Integers) -> Integers:
    """``latency_bin`` of many."""
    return np.searchsorted(_bounds(), latencies_us)


@cache
def _bounds() -> Integers:
    """The longest latency of each bin, in whole microseconds."""
    found = []
    for index in range(_BINS):
        bound = math.floor(min(GAMMA**index, 2.0**62))
        # What the logarithm says of a bin's very end decides.
        while index and latency_bin(bound + 1) <= index:
            bound += 1
        while index and latency_bin(bound) > index:
            bound -= 1
        found.append(max(bound, 1))
    return np.array(found, np.int64)


def deltas_of(batch: Batch, costs: Costs) -> Deltas:
    """What the events add, one delta for each window and combination of dimensions."""
    return _deltas(batch, _measures(batch, costs), batch.numbers["latency_us"])


def corrections_of(batch: Batch, more: Integers, unpriced: Integers) -> Deltas:
    """What a change of the events' costs adds to their windows, signed.

    Args:
        batch: events that were counted before.
        more: nano-dollars by which each has become dearer, of shape (events, 4) in the order of
            ``Cost``.
        unpriced: 1 for an event that has lost its price, -1 for one that has one now, else 0.
    """
    nothing = np.zeros(batch.count, np.int64)
    measures = dict.fromkeys(SUMS, nothing) | {
        "unpriced_events": unpriced,
        **{name: more[:, kind] for kind, name in enumerate(Cost._fields)},
        "cost_nano": more.sum(axis=1),
    }
    return _deltas(batch, measures, np.full(batch.count, ABSENT, np.int64))


def _deltas(batch: Batch, measures: Mapping[str, Integers], latencies: Integers) -> Deltas:
    minutes = batch.numbers["at"] // MINUTE_US
    firsts, groups = grouped([*_keys(batch.coded), dense(minutes), _alone(measures)])
    timed = latencies != ABSENT
    cells, counts = np.unique(
        groups[timed] * _BINS + latency_bins(latencies[timed]), return_counts=True
    )
    return Deltas(
        minutes[firsts],
        {name: batch.coded[name].take(firsts) for name in DIMENSIONS},
        _summed(measures, firsts, groups),
        Sketches(
            cells % _BINS, counts, np.searchsorted(cells, (np.arange(len(firsts)) + 1) * _BINS)
        ),
    )


def _summed(
    measures: Mapping[str, Integers], firsts: Integers, groups: Integers
) -> dict[str, Integers]:
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(len(firsts)))
    return {
        name: np.add.reduceat(values[order], starts) if len(starts) else values
        for name, values in measures.items()
    }


def _measures(batch: Batch, costs: Costs) -> dict[str, Integers]:
    """What each event adds, by the names of ``SUMS``."""
    numbers, coded = batch.numbers, batch.coded
    errors = np.array([value == "error" for value in coded["status"].values], np.int64)
    timed = numbers["latency_us"] != ABSENT
    return {
        "events": np.ones(batch.count, np.int64),
        "errors": errors[coded["status"].codes],
        "unpriced_events": (~coded["model"].none() & ~costs.priced).astype(np.int64),
        **{name: numbers[name] for name in TOKENS},
        **{name: costs.nanos[:, kind] for kind, name in enumerate(Cost._fields)},
        "cost_nano": costs.nanos.sum(axis=1),
        "latency_count": timed.astype(np.int64),
        "latency_sum_us": np.where(timed, numbers["latency_us"], 0),
    }


def _keys(coded: Mapping[str, Column]) -> list[tuple[Integers, int]]:
    columns = [coded[name] for name in DIMENSIONS]
    return [(column.codes, len(column.values)) for column in columns]


def _alone(measures: Mapping[str, Integers]) -> tuple[Integers, int]:
    """A number of its own for each large event, 0 for all others."""
    large = np.abs(measures["cost_nano"]) > _LARGE_NANO
    for name in Cost._fields:
        # Those of a correction may cancel out.
        large |= np.abs(measures[name]) > _LARGE_NANO
    for name in TOKENS:
        large |= measures[name] > _LARGE_TOKENS
    return np.where(large, np.cumsum(large), 0), int(large.sum()) + 1
