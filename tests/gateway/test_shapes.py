"""Fields as their protos and rules describe them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import BytesValue

from buf.validate import validate_pb2
from mindweave.usage_tracker.v1.usage_tracker_pb2 import GetMetricsResponse, UsageEvent
from services.gateway.http.openapi.schemas import Schemas
from services.gateway.http.reading import ObjectReader, QueryReader
from services.gateway.http.shapes import fields_of
from services.gateway.http.writing import writer_of

pytestmark = pytest.mark.unit

Rules = Callable[[Any], object]
KINDS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
}


def message(kind: str, rules: Rules) -> Descriptor:
    """A message with the one field ``f`` of a kind, under rules."""
    assert validate_pb2.DESCRIPTOR.name
    field = FieldDescriptorProto(
        name="f", number=1, type=KINDS[kind], label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    rules(getattr(field.options.Extensions[validate_pb2.field], kind))
    file = FileDescriptorProto(
        name="test.proto",
        package="test",
        syntax="proto3",
        dependency=["buf/validate/validate.proto"],
        message_type=[DescriptorProto(name="M", field=[field])],
    )
    pool = descriptor_pool.DescriptorPool()
    seen: set[str] = set()

    def add(name: str) -> None:
        if name not in seen:
            seen.add(name)
            known = FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(known)
            for needed in known.dependency:
                add(needed)
            pool.AddSerializedFile(known.SerializeToString())

    add("buf/validate/validate.proto")
    pool.AddSerializedFile(file.SerializeToString())
    found: Descriptor = pool.FindMessageTypeByName("test.M")
    return found


def is_in(*values: Any) -> Rules:
    return lambda rules: getattr(rules, "in").extend(values)


@pytest.mark.parametrize(
    ("kind", "rules", "required"),
    [
        ("string", lambda r: setattr(r, "max_len", 5), False),
        ("string", lambda r: setattr(r, "min_len", 1), True),
        ("string", lambda r: setattr(r, "len", 3), True),
        ("string", lambda r: setattr(r, "pattern", "^a"), True),
        ("string", lambda r: setattr(r, "uuid", True), True),
        ("string", lambda r: setattr(r, "const", "x"), True),
        ("string", is_in("a", "b"), True),
        ("string", is_in("", "b"), False),
        ("bool", lambda r: setattr(r, "const", True), True),
        ("bool", lambda r: setattr(r, "const", False), False),
        ("bool", lambda r: r.SetInParent(), False),
        ("int32", lambda r: setattr(r, "gte", 0), False),
        ("int32", lambda r: setattr(r, "gt", 0), True),
        ("int32", lambda r: setattr(r, "gte", 1), True),
        ("int32", lambda r: setattr(r, "lt", 0), True),
        ("int32", lambda r: setattr(r, "lte", -1), True),
        ("int32", lambda r: setattr(r, "lte", 5), False),
        ("int32", is_in(1, 2), True),
        ("int32", is_in(0, 2), False),
        ("double", lambda r: setattr(r, "gt", 0), True),
    ],
)
def test_a_body_must_name_a_field_whose_empty_value_breaks_its_rules(
    kind: str, rules: Rules, required: bool
) -> None:
    assert fields_of(message(kind, rules))["f"].required == required


def test_kinds_of_fields_that_rest_does_not_carry_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="no maps"):
        fields_of(Struct.DESCRIPTOR)
    with pytest.raises(ValueError, match="enumerations are strings"):
        fields_of(FieldDescriptorProto.DESCRIPTOR)
    with pytest.raises(ValueError, match="holds no message"):
        _ = fields_of(Timestamp.DESCRIPTOR)["seconds"].inner
    for descriptor in (BytesValue.DESCRIPTOR, GetMetricsResponse.DESCRIPTOR):
        with pytest.raises(ValueError, match="no field of this kind"):
            writer_of(descriptor)
        with pytest.raises(ValueError, match="no field of this kind"):
            ObjectReader(descriptor)
        with pytest.raises(ValueError, match="no field of this kind"):
            Schemas().answer(descriptor)
    with pytest.raises(ValueError, match="no field of this kind"):
        QueryReader(UsageEvent.DESCRIPTOR)


def test_free_objects_are_written_as_json() -> None:
    event = UsageEvent(input_tokens=5)
    event.metadata.update({"feature": "search", "n": 2})
    event.cost_usd.string_value = "0.5"
    made = writer_of(UsageEvent.DESCRIPTOR)(event)
    assert made["metadata"] == {"feature": "search", "n": 2.0}
    assert made["cost_usd"] == "0.5"
    assert made["input_tokens"] == 5


def test_a_message_is_asked_or_answered_and_not_both() -> None:
    schemas = Schemas()
    schemas.answer(UsageEvent.DESCRIPTOR)
    with pytest.raises(ValueError, match="two schemas"):
        schemas.request(UsageEvent.DESCRIPTOR)
    named = Schemas()
    named.request(UsageEvent.DESCRIPTOR)
    with pytest.raises(ValueError, match="both asked and answered"):
        named.answer(UsageEvent.DESCRIPTOR)


def test_a_rule_on_a_value_is_shown_in_its_schema() -> None:
    schemas = Schemas()
    field = fields_of(message("string", lambda r: setattr(r, "pattern", "^[a-z]$")))["f"]
    assert schemas.parameter(field) == {"type": "string", "pattern": "^[a-z]$"}
    bounded = message("double", lambda r: setattr(r, "gt", 1))
    shown = schemas.parameter(fields_of(bounded)["f"])
    assert shown == {"type": "number", "format": "double", "exclusiveMinimum": 1}
