"""The AsyncAPI document of every event type, made from the protos.

``python -m common.events.asyncapi FILE`` writes it; with ``--check`` before FILE it fails where
the file is not what the protos make.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2
from common.events.catalog import EventType, event_files, event_types

_Schema = dict[str, Any]
_Comments = Mapping[str, str]

# Numbers of fields in descriptor.proto, of which the paths of comments are made.
_MESSAGE, _FIELD = 4, 2
_TIMESTAMP = "google.protobuf.Timestamp"
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
_LONGS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_NUMBERS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def document() -> _Schema:
    """AsyncAPI 3.0: a channel for each topic, a message for each event type."""
    comments = _comments()
    events = sorted(event_types().values(), key=lambda event: event.type)
    topics = sorted({event.topic for event in events})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "MindWeave events",
            "version": "1.0",
            "description": "What the services of MindWeave tell of, as JSON in one envelope. Events"
            " with the same key keep their order; an event may arrive more than once, always with"
            " the same id. Integers of 64 bits are strings.",
        },
        "defaultContentType": "application/json",
        "channels": {topic: _channel(topic, events) for topic in topics},
        "operations": {
            f"send.{topic}": {"action": "send", "channel": {"$ref": f"#/channels/{topic}"}}
            for topic in topics
        },
        "components": {
            "messages": {event.type: _message(event, comments) for event in events},
            "schemas": {"envelope": _envelope()},
        },
    }


def _channel(topic: str, events: Sequence[EventType]) -> _Schema:
    return {
        "address": topic,
        "messages": {
            event.type: {"$ref": f"#/components/messages/{event.type}"}
            for event in events
            if event.topic == topic
        },
    }


def _message(event: EventType, comments: _Comments) -> _Schema:
    summary = comments.get(event.descriptor.full_name)
    data = {"type": {"const": event.type}, "data": schema(event.descriptor, comments)}
    return {
        "name": event.type,
        **({"summary": summary} if summary else {}),
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/envelope"},
                {"type": "object", "properties": data},
            ]
        },
    }


def _envelope() -> _Schema:
    uuid = {"type": "string", "format": "uuid"}
    somebody = {"type": ["string", "null"], "format": "uuid"}
    properties: dict[str, _Schema] = {
        "id": {**uuid, "description": "The same for every delivery of the event."},
        "type": {"type": "string", "description": "domain.action"},
        "source": {"type": "string", "description": "The service that it comes from."},
        "timestamp": {"type": "string", "format": "date-time"},
        "version": {"const": "1.0"},
        "correlation_id": {
            "type": "string",
            "description": "Names the request from which the event follows.",
        },
        "data": {"type": "object"},
        "metadata": _closed({"user_id": somebody, "org_id": somebody}),
    }
    return _closed(properties)


def schema(descriptor: Descriptor, comments: _Comments = MappingProxyType({})) -> _Schema:
    """The JSON schema of a message, as protobuf's JSON shows it with every field filled in.

    Args:
        descriptor: the message's.
        comments: descriptions by the full name of a message or field.
    """
    fields = {f.name: _field(f, comments) for f in descriptor.fields}
    rules = {f.name: f.GetOptions().Extensions[validate_pb2.field] for f in descriptor.fields}
    needed = [f.name for f in descriptor.fields if not f.has_presence or rules[f.name].required]
    return _closed(fields, needed)


def _closed(properties: _Schema, required: Sequence[str] | None = None) -> _Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties) if required is None else sorted(required),
        "additionalProperties": False,
    }


def _field(field: FieldDescriptor, comments: _Comments) -> _Schema:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.is_repeated:
        found: _Schema = {"type": "array", "items": _single(field, rules.repeated.items, comments)}
        if rules.repeated.HasField("max_items"):
            found["maxItems"] = rules.repeated.max_items
    else:
        found = _single(field, rules, comments)
    comment = comments.get(field.full_name)
    return {**found, "description": comment} if comment else found


def _single(field: FieldDescriptor, rules: validate_pb2.FieldRules, comments: _Comments) -> _Schema:
    if field.message_type is not None:
        if field.message_type.full_name == _TIMESTAMP:
            return {"type": "string", "format": "date-time"}
        return schema(field.message_type, comments)
    if field.cpp_type in _LONGS:
        return {"type": "string", "pattern": "^-?[0-9]+$"}
    if field.cpp_type in _INTEGERS:
        return {"type": "integer"}
    if field.cpp_type in _NUMBERS:
        return {"type": "number"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    return {"type": "string", **_text_rules(rules)}


def _text_rules(rules: validate_pb2.FieldRules) -> _Schema:
    text = rules.string
    if text.uuid:
        return {"format": "uuid"}
    found: _Schema = {}
    if text.HasField("min_len"):
        found["minLength"] = text.min_len
    if text.HasField("max_len"):
        found["maxLength"] = text.max_len
    return found


def _comments() -> _Comments:
    """Leading comments by the full name of their message or field."""
    found: dict[str, str] = {}
    for file in event_files():
        for location in file.source_code_info.location:
            text = " ".join(location.leading_comments.split())
            path = tuple(location.path)
            if not text or len(path) not in (2, 4) or path[0] != _MESSAGE:
                continue
            message = file.message_type[path[1]]
            name = f"{file.package}.{message.name}"
            if len(path) == 2:
                found[name] = text
            elif path[2] == _FIELD:
                found[f"{name}.{message.field[path[3]].name}"] = text
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the document, or compare it; the exit status."""
    checking, file = "--check" in arguments, Path(arguments[-1])
    made = json.dumps(document(), indent=2) + "\n"
    if checking:
        if not file.exists() or file.read_text() != made:
            sys.stderr.write(f"{file} is not what the protos make; run `make proto`\n")
            return 1
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
