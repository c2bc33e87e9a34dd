"""Sessions as they are asked for, and their deltas made rows after a while."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from common.columns import Integers, Mask
from common.threads import off_loop
from services.usage_tracker.domain.islands import (
    Islands,
    Session,
    begun_us,
    equal_ids,
    key_and_minute,
    key_table,
)
from services.usage_tracker.domain.sessions import SessionDeltas, has_project, together
from services.usage_tracker.domain.windows import MINUTE_US
from services.usage_tracker.store.sessions import SessionStore, SessionView, Wanted

# How much of the time that is asked for is looked at first; then so many times more.
_FIRST_US = MINUTE_US
_MORE = 4

# Rows that one page looks at, but for those of the first span: with too many a page ends early.
_ROWS = 30_000

# More deltas than these take milliseconds.
_MANY = 500
# Questions that a process works on.
_AT_ONCE = 2

# When a session began (microseconds since 1970), and its id.
Place = tuple[int, UUID]
# No session that began at once with it comes after it.
_FIRST_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which sessions: those that began in a time (microseconds since 1970; the end is out)."""

    org_id: UUID
    start_us: int
    end_us: int
    project_id: UUID | None = None
    user_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some sessions, and the place after which the next ones are; None where there are none."""

    sessions: list[Session]
    next: Place | None


class Sessions:
    """Answers from rows and deltas as they were at one moment.

    Args:
        store: of the sessions.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        # The process takes events in, too.
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def page(self, asked: Asked, after: Place | None, size: int) -> Page:
        """Sessions, those that began last first, from the one after a place on; at most ``size``.

        A session is listed with all that it has, also beyond the time that is asked for. There may
        be fewer, or none, on a page that is not the last.
        """
        found: list[Session] = []
        wanted = Wanted(asked.project_id, asked.user_id)
        left: int | None = None
        end = asked.end_us if after is None else min(asked.end_us, after[0] + 1)
        span = _FIRST_US
        async with self._turns, self._store.view(asked.org_id) as view:
            recent = _of_project(view.recent, asked.project_id)
            begun = await off_loop(len(recent) > _MANY, begun_us, recent)
            while asked.start_us < end and len(found) <= size:
                begin = max(asked.start_us, end - span)
                near = await self._near(view, recent, begun, (begin, end), wanted, left)
                if near is None:
                    return Page(found, (end, _FIRST_ID))
                islands, rows = near
                began = _began(islands, begin, end)
                islands = await self._whole(view, recent, asked, islands, began)
                many = len(islands.deltas) > _MANY
                # One more tells whether there is another page.
                found += await off_loop(
                    many, _chosen, islands, asked, (begin, end), after, size + 1 - len(found)
                )
                left = max(0, (_ROWS if left is None else left) - rows)
                end, span = begin, span * _MORE
        if len(found) <= size:
            return Page(found, None)
        last = found[size - 1]
        return Page(found[:size], (last.started_us, last.id))

    async def session(self, org_id: UUID, session_id: UUID) -> Session | None:
        """A session by its id, or by one that it had before an earlier event was counted."""
        key, minute = key_and_minute(session_id)
        async with self._turns, self._store.view(org_id) as view:
            rows = await view.of_keys([key])
            many = len(view.recent) > _MANY
            table, codes = await off_loop(many, key_table, org_id, view.recent)
        mine = (table == np.frombuffer(key.bytes, np.uint8)).all(axis=1)[codes]
        islands = Islands(org_id, together([rows, view.recent.take(mine)]), self._store.gap_us)
        within = (islands.started // MINUTE_US <= minute) & (minute <= islands.ended // MINUTE_US)
        chosen = np.flatnonzero(islands.counted() & (islands.named | within))
        return islands.session(int(chosen[0])) if len(chosen) else None

    async def _near(
        self,
        view: SessionView,
        recent: SessionDeltas,
        begun: Integers,
        time: tuple[int, int],
        wanted: Wanted,
        most: int | None,
    ) -> tuple[Islands, int] | None:
        """Whatever began in a time, of others parts, and of how many rows.

        Those without a name are whole. None where there are more than ``most`` rows.
        """
        gap = self._store.gap_us
        begin, end = time
        low, high = begin - gap, end + gap
        while True:
            rows = await view.between(low, high, time, wanted, most)
            if rows is None:
                return None
            first, last = recent.rows["first_at"], recent.rows["last_at"]
            young = recent.session_id.none() | (begun >= begin)
            near = recent.take((first < high) & (last >= low) & young)
            islands = await off_loop(
                len(rows) + len(near) > _MANY, Islands, view.org_id, together([rows, near]), gap
            )
            ends = islands.ended[~islands.named & _began(islands, begin, end)]
            # What was not looked at begins later; it belongs to none that ended so long before.
            if not len(ends) or int(ends.max()) + gap <= high:
                return islands, len(rows)
            high = max(int(ends.max()) + gap, high + (high - low))

    async def _whole(
        self,
        view: SessionView,
        recent: SessionDeltas,
        asked: Asked,
        islands: Islands,
        chosen: Mask,
    ) -> Islands:
        """Of those that events name only the chosen ones, with all that they ever had."""
        if not islands.named.any():
            return islands
        deltas = islands.deltas
        unnamed = deltas.take(deltas.session_id.none())
        known = np.flatnonzero(islands.named & chosen)
        names = np.zeros(len(deltas.session_id.values), np.bool_)
        names[deltas.session_id.codes[islands.starts[known]]] = True
        wanted = {name for name, ok in zip(deltas.session_id.values, names, strict=True) if ok}
        same = np.array([name in wanted for name in recent.session_id.values], np.bool_)
        # Those of other projects, too, that have the name: they have to be whole as well.
        alike = recent.take(same[recent.session_id.codes])
        table, _ = key_table(asked.org_id, alike)
        keys = {UUID(bytes=key.tobytes()) for key in table} | set(islands.keys_of(known))
        rows = await view.of_keys(keys)
        return await off_loop(
            len(rows) + len(deltas) > _MANY,
            Islands,
            asked.org_id,
            together([unnamed, alike, rows]),
            self._store.gap_us,
        )


def _began(islands: Islands, begin: int, end: int) -> Mask:
    return (islands.started >= begin) & (islands.started < end)


def _of_project(deltas: SessionDeltas, project_id: UUID | None) -> SessionDeltas:
    if project_id is None:
        return deltas
    same = equal_ids(deltas.rows["project_id"], project_id)
    return deltas.take(has_project(deltas.rows) & same)


def _chosen(
    islands: Islands, asked: Asked, began: tuple[int, int], after: Place | None, most: int
) -> list[Session]:
    """The first sessions of those that began in a time, the latest beginning first."""
    fits = islands.counted() & _began(islands, *began)
    if asked.user_id is not None:
        fits &= islands.with_user(asked.user_id)
    candidates = np.flatnonzero(fits)
    if not len(candidates):
        return []
    started = islands.started[candidates]
    # Of those that began at once with the last ones, only ids tell which comes first.
    passed = 0 if after is None else int((started >= after[0]).sum())
    least = np.sort(started)[-min(passed + most, len(started))]
    places = sorted(
        (
            (int(islands.started[n]), islands.id(n), n)
            for n in candidates[started >= least].tolist()
        ),
        reverse=True,
    )
    left = [place for place in places if after is None or place[:2] < after]
    return [islands.session(n) for *_, n in left[:most]]
