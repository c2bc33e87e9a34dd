"""What every operation promises, read from the descriptor set that the protos make."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import Default as DefaultPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mindweave.options.v1 import options_pb2

_PACKAGE = "mindweave"
_VERBS = ("get", "put", "post", "delete", "patch")
_NOWHERE = ("none", "resource")


@dataclass(frozen=True, slots=True)
class Route:
    """A REST route, as ``google.api.http`` means it.

    ``template`` is such as "/orgs/{org_id}/members"; ``body`` and ``response_body`` are "" where
    the proto has none.
    """

    verb: str
    template: str
    body: str
    response_body: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One rpc with everything that its proto says of it.

    ``full_name`` is its gRPC path, "/mindweave.team.v1.TeamService/AddMember"; ``service`` is the
    deployable that serves it, "team"; ``tenant`` is "none", "resource" or a field path.
    """

    full_name: str
    service: str
    method: str
    request: Descriptor
    response: Descriptor
    permission: str
    tenant: str
    public: bool
    internal: bool
    audited: bool
    idempotent: bool
    success_status: int
    raw: bool
    streaming: bool
    route: Route | None
    summary: str

    @property
    def name(self) -> str:
        """As audit records name it: "mindweave.team.v1.TeamService/AddMember"."""
        return self.full_name[1:]

    @property
    def label(self) -> str:
        """As metrics name it: "TeamService/AddMember"."""
        return self.full_name.rpartition(".")[2]

    @property
    def grpc_service(self) -> str:
        """The proto's service, "mindweave.team.v1.TeamService"."""
        return self.full_name[1:].partition("/")[0]

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may be answered from what is known."""
        return self.permission.endswith(":read")

    @property
    def tenant_path(self) -> tuple[str, ...]:
        """The path of the request field that holds the organization's id; () where none does."""
        return () if self.tenant in _NOWHERE else tuple(self.tenant.split("."))

    @property
    def request_class(self) -> type[Message]:
        return GetMessageClass(self.request)

    @property
    def response_class(self) -> type[Message]:
        return GetMessageClass(self.response)


def descriptor_set() -> FileDescriptorSet:
    """Every file of the protos with what it imports, comments included."""
    kept = resources.files(_PACKAGE).joinpath("descriptors.binpb").read_bytes()
    return FileDescriptorSet.FromString(kept)


@cache
def operations() -> Mapping[str, Operation]:
    """Every rpc of the platform by its ``full_name``."""
    comments = contract_comments()
    found = {}
    for file in descriptor_set().file:
        if not file.package.startswith(f"{_PACKAGE}."):
            continue
        _load(file)
        for service in file.service:
            descriptor = DefaultPool().FindServiceByName(f"{file.package}.{service.name}")
            for method in descriptor.methods:
                operation = _operation(method, comments)
                found[operation.full_name] = operation
    return MappingProxyType(found)


def operations_of(grpc_service: str) -> tuple[Operation, ...]:
    """The rpcs of one service of the protos, such as "mindweave.team.v1.TeamService".

    Raises:
        LookupError: no proto has it.
    """
    found = tuple(o for o in operations().values() if o.grpc_service == grpc_service)
    if not found:
        raise LookupError(f"no proto has the service {grpc_service}")
    return found


@cache
def contract_comments() -> Mapping[str, str]:
    """What the protos say above each message, field, service and rpc, by its full name."""
    found: dict[str, str] = {}
    for file in descriptor_set().file:
        if file.package.startswith(f"{_PACKAGE}."):
            for location in file.source_code_info.location:
                if location.leading_comments:
                    name = _named(file, list(location.path))
                    if name:
                        found[name] = _text(location.leading_comments)
    return MappingProxyType(found)


def tenant_reader(operation: Operation) -> Callable[[Message], str]:
    """Reads the organization's id from a request; "" where it is absent.

    Raises:
        LookupError: the operation's ``tenant`` is no path of string fields.
    """
    path = operation.tenant_path
    descriptor: Descriptor | None = operation.request
    for name in path:
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        if field is None or field.is_repeated:
            raise LookupError(f"{operation.name}: {operation.tenant} is no field of its request")
        descriptor = field.message_type
    if not path or descriptor is not None:
        raise LookupError(f"{operation.name}: {operation.tenant!r} names no id")

    def read(message: Message) -> str:
        value: Any = message
        for name in path:
            value = getattr(value, name)
        return str(value)

    return read


def _operation(method: MethodDescriptor, comments: Mapping[str, str]) -> Operation:
    service = method.containing_service
    options = method.GetOptions()
    promised = options.Extensions[options_pb2.operation]
    return Operation(
        full_name=f"/{service.full_name}/{method.name}",
        service=service.full_name.split(".")[1],
        method=method.name,
        request=method.input_type,
        response=method.output_type,
        permission=promised.permission,
        tenant=promised.tenant,
        public=promised.public,
        internal=promised.internal,
        audited=promised.audited,
        idempotent=promised.idempotent,
        success_status=promised.success_status or 200,
        raw=promised.raw,
        streaming=method.client_streaming or method.server_streaming,
        route=_route(options),
        summary=comments.get(f"{service.full_name}.{method.name}", ""),
    )


def _route(options: Any) -> Route | None:
    if not options.HasExtension(annotations_pb2.http):
        return None
    rule = options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise LookupError(f"a route has the verb {verb}, which is none of {', '.join(_VERBS)}")
    return Route(verb.upper(), getattr(rule, verb), rule.body, rule.response_body)


def _load(file: FileDescriptorProto) -> None:
    importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")


# Field numbers in descriptor.proto along the path of a source location.
_MESSAGES, _SERVICES = 4, 6
_FIELDS, _NESTED, _METHODS = 2, 3, 2


def _named(file: FileDescriptorProto, path: list[int]) -> str | None:
    """The full name of what a source location's path points to, for the kinds that we show."""
    if len(path) >= 2 and path[0] == _SERVICES:
        service = file.service[path[1]]
        name = f"{file.package}.{service.name}"
        if len(path) == 2:
            return name
        if len(path) == 4 and path[2] == _METHODS:
            return f"{name}.{service.method[path[3]].name}"
        return None
    if len(path) >= 2 and path[0] == _MESSAGES:
        return _in_message(file, path)
    return None


def _in_message(file: FileDescriptorProto, path: list[int]) -> str | None:
    message = file.message_type[path[1]]
    name, rest = f"{file.package}.{message.name}", path[2:]
    while len(rest) >= 2 and rest[0] == _NESTED:
        message = message.nested_type[rest[1]]
        name, rest = f"{name}.{message.name}", rest[2:]
    if not rest:
        return name
    if len(rest) == 2 and rest[0] == _FIELDS:
        return f"{name}.{message.field[rest[1]].name}"
    return None


def _text(comment: str) -> str:
    return " ".join(comment.split())
