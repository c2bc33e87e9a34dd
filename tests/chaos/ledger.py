"""What the platform holds, read beside it by SQL and through its API, against the books."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from tests.chaos.books import MEASURES, Books, Window
from tests.e2e.comparison import read
from tests.e2e.oracle import DIMENSIONS, KINDS, NANO

# What is told of a verdict that is not clean.
_TOLD = 12
# Tenths of seconds in which deltas that were sent on become rows.
_PATIENCE = 900


class NotFresh(Exception):
    """analytics does not come to show what was acknowledged."""


@dataclass
class Findings:
    """Where the platform differs from the books.

    Attributes:
        lost: events that were acknowledged and have no raw row.
        doubled: raw rows beyond the one of an event that may be there.
        nano_off: nano-dollars by which raw rows, windows or answers are off, each taken positive.
        others: all differences in words, these and those of other measures.
    """

    lost: int = 0
    doubled: int = 0
    nano_off: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.nano_off or self.others)

    def add(self, found: Findings) -> None:
        self.lost += found.lost
        self.doubled += found.doubled
        self.nano_off += found.nano_off
        self.others += found.others

    def told(self) -> list[str]:
        """The first of the differences."""
        more = len(self.others) - _TOLD
        return self.others[:_TOLD] + ([f"and {more} more"] if more > 0 else [])


RawRow = tuple[Any, ...]


@dataclass(frozen=True)
class Held:
    """An organization's raw rows (event_id, tokens by kind, cost) and the sums of its windows."""

    rows: Sequence[RawRow]
    windows: Mapping[Window, Sequence[int]]


async def held(connection: asyncpg.Connection, org_id: str) -> Held:
    """Both as of one moment, when all windows have become rows.

    Raises:
        NotFresh: they do not.
    """
    for _ in range(_PATIENCE):
        if not await connection.fetchval("SELECT count(*) FROM delta_blocks"):
            break
        await asyncio.sleep(0.1)
    else:
        raise NotFresh("deltas wait to become rows")
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await held_within(connection, org_id)


async def held_within(connection: asyncpg.Connection, org_id: str) -> Held:
    """As the caller's transaction sees them."""
    rows = await connection.fetch(
        f"SELECT event_id::text, {', '.join(KINDS)}, cost_nano FROM events WHERE org_id = $1",
        UUID(org_id),
    )
    windows = await connection.fetch(
        f"""
        SELECT start, {", ".join(DIMENSIONS)}, {", ".join(f"sum({m})::bigint" for m in MEASURES)}
        FROM deltas WHERE org_id = $1 GROUP BY start, {", ".join(DIMENSIONS)}
        """,
        UUID(org_id),
    )
    width = 1 + len(DIMENSIONS)
    return Held(
        [tuple(row) for row in rows],
        {_window(tuple(row)[:width]): tuple(row)[width:] for row in windows},
    )


def _window(values: Sequence[Any]) -> Window:
    start, *labels = values
    named = [None if label is None else str(label) for label in labels]
    return (start.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), *named)


def counting(there: Held, books: Books) -> Set[str]:
    """The events that must count: what was acknowledged, and of what is in doubt what has a row."""
    return books.acknowledged.keys() | (books.in_doubt & {row[0] for row in there.rows})


def judged(there: Held, books: Books) -> Findings:
    """Raw rows and windows against the books; of what is in doubt, what has a row counts."""
    found = Findings()
    times = Counter(row[0] for row in there.rows)
    known = books.acknowledged.keys() | books.in_doubt
    for name in books.acknowledged.keys() - times.keys():
        found.lost += 1
        found.others.append(f"event {name} is lost")
    for name, count in times.items():
        extra = count - (name in known)
        if extra:
            found.doubled += extra
            why = "was refused" if name in books.refused else "was sent"
            found.others.append(f"event {name} {why}, and is there {count} times")
    for name, *stored in there.rows:
        if name in known and (expected := books.stored(name)) != tuple(stored):
            found.nano_off += abs((stored[-1] or 0) - (expected[-1] or 0))
            found.others.append(f"event {name} is {stored}, not {list(expected)}")
    _judge_windows(there.windows, books.windows(counting(there, books)), found)
    return found


def _judge_windows(
    there: Mapping[Window, Sequence[int]], wanted: Mapping[Window, Sequence[int]], found: Findings
) -> None:
    nothing = (0,) * len(MEASURES)
    for window in there.keys() | wanted.keys():
        has, should = there.get(window, nothing), wanted.get(window, nothing)
        if tuple(has) != tuple(should):
            found.nano_off += abs(has[-1] - should[-1])
            found.others.append(f"window {window} is {list(has)}, not {list(should)}")


def judged_answers(client: httpx.Client, books: Books, there: Held) -> Findings:
    """What analytics answers by hour and model, against the books."""
    names = counting(there, books)
    wanted: dict[tuple[str, str | None], list[int]] = {}
    model = 1 + DIMENSIONS.index("model")
    for window, sums in books.windows(names).items():
        hour = f"{str(window[0])[:13]}:00:00Z"
        events, nano = wanted.setdefault((hour, window[model]), [0, 0])
        wanted[hour, window[model]] = [events + sums[0], nano + sums[-1]]
    answered: dict[tuple[str, str | None], list[int]] = {}
    for page in read(client, "/analytics/usage", books.org_id, "hour", ("model",)):
        for row in page["rows"]:
            sums = answered.setdefault((row["start"], row["model"]), [0, 0])
            sums[0] += row["events"]
            sums[1] += int(Decimal(row["cost_usd"]) / NANO)
    return differing(answered, wanted)


def differing(
    answered: Mapping[Any, Sequence[int]], wanted: Mapping[Any, Sequence[int]]
) -> Findings:
    """Where answers, as events and nano-dollars by group, are not what they must be."""
    found = Findings()
    for group in answered.keys() | wanted.keys():
        has, should = answered.get(group, (0, 0)), wanted.get(group, (0, 0))
        if list(has) != list(should):
            found.nano_off += abs(has[1] - should[1])
            found.others.append(f"analytics answers {list(has)} for {group}, not {list(should)}")
    return found


async def fresh(http: httpx.AsyncClient, every: Iterable[Books], patience: float) -> None:
    """Returns once analytics says that it shows all that the books hold.

    Raises:
        NotFresh: it does not within ``patience`` seconds.
    """
    deadline = monotonic() + patience
    for books in every:
        while (shown := await _fresh_until(http, books.org_id)) is None or (
            shown <= books.accepted_at
        ):
            if monotonic() > deadline:
                raise NotFresh(f"fresh_until stands at {shown} after {patience:.0f} s")
            await asyncio.sleep(0.1)


async def _fresh_until(http: httpx.AsyncClient, org_id: str) -> datetime | None:
    asked = {"org_id": org_id, "granularity": "all"}
    try:
        answer = await http.get("/analytics/usage", params=asked)
    except httpx.TransportError:
        return None
    if answer.status_code != httpx.codes.OK:
        return None
    told = answer.json()["fresh_until"]
    return None if told is None else datetime.fromisoformat(told)
