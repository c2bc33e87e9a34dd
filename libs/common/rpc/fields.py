"""Between the fields of messages and Python's own types."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import FieldError, Invalid


def timestamp(moment: datetime) -> Timestamp:
    """An aware time as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def moment(message: Timestamp) -> datetime:
    """A time in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def given_moment(message: Message, name: str) -> datetime | None:
    """The time in a field, in UTC; None where it is not set."""
    return moment(getattr(message, name)) if message.HasField(name) else None


def text(value: UUID | None) -> str | None:
    """An id as messages carry it."""
    return None if value is None else str(value)


def changed_fields(
    request: Message,
    mask: FieldMask,
    *,
    required: Collection[str] = (),
    nullable: Collection[str] = (),
) -> frozenset[str]:
    """The fields that a PATCH names: those of its mask, or without one those that are set.

    Args:
        request: a message with an ``update_mask``.
        mask: its ``update_mask``.
        required: changeable fields that always have a value.
        nullable: changeable fields that may be cleared by naming them without a value.

    Raises:
        Invalid: the mask names another field, or a required one without a value.
    """
    changeable = {*required, *nullable}
    if request.HasField("update_mask"):
        named = frozenset(mask.paths)
    else:
        named = frozenset(field for field in changeable if request.HasField(field))
    wrong = [
        FieldError(f"/{field}", "unknown_field", "cannot be changed")
        for field in sorted(named - changeable)
    ] + [
        FieldError(f"/{field}", "invalid_value", "must not be null")
        for field in sorted(named & set(required))
        if not request.HasField(field)
    ]
    if wrong:
        raise Invalid(fields=wrong)
    return named
