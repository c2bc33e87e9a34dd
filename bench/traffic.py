"""Bodies of ``POST /v1/events``, put together from encoded events with new random ids."""

from __future__ import annotations

import json
import secrets
from binascii import hexlify
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

USERS = 200
EVENT_BYTES = 401
# Of a row: an event and its comma.
ROW_BYTES = EVENT_BYTES + 1
BEFORE, AFTER = b'{"events":[', b"]}"
MODELS = (
    ("claude-sonnet-4-5", "anthropic"),
    ("gpt-5-mini", "openai"),
    ("gemini-2.5-flash", "google"),
)
_POOL = 30_000
_ID = "00000000-0000-4000-8000-000000000000"
_TIME = "2026-01-01T00:00:00.000Z"
# Of a time without its zone.
_TIME_TEXT = np.dtype(f"S{len(_TIME) - 1}")
# Which hexadecimal digits of an id stand from where on in its text.
_DIGITS = ((0, 8, 0), (8, 12, 9), (12, 16, 14), (16, 20, 19), (20, 32, 24))
# The last characters of a request's id, which are digits of the event's.
_OWN = 24
_END = len('"},')

Bytes = NDArray[np.uint8]
Times = NDArray[np.datetime64]


class Traffic:
    """Events of some users, the given projects and three models, 401 bytes each.

    Id, time and the request's id are each event's own; the rest comes from a pool.
    """

    def __init__(
        self, projects: Sequence[str], seed: int, *, users: int = USERS, pool: int = _POOL
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = self._encoded(projects, users, pool)
        first = self._pool[0].tobytes()
        self._id = first.index(_ID.encode())
        self._time = first.index(_TIME.encode())

    def rows(self, events: int, at: Times | None = None) -> tuple[Bytes, Bytes]:
        """Encoded events, each with its comma, and their ids, of shape (events, 16).

        They are of now, or of the given times.
        """
        ids = secrets.token_bytes(16 * events)
        digits = np.frombuffer(hexlify(ids), np.uint8).reshape(events, 32)
        start = int(self._random.integers(len(self._pool)))
        rows = np.take(self._pool, np.arange(start, start + events), axis=0, mode="wrap")
        for first, last, place in _DIGITS:
            place += self._id
            rows[:, place : place + last - first] = digits[:, first:last]
        rows[:, ROW_BYTES - _END - _OWN : ROW_BYTES - _END] = digits[:, -_OWN:]
        if at is None:
            at = np.array([datetime.now(UTC).replace(tzinfo=None)], "M8[ms]")
        text = np.datetime_as_string(at, unit="ms").astype(_TIME_TEXT)
        rows[:, self._time : self._time + _TIME_TEXT.itemsize] = text.view(np.uint8).reshape(
            len(at), -1
        )
        return rows, np.frombuffer(ids, np.uint8).reshape(events, 16)

    def body(self, events: int) -> tuple[bytes, Bytes]:
        """A request's body and the ids in it, of shape (events, 16)."""
        rows, ids = self.rows(events)
        return body_of(rows), ids

    def _encoded(self, projects: Sequence[str], users: int, pool: int) -> Bytes:
        draw = self._random
        names = [str(UUID(bytes=draw.bytes(16), version=4)) for _ in range(users)]
        rows = []
        for _ in range(pool):
            model, provider = MODELS[draw.integers(len(MODELS))]
            event: dict[str, object] = {
                "event_id": _ID,
                "timestamp": _TIME,
                "event_type": "api_call",
                "model": model,
                "provider": provider,
                "project_id": projects[int(draw.integers(len(projects)))],
                "user_id": names[int(draw.integers(users))],
                "session_id": f"s-{draw.integers(10**6):06d}",
                "input_tokens": int(draw.integers(1, 20_000)),
                "output_tokens": int(draw.integers(1, 2_000)),
                "latency_ms": round(float(draw.gamma(2.0, 700.0)), 3),
                "request_id": "",
            }
            bare = len(json.dumps(event, separators=(",", ":")))
            event["request_id"] = draw.bytes(64).hex()[: EVENT_BYTES - bare]
            rows.append(json.dumps(event, separators=(",", ":")).encode() + b",")
        return np.frombuffer(b"".join(rows), np.uint8).reshape(pool, ROW_BYTES)


def body_of(rows: Bytes, head: bytes = b"") -> bytes:
    """The body of some rows, behind its head."""
    return b"".join((head, BEFORE, rows.reshape(-1)[:-1].data, AFTER))


def body_bytes(events: int) -> int:
    """How long a body of so many events is."""
    return len(BEFORE) + events * ROW_BYTES - 1 + len(AFTER)
