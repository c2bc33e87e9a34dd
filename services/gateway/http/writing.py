"""From messages to JSON: every field present, null where there is none, numbers as numbers.

The protobuf library's ``MessageToDict`` leaves out absent fields and writes 64-bit integers as
strings; undoing that by a second walk took 3 times as long as this one (500 rows of usage).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from common.errors import Invalid
from common.exact import MAX_SUM
from services.gateway.http.shapes import Field, fields_of

# Beyond it a JSON number is not exact where numbers are doubles; an event may have so many tokens.
MAX_EXACT = MAX_SUM

Write = Callable[[Any], Any]
Member = tuple[str, bool, bool, Write | None]


def writer_of(descriptor: Descriptor) -> Callable[[Message], dict[str, Any]]:
    """Writes messages of one type as JSON objects; prepared once, also for types inside it."""
    members = _members(descriptor)

    def write(message: Message) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, repeated, optional, one in members:
            if optional and not message.HasField(name):
                made[name] = None
                continue
            value = getattr(message, name)
            if repeated:
                made[name] = list(value) if one is None else [one(item) for item in value]
            else:
                made[name] = value if one is None else one(value)
        return made

    return write


@cache
def _members(descriptor: Descriptor) -> tuple[Member, ...]:
    return tuple(
        (field.name, field.repeated, bool(own.has_presence), _write(field))
        for field, own in zip(fields_of(descriptor).values(), descriptor.fields, strict=True)
        if field.kind != "mask"
    )


def _write(field: Field) -> Write | None:
    match field.kind:
        case "string" | "boolean":
            return None
        case "integer":
            return _exact(field.full_name) if field.high > MAX_EXACT else None
        case "number":
            return _finite
        case "timestamp":
            return _time
        case "struct" | "value":
            return MessageToDict
        case "message":
            return writer_of(field.inner)
    raise ValueError(f"{field.full_name}: the gateway writes no field of this kind")


def _exact(full_name: str) -> Write:
    name = full_name.rpartition(".")[2]

    def write(value: int) -> int:
        if not -MAX_EXACT <= value <= MAX_EXACT:
            raise Invalid(
                f"{name} passes 2^53, which no JSON number holds exactly; ask for less at once.",
                code="number_too_large",
            )
        return value

    return write


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _time(value: Any) -> str:
    return str(value.ToJsonString())
