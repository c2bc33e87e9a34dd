"""Windows as columns, compared with sums by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest

from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import (
    Arrived,
    Deltas,
    Windows,
    added_up,
    arrived,
    fresh,
    unpacked,
)
from tests.analytics.deltas import columns_of, rows_of, windows_of

pytestmark = pytest.mark.unit

ORGS = [UUID(int=n) for n in (1, 2**127)]
Key = tuple[object, ...]


def row(random: Random, seq: int, **given: Any) -> dict[str, Any]:
    bins = sorted(random.sample(range(2_000), random.randrange(4)))
    return {
        **dict.fromkeys(DIMENSIONS),
        **{name: random.randrange(-(2**40), 2**40) for name in SUMS},
        "seq": seq,
        "org_id": random.choice(ORGS).bytes,
        "minute": random.randrange(3),
        "model": random.choice(["a", "b", None]),
        "user_id": random.choice([UUID(int=9).bytes, None]),
        "cache_write_5m_tokens": random.randrange(100),
        "cache_write_1h_tokens": random.randrange(100),
        "latency_bins": bins,
        "latency_counts": [random.randrange(1, 300) for _ in bins],
        "reason": None,
        **given,
    }


def added_by_hand(rows: list[dict[str, Any]]) -> dict[Key, Counter[Any]]:
    """By organization, minute and dimensions; a bin of the sketch by its number."""
    found: defaultdict[Key, Counter[Any]] = defaultdict(Counter)
    for one in rows:
        tokens = one["cache_write_5m_tokens"] + one["cache_write_1h_tokens"]
        measures = {name: one.get(name, 0) for name in SUMS} | {"cache_write_tokens": tokens}
        key = one["org_id"], one["minute"], *(one[d] for d in DIMENSIONS)
        found[key].update(measures)
        found[key].update(dict(zip(one["latency_bins"], one["latency_counts"], strict=True)))
    return found


def added(found: Deltas, keys: dict[bytes, Key]) -> dict[Key, Counter[Any]]:
    sums: defaultdict[Key, Counter[Any]] = defaultdict(Counter)
    sketches = found.sketches
    for index in range(len(found)):
        key = found.orgs.at(index), int(found.minutes[index]), *keys[found.series[index].tobytes()]
        sums[key].update({name: int(found.sums[name][index]) for name in SUMS})
        cells = slice(sketches.starts[index], sketches.ends[index])
        bins, counts = sketches.bins[cells].tolist(), sketches.counts[cells].tolist()
        assert len(set(bins)) == len(bins)
        sums[key].update(dict(zip(bins, counts, strict=True)))
    return sums


def keys_of(found: Arrived) -> dict[bytes, Key]:
    values = zip(*(found.dimensions[d].listed() for d in DIMENSIONS), strict=True)
    series = map(bytes, found.deltas.series)
    return dict(zip(series, values, strict=True))


def told(rows: list[dict[str, Any]], after: int = 0) -> Arrived:
    one = fresh(windows_of(rows), after)
    assert one is not None
    return arrived([one])


@pytest.mark.parametrize("seed", range(20))
def test_what_arrives_in_many_records_is_added_up_exactly(seed: int) -> None:
    random = Random(seed)
    records, everything, keys = [], [], {}
    for size in (1, 2, 30, 100):
        rows = [row(random, seq) for seq in range(1, size + 1)]
        after = random.randrange(size)
        everything += rows[after:]
        one = fresh(windows_of(rows), after)
        assert one is not None
        assert (len(one), one.last) == (size - after, size)
        records.append(one)
    found = arrived(records)
    keys = keys_of(found)
    assert added(found.deltas, keys) == added_by_hand(everything)
    assert len(found.deltas) == len(added_by_hand(everything))
    # In parts, packed and put together again, it is the same.
    halves = [arrived(records[:2]).deltas, arrived(records[2:]).deltas]
    again = added_up([unpacked(half.packed()) for half in halves])
    assert added(again, keys) == added_by_hand(everything)
    assert len(again) == len(found.deltas)


def test_what_64_bits_do_not_hold_together_stays_apart() -> None:
    random = Random(1)
    largest = {"org_id": ORGS[0].bytes, "minute": 1, "model": "a", "user_id": None}
    rows = [row(random, seq, **largest, cost_nano=2**62, events=-(2**62)) for seq in range(1, 8)]
    found = told(rows)
    assert added(found.deltas, keys_of(found)) == added_by_hand(rows)
    twice = added_up([found.deltas, unpacked(found.deltas.packed())])
    assert sum(twice.sums["cost_nano"].tolist()) == 14 * 2**62


def test_only_the_organization_and_the_minutes_that_are_asked_for_are_given() -> None:
    random = Random(2)
    rows = [row(random, seq) for seq in range(1, 200)]
    found = told(rows)
    mine = found.deltas.of(ORGS[1], 1, 3)
    wanted = [one for one in rows if one["org_id"] == ORGS[1].bytes and one["minute"] in (1, 2)]
    assert added(mine, keys_of(found)) == added_by_hand(wanted)
    assert len(found.deltas.of(UUID(int=5), 0, 3)) == 0
    assert len(added_up([found.deltas.of(UUID(int=5), 0, 3)])) == 0
    hour = added_up([mine.by(60)])
    assert added(hour, keys_of(found)) == added_by_hand([one | {"minute": 0} for one in wanted])


def test_nothing_that_was_applied_comes_again() -> None:
    windows = windows_of([row(Random(3), seq) for seq in (4, 6, 9)])
    assert fresh(windows, 9) is None
    assert fresh(Windows({}), 0) is None
    one = fresh(windows, 5)
    assert one is not None
    assert (one.begin, one.last, len(one)) == (1, 9, 2)


def test_nothing_is_applied_beyond_the_last_number_that_may_be() -> None:
    random = Random(3)
    rows = [row(random, seq) for seq in (4, 6, 9)]
    windows = windows_of(rows)
    assert fresh(windows, 0, 3) is None
    assert fresh(windows, 6, 8) is None
    one = fresh(windows, 4, 8)
    assert one is not None
    assert (one.last, len(one)) == (6, 1)
    found = arrived([one, one])
    assert added(found.deltas, keys_of(found)) == added_by_hand([rows[1], rows[1]])


def test_what_travels_is_what_was_packed() -> None:
    rows = [row(Random(4), seq) for seq in range(1, 50)]
    back = rows_of(columns_of(rows))
    for one, was in zip(back, rows, strict=True):
        assert {name: was[name] for name in one if name != "cache_write_tokens"} == {
            name: value for name, value in one.items() if name != "cache_write_tokens"
        }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seq", b""),
        ("seq", b"1234567"),
        ("events", b"123"),
        ("minute", b"1"),
        ("latency_ends", np.array([3, 1], "<i8").tobytes()),
        ("latency_bins", b"12345"),
        ("model", (["a", "b", "c"], b"")),
        ("model", (["a"], b"\x00\x00\x01\x00")),
        ("org_id", ([b"short"], b"")),
    ],
)
def test_columns_that_do_not_fit_are_refused(name: str, value: object) -> None:
    rows = [row(Random(5), seq, latency_bins=[1], latency_counts=[1]) for seq in (1, 2)]
    good = msgspec.to_builtins(windows_of(rows), builtin_types=(bytes,))
    msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=Windows)
    good["columns"][name] = value
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=Windows)
