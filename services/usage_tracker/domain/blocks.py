"""Deltas as they wait in the database: those of one commit, as packed columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from common.columns import Coded, Column, Integers, numbers, packed_column, packed_numbers
from common.sketches import Sketches
from services.usage_tracker.domain.windows import (
    DIMENSIONS,
    SUMS,
    Deltas,
    added_up,
    joined_deltas,
)


class Numbered(NamedTuple):
    """The deltas of one commit; ``first`` is the number of the first, ``reason`` that of all."""

    first: int
    deltas: Deltas
    reason: str | None = None

    @property
    def last(self) -> int:
        return self.first + len(self.deltas) - 1


class _Packed(msgspec.Struct, frozen=True):
    count: int
    minute: bytes
    # Of texts and ids, which msgpack tells apart.
    dimensions: dict[str, Coded[Any]]
    sums: dict[str, bytes]
    latency_bins: bytes
    latency_counts: bytes
    latency_lengths: bytes


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Packed).decode


def packed(deltas: Deltas) -> bytes:
    """What ``unpacked`` reads."""
    everything = np.arange(len(deltas))
    sketches = deltas.sketches
    return _pack(
        _Packed(
            len(deltas),
            packed_numbers(deltas.minutes),
            {name: packed_column(c, everything) for name, c in deltas.dimensions.items()},
            {name: packed_numbers(values) for name, values in deltas.sums.items()},
            packed_numbers(sketches.bins),
            packed_numbers(sketches.counts),
            packed_numbers(sketches.ends - sketches.starts),
        )
    )


def unpacked(data: bytes) -> Deltas:
    """Deltas that ``packed`` has packed."""
    found = _unpack(data)
    ends = np.cumsum(numbers(found.latency_lengths, found.count))
    cells = int(ends[-1])
    return Deltas(
        numbers(found.minute, found.count),
        {name: _column(found.dimensions[name], found.count) for name in DIMENSIONS},
        {name: numbers(found.sums[name], found.count) for name in SUMS},
        Sketches(numbers(found.latency_bins, cells), numbers(found.latency_counts, cells), ends),
    )


def sums_of(blocks: Sequence[Numbered]) -> tuple[Deltas, Integers]:
    """Deltas of one reason added up, with a number of its own for each sum."""
    return added_up(
        joined_deltas([block.deltas for block in blocks]),
        np.concatenate([np.arange(block.first, block.last + 1) for block in blocks]),
    )


def _column(coded: Coded[Any], count: int) -> Column:
    return Column(coded.values, coded.indices(count))
