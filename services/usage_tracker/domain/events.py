"""Events as clients send them, read one by one where a batch cannot be read as a whole."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import GenericAlias
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.errors import FieldError, Invalid, PayloadTooLarge

MAX_EVENTS = 10_000
MAX_BYTES = 10_000_000
# Columns of fewer events cost more than the events one by one.
FEWEST_FIELDS = 32
# Integers up to here survive a client that computes with doubles.
MAX_INTEGER = 2**53

# Structural tokens that a body may have which is no JSON as a whole, before it is refused unread.
_MAX_TOKENS = 1_000_000
_MAX_NAME = 100
_NULL = msgspec.Raw(b"null")

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """One event before it is judged; what must be there depends on its type."""

    event_id: str | None = None
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    event_type: Literal["api_call", "mcp_tool", "session"] | None = None
    model: Name | None = None
    mcp_server: Name | None = None
    tool: Name | None = None
    session_id: Name | None = None
    org_id: str | None = None
    project_id: str | None = None
    user_id: Name | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_tokens: Count | None = None
    cache_write_5m_tokens: Count | None = None
    cache_write_1h_tokens: Count | None = None
    latency_ms: msgspec.Raw = _NULL
    provider: Name | None = None
    service_tier: Name | None = None
    status: Literal["ok", "error"] | None = None
    error_type: Name | None = None
    request_id: Name | None = None
    decision_id: Name | None = None
    cost_usd: msgspec.Raw = _NULL
    metadata: dict[str, Any] | None = None


class Events(msgspec.Struct, forbid_unknown_fields=True):
    events: list[Event]


# The fields of ``Event``, each with its value of every event; times are texts still.
Fields = Mapping[str, Sequence[Any]]

_Timed = msgspec.defstruct(
    "_Timed",
    [
        (f.name, str | None if f.name == "timestamp" else f.type, f.default)
        for f in msgspec.structs.fields(Event)
    ],
    forbid_unknown_fields=True,
)


_TimedEvents = msgspec.defstruct(
    "_TimedEvents", [("events", GenericAlias(list, (_Timed,)))], forbid_unknown_fields=True
)


class _Unread(msgspec.Struct, forbid_unknown_fields=True):
    events: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an event was not taken; ``field`` is None where it is the event as a whole."""

    code: str
    field: str | None
    message: str


def invalid_value(field: str | None, message: str) -> Rejection:
    return Rejection("invalid_value", field, message)


def missing_field(field: str, message: str = "is required") -> Rejection:
    return Rejection("missing_field", field, message)


def foreign(field: Literal["org_id", "project_id"]) -> Rejection:
    """The caller may not know whether the organization or project exists."""
    what = field.removesuffix("_id")
    return Rejection(f"foreign_{what}", field, "is not one that this credential can reach")


NOT_JSON = Rejection("invalid_json", None, "is not valid JSON")

_TEXTS = tuple(
    f.name
    for f in msgspec.structs.fields(Event)
    if f.name not in ("timestamp", "event_type", "status", "metadata", "latency_ms", "cost_usd")
    and not f.name.endswith("_tokens")
)
_batch = msgspec.json.Decoder(Events)
_timed = msgspec.json.Decoder(_TimedEvents)

_unread = msgspec.json.Decoder(_Unread)
_one = msgspec.json.Decoder(Event)


def read_batch(body: bytes) -> Sequence[Event | Rejection]:
    """The events of ``{"events": […]}``, each read or refused by itself.

    Raises:
        Invalid: the body is no such object, or holds no event.
        PayloadTooLarge: more than ``MAX_EVENTS``.
    """
    try:
        found: Sequence[Event | Rejection] = _batch.decode(body).events
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = [read_one(raw) for raw in _pieces(body)]
    else:
        _check_count(len(found))
        if b"\\u0000" in body:
            found = [e if isinstance(e, Rejection) else without_nul(e) for e in found]
    return found


def read_fields(body: bytes) -> Fields | None:
    """The events of a batch as columns; None where it is one to be read event by event."""
    if b"\\u0000" in body:
        return None
    try:
        (events,) = msgspec.structs.astuple(_timed.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not FEWEST_FIELDS <= len(events) <= MAX_EVENTS:
        return None
    columns = zip(*map(msgspec.structs.astuple, events), strict=True)
    return dict(zip(_Timed.__struct_fields__, columns, strict=True))


def read_one(body: bytes | msgspec.Raw) -> Event | Rejection:
    """One event, or why it is none."""
    try:
        event = _one.decode(body)
    except msgspec.ValidationError as error:
        return _rejection(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NOT_JSON
    except RecursionError:
        return invalid_value("metadata", "is nested too deeply")
    return without_nul(event) if b"\\u0000" in bytes(body) else event


def without_nul(event: Event) -> Event | Rejection:
    """The event, unless a text in it holds the character NUL, which the database cannot keep."""
    for name in _TEXTS:
        text = getattr(event, name)
        if text is not None and "\x00" in text:
            return invalid_value(name, "must not hold the character NUL")
    if event.metadata is not None and _holds_nul(event.metadata):
        return invalid_value("metadata", "must not hold the character NUL")
    return event


def _holds_nul(metadata: dict[str, Any]) -> bool:
    waiting: list[object] = [metadata]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if "\x00" in value:
                return True
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
    return False


def _pieces(body: bytes) -> Sequence[bytes | msgspec.Raw]:
    try:
        pieces: Sequence[bytes | msgspec.Raw] = _unread.decode(body).events
    except msgspec.ValidationError as error:
        wrong = _rejection(str(error))
        raise Invalid(
            f"The body is not a batch of events: {wrong.field or 'it'} {wrong.message}.",
            code=wrong.code,
            fields=[FieldError(f"/{wrong.field or ''}".rstrip("/"), wrong.code, wrong.message)],
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pieces = list(_split(body))
    _check_count(len(pieces))
    return pieces


def _check_count(count: int) -> None:
    if count == 0:
        raise Invalid(
            "There is no event in the batch.",
            code="missing_field",
            fields=[FieldError("/events", "missing_field", "must hold at least one event")],
        )
    if count > MAX_EVENTS:
        raise PayloadTooLarge(f"A batch holds {MAX_EVENTS} events at most.")


_HEAD = re.compile(rb'\s*\{\s*"events"\s*:\s*\[')
_TAIL = re.compile(rb"\s*\]\s*\}\s*\Z")
# A string that is not ended reaches to the end, so that no byte is looked at twice.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)


def _split(body: bytes) -> Iterator[bytes]:
    """The elements of the array in ``{"events": […]}``, found by brackets and quotes alone.

    Raises:
        Invalid: the brackets do not close.
    """
    head = _HEAD.match(body)
    depth, start = 0, head.end() if head else 0
    tokens = _TOKEN.finditer(body, start) if head else iter(())
    for token in itertools.islice(tokens, _MAX_TOKENS):
        mark = token[0]
        if mark in b"{[":
            depth += 1
        elif depth == 0 and mark in b",]":
            piece = body[start : token.start()].strip()
            if piece or mark == b",":
                yield piece
            start = token.end()
            if mark == b"]" and _TAIL.match(body, token.start()):
                return
            if mark == b"]":
                break
        elif mark in b"}]":
            depth -= 1
    raise Invalid(
        "The body is not valid JSON.",
        code="invalid_json",
        fields=[FieldError("", "invalid_json", "is not valid JSON")],
    )


_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_WHERE = re.compile(r"(?P<what>.*) - at `\$\.(?P<field>\w+)[^`]*`", re.DOTALL)


def _rejection(error: str) -> Rejection:
    """What msgspec says of the first thing that is wrong, in our codes."""
    if unknown := _UNKNOWN.match(error):
        name = unknown[1][:_MAX_NAME]
        return Rejection("unknown_field", name, "is not a known field")
    if missing := _MISSING.match(error):
        return missing_field(missing[1])
    if where := _WHERE.fullmatch(error):
        return invalid_value(where["field"], _told(where["what"]))
    return invalid_value(None, _told(error))


def _told(text: str) -> str:
    return f"is not valid: {text[:1].lower()}{text[1:]}"
