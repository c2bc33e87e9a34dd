"""Every event type there is: the messages of the protos that carry the option ``event``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from types import MappingProxyType
from typing import cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mindweave.options.v1 import options_pb2


@dataclass(frozen=True, slots=True)
class EventType:
    """An event: its type (``domain.action``), its topic and its message."""

    type: str
    topic: str
    descriptor: Descriptor

    def message(self) -> Message:
        """An empty message of this type."""
        return GetMessageClass(self.descriptor)()


def event_type(message: Message) -> EventType | None:
    """The event type of a message; None where its proto does not make it an event."""
    return _of(cast(Descriptor, message.DESCRIPTOR))


@cache
def event_types() -> Mapping[str, EventType]:
    """Event types by name, of every proto in the stubs."""
    found: dict[str, EventType] = {}
    for file in event_files():
        module = import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            event = _of(descriptor)
            if event is None:
                continue
            if event.type in found:
                raise ValueError(f"two messages claim the event type {event.type}")
            found[event.type] = event
    return MappingProxyType(found)


def event_files() -> Iterator[FileDescriptorProto]:
    """The protos that declare events, with their comments."""
    described = FileDescriptorSet.FromString(
        files("mindweave").joinpath("descriptors.binpb").read_bytes()
    )
    for file in described.file:
        if any(m.options.HasExtension(options_pb2.event) for m in file.message_type):
            yield file


def _of(descriptor: Descriptor) -> EventType | None:
    options = descriptor.GetOptions()
    if not options.HasExtension(options_pb2.event):
        return None
    event = options.Extensions[options_pb2.event]
    return EventType(event.type, event.topic, descriptor)
