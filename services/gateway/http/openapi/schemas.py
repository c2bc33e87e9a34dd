"""JSON schemas of messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf.descriptor import Descriptor

from common.paging import DEFAULT_PAGE_SIZE
from common.rpc.contract import contract_comments
from services.gateway.http.openapi.examples import example_of
from services.gateway.http.shapes import Field, fields_of
from services.gateway.http.writing import MAX_EXACT

Schema = dict[str, Any]

MONEY = r"^-?[0-9]+\.[0-9]{9}$"
# Times that every answer has; other times may be null.
_ALWAYS = frozenset(
    {
        *("created_at", "updated_at", "accepted_at", "last_seen_at"),
        *("effective_from", "first_at", "last_at"),
    }
)
_FORMATS = ("uuid", "email", "hostname", "ipv4", "ipv6", "uri")


class Schemas:
    """Makes the schemas of messages, and keeps those that others refer to.

    ``components`` holds them by name: "auth.RegisterRequest".
    """

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._asked: dict[str, bool] = {}

    def request(
        self,
        descriptor: Descriptor,
        *,
        hidden: Collection[str] = (),
        partial: bool = False,
        clearable: Collection[str] = (),
    ) -> Schema:
        """A reference to the schema of a request's body.

        Args:
            descriptor: of the message.
            hidden: fields that the body does not carry.
            partial: a merge patch: nothing is required.
            clearable: fields that a merge patch may set to null.
        """
        fields = [
            field
            for field in fields_of(descriptor).values()
            if field.kind != "mask" and field.name not in hidden
        ]
        properties = {}
        for field in fields:
            null = field.name in clearable if partial else field.nullable
            properties[field.name] = _or_null(self._value(field, asked=True), null)
        schema = _object(descriptor, properties)
        schema["additionalProperties"] = False
        required = [field.name for field in fields if field.required and not partial]
        if required:
            schema["required"] = required
        return self._keep(descriptor, schema, asked=True)

    def answer(self, descriptor: Descriptor) -> Schema:
        """A reference to the schema of an answer: every field is present."""
        name = component_name(descriptor)
        if name not in self.components:
            fields = [f for f in fields_of(descriptor).values() if f.kind != "mask"]
            properties = {
                field.name: _or_null(self._value(field, asked=False), _may_lack(field))
                for field in fields
            }
            schema = _object(descriptor, properties)
            schema["required"] = [field.name for field in fields]
            return self._keep(descriptor, schema, asked=False)
        return self._reference(descriptor, asked=False)

    def parameter(self, field: Field) -> Schema:
        """The schema of a path or query parameter."""
        schema = self._value(field, asked=True)
        schema.pop("description", None)
        if field.name == "page_size":
            schema["default"] = DEFAULT_PAGE_SIZE
        return schema

    def example(self, schema: Schema) -> Any:
        """A value that fits the schema."""
        return self._example("", schema)

    def example_named(self, name: str, schema: Schema) -> Any:
        """A value that fits the schema, for a field of that name."""
        return self._example(name, schema)

    def _keep(self, descriptor: Descriptor, schema: Schema, *, asked: bool) -> Schema:
        name = component_name(descriptor)
        known = self.components.setdefault(name, schema)
        if known != schema:
            raise ValueError(f"{name} would have two schemas")
        return self._reference(descriptor, asked=asked)

    def _reference(self, descriptor: Descriptor, *, asked: bool) -> Schema:
        name = component_name(descriptor)
        if self._asked.setdefault(name, asked) != asked:
            raise ValueError(f"{name} is both asked and answered; give each its own message")
        return {"$ref": f"#/components/schemas/{name}"}

    def _value(self, field: Field, *, asked: bool) -> Schema:
        if field.kind == "message":
            ref = self.request if asked else self.answer
            item = ref(field.inner)
        else:
            item = _scalar(field, asked=asked)
        schema = _array(field, item) if field.repeated else item
        comment = contract_comments().get(field.full_name)
        if comment:
            schema = {**schema, "description": comment}
        return schema

    def _example(self, name: str, schema: Schema) -> Any:
        if "$ref" in schema:
            return self._example(name, self.components[schema["$ref"].rpartition("/")[2]])
        for joined in ("anyOf", "allOf"):
            if joined in schema and "type" not in schema:
                return self._example(name, schema[joined][0])
        if "properties" in schema:
            return {n: self._example(n, s) for n, s in schema["properties"].items()}
        items = schema.get("items", {})
        if "$ref" in items and name != "rejected":
            return [self._example("", items)]
        return example_of(name, schema)


def component_name(descriptor: Descriptor) -> str:
    """Where the document keeps a message: "auth.RegisterRequest"."""
    return f"{descriptor.full_name.split('.')[1]}.{descriptor.name}"


def _object(descriptor: Descriptor, properties: dict[str, Schema]) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    comment = contract_comments().get(descriptor.full_name)
    return {"description": comment, **schema} if comment else schema


def _may_lack(field: Field) -> bool:
    if field.name in _ALWAYS or (field.kind == "message" and not field.optional):
        return False
    return field.nullable and not field.repeated


def _or_null(schema: Schema, nullable: bool) -> Schema:
    if not nullable or not {"type", "$ref"} & schema.keys():
        return schema
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    both = {**schema, "type": [schema["type"], "null"]}
    if "enum" in both:
        both["enum"] = [*both["enum"], None]
    return both


def _array(field: Field, item: Schema) -> Schema:
    schema: Schema = {"type": "array", "items": item}
    rules = field.list_rules
    if rules is not None:
        if rules.min_items:
            schema["minItems"] = rules.min_items
        if rules.max_items:
            schema["maxItems"] = rules.max_items
        if rules.unique:
            schema["uniqueItems"] = True
    return schema


def _scalar(field: Field, *, asked: bool) -> Schema:
    match field.kind:
        case "string":
            return _string(field, asked=asked)
        case "boolean":
            return {"type": "boolean"}
        case "integer":
            return _integer(field, asked=asked)
        case "number":
            return {"type": "number", "format": "double"} | _bounds(field.rules.double)
        case "timestamp":
            return {"type": "string", "format": "date-time"}
        case "struct":
            return {"type": "object", "additionalProperties": True}
        case "value":
            return {}
    raise ValueError(f"{field.full_name}: REST carries no field of this kind")


def _string(field: Field, *, asked: bool) -> Schema:
    rules = field.rules.string
    schema: Schema = {"type": "string"}
    known = rules.WhichOneof("well_known")
    if known in _FORMATS:
        schema["format"] = known
    elif any(rule.id == "string.email" for rule in field.rules.cel):
        schema["format"] = "email"
    elif not asked and not rules.max_len and (field.name == "id" or field.name.endswith("_id")):
        schema["format"] = "uuid"
    if not asked and field.name.endswith("_usd"):
        schema["pattern"] = MONEY
    if rules.min_len:
        schema["minLength"] = rules.min_len
    if rules.max_len:
        schema["maxLength"] = rules.max_len
    if rules.pattern:
        schema["pattern"] = rules.pattern
    allowed = list(getattr(rules, "in"))
    if allowed:
        schema["enum"] = allowed
    return schema


def _integer(field: Field, *, asked: bool) -> Schema:
    wide = field.high > MAX_EXACT
    own = field.rules.int64 if wide else field.rules.int32
    limits = _bounds(own)
    if asked:
        limits = {"minimum": field.low, "maximum": field.high} | limits
    return {"type": "integer", "format": "int64" if wide else "int32"} | limits


def _bounds(rules: Any) -> Schema:
    low, high = rules.WhichOneof("greater_than"), rules.WhichOneof("less_than")
    names = {"gt": "exclusiveMinimum", "gte": "minimum", "lt": "exclusiveMaximum", "lte": "maximum"}
    return {names[bound]: getattr(rules, bound) for bound in (low, high) if bound}
