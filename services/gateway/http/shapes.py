"""What a field of a message may hold, as its proto and its rules (buf.validate) say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2

Kind = Literal[
    "string", "boolean", "integer", "number", "timestamp", "struct", "value", "mask", "bytes",
    "http_body", "message",
]  # fmt: skip

_SCALARS: dict[int, Kind] = {
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_INT64: "integer",
    FieldDescriptor.CPPTYPE_UINT32: "integer",
    FieldDescriptor.CPPTYPE_UINT64: "integer",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
}
_WELL_KNOWN: dict[str, Kind] = {
    "google.protobuf.Timestamp": "timestamp",
    "google.protobuf.Struct": "struct",
    "google.protobuf.Value": "value",
    "google.protobuf.FieldMask": "mask",
    "google.api.HttpBody": "http_body",
}
_RANGES: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
# Rules of a string that the empty one breaks.
_NEVER_EMPTY = ("uuid", "tuuid", "email", "hostname", "ip", "ipv4", "ipv6", "uri", "address")


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    ``nullable``: null stands for its absence. ``optional``: the proto says that it may be absent,
    which is news of a message only. ``required``: a body must name it. ``low`` and ``high`` are
    what its integer type holds. ``rules`` is the part of its rules that bears on the value (on each
    item where ``repeated``); ``list_rules`` bears on the list.
    """

    name: str
    full_name: str
    kind: Kind
    repeated: bool
    nullable: bool
    required: bool
    optional: bool
    low: int
    high: int
    message: Descriptor | None
    rules: Any
    list_rules: Any

    @property
    def inner(self) -> Descriptor:
        """The message that the field holds.

        Raises:
            ValueError: it holds none.
        """
        if self.message is None:
            raise ValueError(f"{self.full_name} holds no message")
        return self.message


@cache
def fields_of(descriptor: Descriptor) -> dict[str, Field]:
    """The fields of a message by name, in the order of the proto.

    Raises:
        ValueError: a field is of a kind that REST does not carry.
    """
    return {field.name: _field(field) for field in descriptor.fields}


def _field(field: FieldDescriptor) -> Field:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    repeated = bool(field.is_repeated)
    kind = _kind(field)
    low, high = _RANGES.get(field.cpp_type, (0, 0))
    nullable = bool(field.has_presence) and not rules.required
    return Field(
        name=field.name,
        full_name=field.full_name,
        kind=kind,
        repeated=repeated,
        nullable=nullable,
        required=rules.required or (not field.has_presence and _refuses_default(rules)),
        optional=field.containing_oneof is not None,
        low=low,
        high=high,
        message=field.message_type,
        rules=rules.repeated.items if repeated else rules,
        list_rules=rules.repeated if repeated else None,
    )


def _kind(field: FieldDescriptor) -> Kind:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            raise ValueError(f"{field.full_name}: REST carries no maps")
        return _WELL_KNOWN.get(field.message_type.full_name, "message")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytes"
    if field.cpp_type not in _SCALARS:
        raise ValueError(f"{field.full_name}: enumerations are strings in REST, checked by `in`")
    return _SCALARS[field.cpp_type]


def _refuses_default(rules: Any) -> bool:
    """Whether the value that an absent field has (empty, zero) breaks its rules."""
    kind = rules.WhichOneof("type")
    if kind is None:
        return False
    own = getattr(rules, kind)
    if kind == "repeated":
        return bool(own.min_items)
    default: object = "" if kind == "string" else False if kind == "bool" else 0
    if own.HasField("const"):
        return bool(own.const != default)
    if kind == "bool":
        return False
    if len(getattr(own, "in")) and default not in getattr(own, "in"):
        return True
    if kind == "string":
        return bool(own.min_len or own.len or own.min_bytes or own.pattern) or (
            own.WhichOneof("well_known") in _NEVER_EMPTY
        )
    return _refuses_zero(own)


def _refuses_zero(own: Any) -> bool:
    bound, limit = own.WhichOneof("greater_than"), own.WhichOneof("less_than")
    low = (bound == "gt" and own.gt >= 0) or (bound == "gte" and own.gte > 0)
    high = (limit == "lt" and own.lt <= 0) or (limit == "lte" and own.lte < 0)
    return bool(low or high)
