"""Judging a batch column by column.

Only what is plain is judged here: usual texts, known tenants, times within their bounds. Whatever
is odd is left to ``Judge``, event by event, which alone says why an event is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import compress
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import numpy as np
import xxhash

from common.columns import Bytes, Column, Integers, Mask, column_of, packed_column, packed_numbers
from services.usage_tracker.domain.columns import ABSENT, Columns
from services.usage_tracker.domain.events import Event, Fields
from services.usage_tracker.domain.judging import (
    MAX_AHEAD,
    MAX_LATENCY_MS,
    TYPE_NEEDS,
    Judge,
    Project,
    Refused,
    Row,
    encoded_metadata,
    microseconds,
    user_of,
)

T = TypeVar("T")

_LONGEST_NUMBER = 60
_US = timedelta(microseconds=1)
_SAID = Row._fields[Row._fields.index("at") : Row._fields.index("digest")]
_TOKENS = tuple(name for name in _SAID if name.endswith("_tokens"))
_SAME = (
    *("model", "provider", "service_tier", "mcp_server", "tool", "session_id", "request_id"),
    *("event_type", "decision_id", "error_type"),
)
# Decimal numbers of an event: the field, its column, the largest that is plain, digits behind the
# point. Below its largest, a float is exact enough to tell nano-dollars apart.
_DECIMALS = (
    ("latency_ms", "latency_us", MAX_LATENCY_MS, 3),
    ("cost_usd", "client_cost_nano", 1_000_000, 9),
)
_ODD = b""
# Of a number as it travels: a worker of the release before reads no shorter ones.
_LEAST_BYTES = 4
_pack = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Judged:
    """Events to record, in the order of their batch; the fields of ``Row`` as columns."""

    ids: Mapping[str, Bytes]
    numbers: Mapping[str, Integers]
    coded: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.ids["event_id"])

    def partitions(self, partition: Callable[[bytes, bytes], int]) -> dict[int, Integers]:
        """The events of each partition, which their identity decides."""
        events = self.ids["event_id"].view("V16").reshape(-1).tolist()
        found = np.array(list(map(partition, self.coded["org_id"].listed(), events)))
        return {int(part): np.flatnonzero(found == part) for part in np.unique(found)}

    def columns(self, chosen: Integers) -> Columns:
        """Some of the events as they travel."""
        found: dict[str, Any] = {name: ids[chosen].tobytes() for name, ids in self.ids.items()}
        for name, numbers in self.numbers.items():
            found[name] = packed_numbers(numbers[chosen], _LEAST_BYTES)
        for name, column in self.coded.items():
            found[name] = packed_column(column, chosen)
        return Columns(**found)


def judge_fields(judge: Judge, fields: Fields) -> tuple[Judged | None, Mask]:
    """Judge what is plain; where the mask is false, an event is odd and not among the judged."""
    read = _Read(judge, fields)
    plain = read.plain
    if plain.all():
        return read.judged(), plain
    if not plain.any():
        return None, plain
    keep = plain.tolist()
    kept = {name: list(compress(values, keep)) for name, values in fields.items()}
    return _Read(judge, kept).judged(), plain


class _Read:
    """The fields of a batch as far as they are plain."""

    def __init__(self, judge: Judge, fields: Fields) -> None:
        self._fields = fields
        self._event_ids, self.plain = _uuids(fields["event_id"])
        self._numbers: dict[str, Integers] = {}
        self._tenants = self._known(judge)
        self._note(_mask(t is not None for t in self._tenants.values)[self._tenants.codes])
        self._note(_typed(fields))
        self._read_times(judge)
        for name, scaled, largest, digits in _DECIMALS:
            self._numbers[scaled], plain = _scaled(fields[name], largest, digits)
            self._note(plain)
        self._metadata = list(map(_encoded, fields["metadata"]))
        self._note(_mask(found is not _ODD for found in self._metadata))

    def judged(self) -> Judged:
        """The columns, where all events are plain."""
        fields, tenants = self._fields, self._tenants
        values: dict[str, Sequence[Any]] = {name: fields[name] for name in _SAME}
        values["status"] = [status or "ok" for status in fields["status"]]
        values["metadata"] = self._metadata
        coded = {name: column_of(column) for name, column in values.items()}
        coded["org_id"] = _mapped(tenants, lambda t: t[0].bytes)
        coded["project_id"] = _mapped(tenants, lambda t: t[1].project_id.bytes if t[1] else None)
        coded["team_id"] = _mapped(
            tenants, lambda t: t[1].team_id.bytes if t[1] and t[1].team_id else None
        )
        users = self._users(coded["org_id"])
        coded["user_id"] = _mapped(users, lambda user: user[0])
        coded["user_ref"] = _mapped(users, lambda user: user[1])
        for name in ("project_id", "user_id", "user_ref"):
            values[name] = coded[name].listed()
        numbers = dict(self._numbers)
        for name in _TOKENS:
            values[name] = [count or 0 for count in fields[name]]
            numbers[name] = np.array(values[name], np.int64)
        values["at"] = numbers["at"].tolist()
        for _, name, _, _ in _DECIMALS:
            values[name] = [None if v == ABSENT else v for v in numbers[name].tolist()]
        said = zip(*(values[name] for name in _SAID), strict=True)
        digests = b"".join(map(xxhash.xxh3_128_digest, map(_pack, said)))
        ids = {
            "event_id": self._event_ids,
            "digest": np.frombuffer(digests, np.uint8).reshape(-1, 16),
        }
        return Judged(ids, numbers, coded)

    def _note(self, plain: Mask) -> None:
        self.plain &= plain

    def _read_times(self, judge: Judge) -> None:
        at, readable = _times(self._fields["timestamp"])
        now = microseconds(judge.now)
        self._numbers["at"] = at
        self._note(
            readable & (now - at <= judge.raw_retention // _US) & (at - now <= MAX_AHEAD // _US)
        )

    def _known(self, judge: Judge) -> Column:
        """The organization and project of each event; None where it is odd."""
        fields = self._fields
        asked = column_of(list(zip(fields["org_id"], fields["project_id"], strict=True)))

        def tenant(pair: tuple[str | None, str | None]) -> tuple[UUID, Project | None] | None:
            try:
                return judge.tenant(Event(org_id=pair[0], project_id=pair[1]))
            except Refused:
                return None

        return Column([tenant(pair) for pair in asked.values], asked.codes)

    def _users(self, orgs: Column) -> Column:
        """Each user's id, and the client's own name of the user, as ``user_of`` gives them."""
        users = column_of(self._fields["user_id"])
        pairs, codes = np.unique(users.codes * len(orgs.values) + orgs.codes, return_inverse=True)
        texts, of = (part.tolist() for part in divmod(pairs, len(orgs.values)))
        return Column(
            [
                user_of(users.values[text], UUID(bytes=orgs.values[org]))
                for text, org in zip(texts, of, strict=True)
            ],
            codes,
        )


def _mapped(column: Column, value_of: Callable[[Any], Any]) -> Column:
    """Another column that the first one decides."""
    values = column_of([value_of(value) for value in column.values])
    return values.take(column.codes)


def _typed(fields: Fields) -> Mask:
    """Where there is a type, and what it needs."""
    types = fields["event_type"]
    distinct = set(types)
    found: Mask = _mask(kind is not None for kind in types)
    for kind, needs in TYPE_NEEDS.items():
        if kind in distinct:
            other = _mask(value != kind for value in types)
            for name in needs:
                found &= other | _mask(value is not None for value in fields[name])
    return found


def _mask(values: Iterable[bool]) -> Mask:
    return np.fromiter(values, np.bool_)


def _encoded(metadata: dict[str, object] | None) -> bytes | None:
    if metadata is None:
        return None
    try:
        return encoded_metadata(metadata)
    except Refused:
        return _ODD


def _scaled(raws: Sequence[msgspec.Raw], largest: int, digits: int) -> tuple[Integers, Mask]:
    """Numbers times ten to the power of ``digits``, and where they are plain.

    A float that is a whole multiple divided again stands for numbers so near to that multiple that
    all of them are rounded to it, however they were written.
    """
    if raws.count(raws[0]) == len(raws) and bytes(raws[0]) == b"null":
        return np.full(len(raws), ABSENT), np.ones(len(raws), np.bool_)
    literals = list(map(bytes, raws))
    present = _mask(literal != b"null" for literal in literals)
    plain = _mask(map(_is_plain, literals))
    values = np.array(
        [float(literal) if ok else 0.0 for literal, ok in zip(literals, plain, strict=True)]
    )
    scaled = np.rint(values * 10**digits)
    plain &= (scaled / 10**digits == values) & (values <= largest)
    found = np.where(plain, scaled, ABSENT).astype(np.int64)
    return found, plain | ~present


def _is_plain(literal: bytes) -> bool:
    """Whether it is digits with at most a point."""
    return len(literal) <= _LONGEST_NUMBER and literal.replace(b".", b"", 1).isdigit()


_DASHES = np.array([8, 13, 18, 23])
_HEX_PLACES = np.delete(np.arange(36), _DASHES)
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789", np.uint8)] = np.arange(10)
_HEX[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def _uuids(texts: Sequence[str | None]) -> tuple[Bytes, Mask]:
    """The 16 bytes of each, and where the text is an id in its usual form."""
    table, plain = _table(texts, 36)
    digits: Bytes = _HEX[table[:, _HEX_PLACES]]
    plain &= _everywhere(table[:, _DASHES] == ord("-")) & _everywhere(digits != 255)
    return np.ascontiguousarray(digits[:, 0::2] << 4 | digits[:, 1::2] & 15, np.uint8), plain


_DATE_MARKS = ((4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"))
_DATE_DIGITS = np.delete(np.arange(19), [place for place, _ in _DATE_MARKS])
_ZONES = (b"Z", b"+00:00")


def _times(texts: Sequence[str | None]) -> tuple[Integers, Mask]:
    """Microseconds since 1970, and where the text is a time in UTC in its usual form."""
    at, plain = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.bool_)
    for length in {len(text) for text in texts if text is not None}:
        for zone in _ZONES:
            fraction = length - 19 - len(zone)
            if fraction == 0 or 2 <= fraction <= 7:
                table, fits = _table(texts, length)
                fits &= _everywhere(table[:, -len(zone) :] == np.frombuffer(zone, np.uint8))
                found, readable = _moments(table[:, : 19 + fraction])
                fits &= readable
                at[fits], plain[fits] = found[fits], True
    return at, plain


def _moments(table: Bytes) -> tuple[Integers, Mask]:
    """Of ``YYYY-MM-DDTHH:MM:SS`` and a point with up to six digits, or without."""
    fraction = table.shape[1] - 20
    places = np.concatenate([_DATE_DIGITS, np.arange(20, 20 + max(fraction, 0))])
    digits = table[:, places].astype(np.int64) - ord("0")
    marks = _DATE_MARKS if fraction <= 0 else (*_DATE_MARKS, (19, "."))
    signs = np.frombuffer("".join(mark for _, mark in marks).encode(), np.uint8)
    fits = _everywhere(np.logical_and(digits >= 0, digits <= 9))
    fits &= _everywhere(table[:, [place for place, _ in marks]] == signs)

    def number(start: int, end: int) -> Integers:
        powers: Integers = 10 ** np.arange(end - start - 1, -1, -1)
        found: Integers = digits[:, start:end] @ powers
        return found

    year, month, day = number(0, 4), number(4, 6), number(6, 8)
    hour, minute, second = number(8, 10), number(10, 12), number(12, 14)
    fits &= (year >= 1970) & (month >= 1) & (month <= 12) & (day >= 1)
    fits &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(fits, (year - 1970) * 12 + month - 1, 0).astype("M8[M]")
    days = months.astype("M8[D]") + np.where(fits, day - 1, 0)
    fits &= days.astype("M8[M]") == months
    seconds = days.astype(np.int64) * 86_400 + hour * 3600 + minute * 60 + second
    micros = number(14, 14 + fraction) * 10 ** (6 - fraction) if fraction > 0 else 0
    return seconds * 1_000_000 + micros, fits


def _everywhere(cells: Mask) -> Mask:
    """The rows whose cells are all true."""
    found: Mask = np.logical_and.reduce(cells, axis=1)
    return found


def _table(texts: Sequence[str | None], length: int) -> tuple[Bytes, Mask]:
    """Texts of one length, a row of bytes each, and which texts have it."""
    filler = "?" * length
    fits = [text is not None and len(text) == length for text in texts]
    joined = "".join(
        [text if ok and text else filler for text, ok in zip(texts, fits, strict=True)]
    )
    # A character beyond ASCII becomes one question mark, which is no part of anything here.
    table = np.frombuffer(joined.encode("ascii", "replace"), np.uint8).reshape(-1, length)
    return table, _mask(fits)
