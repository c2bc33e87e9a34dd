"""The envelope every event travels in: JSON, or msgpack where the data are columns of usage."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from common.clock import Clock
from common.events.bus import CONTENT_TYPE, DeadLetter
from common.events.catalog import event_type, event_types
from common.ids import uuid7

JSON_HEADERS = {CONTENT_TYPE: "application/json"}
PACKED_HEADERS = {CONTENT_TYPE: "application/msgpack"}

T = TypeVar("T")
Aware = Annotated[datetime, msgspec.Meta(tz=True)]


class EventRefused(DeadLetter):
    """It is not an event of the catalog, or its data do not fit the event's schema."""


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose event it is, where it is somebody's."""

    user_id: UUID | None = None
    org_id: UUID | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event. ``data`` fits the schema of ``type``; ``source`` is a service's name.

    ``data`` is ``bytes`` only in what ``unpack`` returns: the msgpack of the columns.
    """

    id: UUID
    type: str
    source: str
    timestamp: Aware
    version: Literal["1.0"] = "1.0"
    correlation_id: str = ""
    data: dict[str, Any] | bytes
    metadata: Metadata = Metadata()


class _Packed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: UUID
    type: str
    source: str
    timestamp: Aware
    version: Literal["1.0"]
    correlation_id: str
    data: msgspec.Raw
    metadata: Metadata


def encode(envelope: Envelope) -> bytes:
    """The envelope as JSON."""
    return msgspec.json.encode(envelope)


def pack(envelope: Envelope) -> bytes:
    """The envelope as msgpack, for columns of usage; send it with ``PACKED_HEADERS``.

    ``data`` given as bytes are msgpack already and are embedded as they are.
    """
    if isinstance(envelope.data, bytes):
        raw = msgspec.Raw(envelope.data)
        fields = {f: getattr(envelope, f) for f in Envelope.__struct_fields__}
        return msgspec.msgpack.encode(_Packed(**(fields | {"data": raw})))
    return msgspec.msgpack.encode(envelope)


def decode(value: bytes) -> Envelope:
    """The envelope in a record's value, JSON or msgpack.

    Raises:
        EventRefused: it is not an envelope.
    """
    parse = msgspec.json.decode if value[:1] == b"{" else msgspec.msgpack.decode
    try:
        return parse(value, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventRefused(f"not an envelope: {error}") from error


def unpack(value: bytes, columns: type[T]) -> tuple[Envelope, T]:
    """A packed envelope and its data, decoded straight into ``columns``.

    Raises:
        EventRefused: it is not a packed envelope, or its data do not fit.
    """
    try:
        packed = msgspec.msgpack.decode(value, type=_Packed)
        data = msgspec.msgpack.decode(packed.data, type=columns)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventRefused(f"not a packed envelope: {error}") from error
    fields = {f: getattr(packed, f) for f in _Packed.__struct_fields__}
    return Envelope(**(fields | {"data": bytes(packed.data)})), data


def envelope_for(
    message: Message,
    source: str,
    clock: Clock,
    org_id: UUID | None = None,
    user_id: UUID | None = None,
    correlation_id: str = "",
) -> Envelope:
    """A new envelope around an event's message.

    Raises:
        EventRefused: the message is no event, or breaks a rule of its proto.
    """
    kind = event_type(message)
    if kind is None:
        raise EventRefused(f"{message.DESCRIPTOR.full_name} has no option event")
    _check(message)
    return Envelope(
        id=uuid7(),
        type=kind.type,
        source=source,
        timestamp=clock.now(),
        correlation_id=correlation_id,
        data=MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        ),
        metadata=Metadata(user_id=user_id, org_id=org_id),
    )


def message_of(envelope: Envelope) -> Message:
    """The event's message.

    Raises:
        EventRefused: the type is unknown, or the data do not fit its schema.
    """
    kind = event_types().get(envelope.type)
    if kind is None:
        raise EventRefused(f"unknown event type {envelope.type}")
    if not isinstance(envelope.data, dict):
        raise EventRefused(f"{envelope.type} does not travel as columns")
    try:
        message = ParseDict(envelope.data, kind.message())
    except ParseError as error:
        raise EventRefused(f"{envelope.type}: {error}") from error
    _check(message)
    return message


def _check(message: Message) -> None:
    # Slow to import, and who only carries columns of usage has no message to check.
    import protovalidate

    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        broken = "; ".join(
            f"{'.'.join(e.field_name for e in v.proto.field.elements)}: {v.proto.message}"
            for v in error.violations
            if v.proto.field is not None
        )
        raise EventRefused(f"{message.DESCRIPTOR.full_name}: {broken}") from error
