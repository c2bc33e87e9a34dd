"""Where a record that failed was published first, and how that travels in its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.events.bus import Record

ERROR = "error"
WHEN = "when"
NOT_BEFORE = "not-before"
REPLAY_OF = "replay-of"

_TOPIC, _PARTITION, _TOKEN = "origin-topic", "origin-partition", "origin-token"
_GROUP, _ATTEMPT = "origin-group", "attempt"
_OURS = frozenset(
    {_TOPIC, _PARTITION, _TOKEN, _GROUP, _ATTEMPT, ERROR, WHEN, NOT_BEFORE, REPLAY_OF}
)


@dataclass(frozen=True, slots=True)
class Origin:
    """A record's first place, the group that failed to handle it, and how often that did."""

    topic: str
    partition: int
    token: str
    group: str
    attempts: int = 0

    def headers(self) -> dict[str, str]:
        return {
            _TOPIC: self.topic,
            _PARTITION: str(self.partition),
            _TOKEN: self.token,
            _GROUP: self.group,
            _ATTEMPT: str(self.attempts),
        }


def origin_of(record: Record) -> Origin:
    """What the headers of a retry or a dead letter say; where they lack it, its own place."""
    told = record.headers
    return Origin(
        topic=told.get(_TOPIC, record.topic),
        partition=number(told, _PARTITION, record.partition),
        token=told.get(_TOKEN, record.token),
        group=told.get(_GROUP, ""),
        attempts=number(told, _ATTEMPT, 0),
    )


def number(headers: Mapping[str, str], name: str, otherwise: int) -> int:
    """A header that is a count; ``otherwise`` where it is missing or none."""
    told = headers.get(name, "")
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 16 else otherwise


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that the record was published with."""
    return {name: value for name, value in headers.items() if name not in _OURS}
