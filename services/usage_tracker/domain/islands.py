"""Sessions as they are read: deltas of one organization, put together by id or by gaps in time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from common.columns import Bytes, Integers, Mask, combined, dense
from services.usage_tracker.domain.sessions import (
    LARGE,
    SUMS,
    SessionDeltas,
    Used,
    has_project,
    has_user,
)
from services.usage_tracker.domain.windows import MINUTE_US

DAY_US = 24 * 60 * MINUTE_US
_LIMB = 31

# Of an id (a UUID of version 8): 32 bits of minutes, then 90 bits of what the key hashes to.
_MINUTE_BYTES, _HASH_BYTES = 4, 12
_MINUTE_BITS = 8 * _HASH_BYTES
_KEY_MASK = (1 << _MINUTE_BITS) - 1


def _key_bytes(org_id: bytes, project_id: bytes, session_id: str | None, user_id: bytes) -> bytes:
    """What the events of a session have in common: an id of minute 0.

    By ``session_id`` within the project; where there is none, by user.
    """
    kind, who = (b"u", user_id) if session_id is None else (b"s", session_id.encode())
    # An id has 16 bytes, or none where there is none.
    said = b"%b%b%c%b%b" % (kind, org_id, len(project_id), project_id, who)
    found = bytearray(_MINUTE_BYTES) + blake2b(said, digest_size=_HASH_BYTES).digest()
    # Version 8, and the variant of all UUIDs.
    found[6], found[8] = found[6] & 0x0F | 0x80, found[8] & 0x3F | 0x80
    return bytes(found)


def session_uuid(key: UUID, started_us: int | None) -> UUID:
    """The id of a session: its key where events name it, else with the minute of its first one."""
    minute = 0 if started_us is None else started_us // MINUTE_US
    return UUID(int=key.int & _KEY_MASK | minute << _MINUTE_BITS)


def key_and_minute(session: UUID) -> tuple[UUID, int]:
    """The key in an id, and a minute that lies within the session; 0 where events name it."""
    return UUID(int=session.int & _KEY_MASK), session.int >> _MINUTE_BITS


@dataclass(frozen=True, slots=True)
class Part:
    """What a session has of a model or a tool, or in all."""

    events: int
    errors: int
    unpriced_events: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano: int


@dataclass(frozen=True, slots=True)
class Session:
    """One session; times are microseconds since 1970.

    ``user_id`` is None where its events have several or none; ``used`` is what it called, each with
    its own sums.
    """

    id: UUID
    session_id: str | None
    project_id: UUID | None
    user_id: UUID | None
    started_us: int
    ended_us: int
    whole: Part
    used: Mapping[Used, Part]


class Islands:
    """Deltas of one organization, and which of them are one session.

    Args:
        org_id: whose they all are.
        deltas: all that there are of the sessions that are asked for.
        gap_us: events of a user without ``session_id`` that are so far apart are two sessions; not
            less than a minute.
    """

    def __init__(self, org_id: UUID, deltas: SessionDeltas, gap_us: int) -> None:
        self._org_id = org_id
        first_at, last_at = deltas.rows["first_at"], deltas.rows["last_at"]
        self._named = ~deltas.session_id.none()
        keys, _ = dense(_keys(deltas, self._named))
        order = np.lexsort((first_at, keys))
        self.deltas = deltas.take(order)
        self._named = self._named[order]
        rows = self.deltas.rows
        new = _begins(keys[order], first_at[order], last_at[order], self._named, gap_us)
        self.starts: Integers = np.flatnonzero(new)
        self.of: Integers = np.cumsum(new) - 1
        self.started: Integers = rows["first_at"][self.starts]
        self.ended: Integers = (
            np.maximum.reduceat(rows["last_at"], self.starts) if len(rows) else self.started
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def named(self) -> Mask:
        """Which sessions the events name."""
        return self._named[self.starts]

    def keys_of(self, chosen: Integers) -> list[UUID]:
        """The keys of some sessions."""
        found = _keys_at(self._org_id, self.deltas, self.starts[chosen])
        return [UUID(bytes=key) for key in found]

    def counted(self) -> Mask:
        """Which have events, and not corrections alone of events from before sessions."""
        events: Integers = _sums(self.deltas.rows["events"], self.starts)
        return events > 0

    def with_user(self, user_id: UUID) -> Mask:
        """Which have events of a user."""
        rows = self.deltas.rows
        same = equal_ids(rows["user_id"], user_id) & has_user(rows)
        found = np.zeros(len(self), np.bool_)
        found[self.of[same]] = True
        return found

    def id(self, n: int) -> UUID:
        (key,) = _keys_at(self._org_id, self.deltas, self.starts[n : n + 1])
        named = bool(self._named[self.starts[n]])
        return session_uuid(UUID(bytes=key), None if named else int(self.started[n]))

    def session(self, n: int) -> Session:
        start = int(self.starts[n])
        stop = int(self.starts[n + 1]) if n + 1 < len(self.starts) else len(self.deltas)
        own = self.deltas.rows[start:stop]
        users = {
            row["user_id"].tobytes() if known else None
            for row, known in zip(own, has_user(own).tolist(), strict=True)
        }
        (user,) = users if len(users) == 1 else (None,)
        codes = self.deltas.used.codes[start:stop]
        return Session(
            id=self.id(n),
            session_id=self.deltas.session_id.at(start),
            project_id=_uuid(own[0]["project_id"].tobytes() if has_project(own[0]) else None),
            user_id=_uuid(user),
            started_us=int(self.started[n]),
            ended_us=int(self.ended[n]),
            whole=_part(own),
            used={
                self.deltas.used.values[code]: _part(own[codes == code])
                for code in np.unique(codes).tolist()
            },
        )


def compacted(deltas: SessionDeltas, gap_us: int) -> SessionDeltas:
    """As few deltas as say the same, those of a user without ``session_id`` by gaps of so long.

    None reaches beyond a day (UTC).
    """
    rows = deltas.rows
    named = ~deltas.session_id.none()
    large = np.zeros(len(rows), np.bool_)
    for name in SUMS:
        large |= np.abs(rows[name]) > LARGE
    keys, _ = dense(
        combined(
            [
                dense(_keys(deltas, named)),
                dense(_words(rows["user_id"])),
                dense(has_user(rows)),
                (deltas.used.codes, len(deltas.used.values)),
                dense(rows["first_at"] // DAY_US),
                (np.where(large, np.cumsum(large), 0), int(large.sum()) + 1),
            ]
        )
    )
    order = np.lexsort((rows["first_at"], keys))
    sorted_ = rows[order]
    new = _begins(keys[order], sorted_["first_at"], sorted_["last_at"], named[order], gap_us)
    starts = np.flatnonzero(new)
    found = deltas.take(order[starts])
    if len(starts):
        found.rows["last_at"] = np.maximum.reduceat(sorted_["last_at"], starts)
        for name in SUMS:
            found.rows[name] = np.add.reduceat(sorted_[name], starts)
    return found


def begun_us(deltas: SessionDeltas) -> Integers:
    """When the session of each delta began by these alone; of one without a name, the delta."""
    first: Integers = deltas.rows["first_at"].copy()
    named = np.flatnonzero(~deltas.session_id.none())
    if len(named):
        some = deltas.take(named)
        keys, count = dense(_keys(some, np.ones(len(named), np.bool_)))
        earliest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(earliest, keys, first[named])
        first[named] = earliest[keys]
    return first


def key_table(org_id: UUID, deltas: SessionDeltas) -> tuple[Bytes, Integers]:
    """The keys that there are, of shape (keys, 16), and which one is that of each delta."""
    groups, count = dense(_keys(deltas, ~deltas.session_id.none()))
    firsts = np.zeros(count, np.int64)
    firsts[groups] = np.arange(len(groups))
    keys = b"".join(_keys_at(org_id, deltas, firsts))
    return np.frombuffer(keys, np.uint8).reshape(-1, 16), groups


def _keys_at(org_id: UUID, deltas: SessionDeltas, places: Integers) -> list[bytes]:
    """The keys of some of the deltas."""
    rows = deltas.rows[places]
    sessions = [deltas.session_id.values[code] for code in deltas.session_id.codes[places].tolist()]
    projects = some_ids(rows["project_id"], has_project(rows))
    users = some_ids(rows["user_id"], has_user(rows))
    org = org_id.bytes
    return [
        _key_bytes(org, project or b"", session, user or b"")
        for project, session, user in zip(projects, sessions, users, strict=True)
    ]


def some_ids(ids: NDArray[np.void], there: Mask) -> list[bytes | None]:
    """The ids, None where there is none."""
    return [one if ok else None for one, ok in zip(ids.tolist(), there.tolist(), strict=True)]


def _begins(keys: Integers, first: Integers, last: Integers, named: Mask, gap_us: int) -> Mask:
    """Where another session begins, among deltas in the order of their keys and beginnings."""
    new = np.ones(len(keys), np.bool_)
    if len(keys) < 2:
        return new
    # The latest end until here within the key, by its rank: no two keys have one in common.
    ends, rank = np.unique(last, return_inverse=True)
    latest = ends[np.maximum.accumulate(keys * len(ends) + rank) % len(ends)]
    new[1:] = (keys[1:] != keys[:-1]) | (~named[1:] & (first[1:] - latest[:-1] >= gap_us))
    return new


def _keys(deltas: SessionDeltas, named: Mask) -> Integers:
    """A number for what may be one session: project and ``session_id``, or project and user."""
    rows = deltas.rows
    user, _ = dense(combined([dense(_words(rows["user_id"])), dense(has_user(rows))]))
    return combined(
        [
            dense(_words(rows["project_id"])),
            dense(has_project(rows)),
            (deltas.session_id.codes, len(deltas.session_id.values)),
            dense(np.where(named, 0, user + 1)),
        ]
    )


def _words(ids: NDArray[np.void]) -> Integers:
    """A number for each id."""
    words = np.frombuffer(ids.tobytes(), "<i8").reshape(-1, 2)
    return combined([dense(words[:, 0]), dense(words[:, 1])])


def equal_ids(ids: NDArray[np.void], wanted: UUID) -> Mask:
    """Which of them are the one that is wanted."""
    words = np.frombuffer(ids.tobytes(), "<i8").reshape(-1, 2)
    same: Mask = (words == np.frombuffer(wanted.bytes, "<i8")).all(axis=1)
    return same


def _sums(values: Integers, starts: Integers) -> Integers:
    return np.add.reduceat(values, starts) if len(values) else values


def _part(rows: NDArray[np.void]) -> Part:
    return Part(**{name: _sum(rows[name]) for name in SUMS})


def _sum(values: Integers) -> int:
    """Exact, however large it is."""
    low = values & ((1 << _LIMB) - 1)
    return (int((values >> _LIMB).sum()) << _LIMB) + int(low.sum())


def _uuid(value: bytes | None) -> UUID | None:
    return None if value is None else UUID(bytes=value)


def add_up(parts: Sequence[Part]) -> Part:
    """The sum of several."""
    return Part(**{name: sum(getattr(part, name) for part in parts) for name in SUMS})


def of_models(session: Session) -> Iterator[tuple[str, Part]]:
    """What each model has of a session, in the order of the names."""
    names = sorted({used.model for used in session.used if used.model is not None})
    for name in names:
        yield name, add_up([p for used, p in session.used.items() if used.model == name])


def of_tools(session: Session) -> Iterator[tuple[tuple[str, str], Part]]:
    """What each tool has of a session, by its server and name, in their order."""
    names = sorted(
        {(used.mcp_server or "", used.tool) for used in session.used if used.tool is not None}
    )
    for server, tool in names:
        yield (
            (server, tool),
            add_up(
                [
                    part
                    for used, part in session.used.items()
                    if used.tool == tool and (used.mcp_server or "") == server
                ]
            ),
        )
