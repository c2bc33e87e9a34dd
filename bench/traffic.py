"""Bodies of ``POST /v1/events``, put together from encoded events with new random ids."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

USERS = 200
EVENT_BYTES = 401
MODELS = (
    ("claude-sonnet-4-5", "anthropic"),
    ("gpt-5-mini", "openai"),
    ("gemini-2.5-flash", "google"),
)
_POOL = 30_000
_ID = "00000000-0000-4000-8000-000000000000"
_TIME = "2026-01-01T00:00:00.000Z"
_DIGITS = np.frombuffer(b"".join(b"%02x" % n for n in range(256)), np.uint8).reshape(256, 2)
# Where the hexadecimal digits of an id stand in its text.
_PLACES = np.array([n for n, mark in enumerate(_ID) if mark != "-"])

Bytes = NDArray[np.uint8]


class Traffic:
    """Events of 200 users, the given projects and three models, 401 bytes each."""

    def __init__(self, projects: Sequence[str], seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = self._encoded(projects)
        first = self._pool[0].tobytes()
        self._id = first.index(_ID.encode()) + _PLACES
        self._time = first.index(_TIME.encode())

    def body(self, events: int) -> tuple[bytes, Bytes]:
        """A request's body and the ids in it, of shape (events, 16)."""
        ids = np.frombuffer(secrets.token_bytes(16 * events), np.uint8).reshape(events, 16)
        block = self._pool[self._random.integers(_POOL, size=events)]
        block[:, self._id] = _DIGITS[ids].reshape(events, 32)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        block[:, self._time : self._time + len(now)] = np.frombuffer(now.encode(), np.uint8)
        return b'{"events":[' + block.tobytes()[:-1] + b"]}", ids

    def _encoded(self, projects: Sequence[str]) -> Bytes:
        """The pool: one event a row, its comma included."""
        draw = self._random
        users = [str(UUID(bytes=draw.bytes(16), version=4)) for _ in range(USERS)]
        rows = []
        for _ in range(_POOL):
            model, provider = MODELS[draw.integers(len(MODELS))]
            event: dict[str, object] = {
                "event_id": _ID,
                "timestamp": _TIME,
                "event_type": "api_call",
                "model": model,
                "provider": provider,
                "project_id": projects[draw.integers(len(projects))],
                "user_id": users[draw.integers(USERS)],
                "session_id": f"s-{draw.integers(10**6):06d}",
                "input_tokens": int(draw.integers(1, 20_000)),
                "output_tokens": int(draw.integers(1, 2_000)),
                "latency_ms": round(float(draw.gamma(2.0, 700.0)), 3),
                "request_id": "",
            }
            bare = len(json.dumps(event, separators=(",", ":")))
            event["request_id"] = draw.bytes(64).hex()[: EVENT_BYTES - bare]
            rows.append(json.dumps(event, separators=(",", ":")).encode() + b",")
        return np.frombuffer(b"".join(rows), np.uint8).reshape(_POOL, EVENT_BYTES + 1)


def random_events(count: int, projects: Sequence[str], seed: int = 1) -> bytes:
    """One body of so many events."""
    return Traffic(projects, seed).body(count)[0]
