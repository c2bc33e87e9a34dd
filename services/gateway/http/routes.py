"""Every operation with a route, answered by a call of its service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from common.errors import PreconditionFailed
from common.http.app import Handler, answer
from common.http.body import JSON_TYPES, read_body
from common.http.routing import decode_percent
from common.identity.call import current_call
from common.rpc.client import Answer, Channel
from common.rpc.contract import Operation, Route, operations
from services.gateway.http import strict_json
from services.gateway.http.preconditions import etag, wanted_versions
from services.gateway.http.reading import Faults, ObjectReader, QueryReader, message_of
from services.gateway.http.shapes import fields_of
from services.gateway.http.writing import writer_of

MERGE_PATCH = "application/merge-patch+json"
UPDATE_MASK = "update_mask"

Dial = Callable[[str], Channel]
Versions = tuple[int, ...] | None


def handlers(dial: Dial) -> dict[str, Handler]:
    """The handlers of every operation that REST reaches through the gateway.

    Args:
        dial: gives the channel to a service by its name.
    """
    versioned = versioned_operations()
    found: dict[str, Handler] = {}
    channels: dict[str, Channel] = {}
    for operation in transcoded():
        channel = channels.get(operation.service)
        if channel is None:
            channel = channels[operation.service] = dial(operation.service)
        found[operation.full_name] = TranscodedOperation(
            operation, route_of(operation), channel, operation.full_name in versioned
        )
    return found


def transcoded() -> Iterator[Operation]:
    """Operations with a route that their service does not serve by itself."""
    return (o for o in operations().values() if o.route is not None and not o.raw)


def route_of(operation: Operation) -> Route:
    """The operation's route.

    Raises:
        ValueError: it has none.
    """
    if operation.route is None:
        raise ValueError(f"{operation.name} has no route")
    return operation.route


def versioned_operations() -> frozenset[str]:
    """Operations that heed If-Match: a PATCH, and the DELETE of what a PATCH changes."""
    routed = [o for o in operations().values() if o.route is not None]
    patched = {route_of(o).template for o in routed if route_of(o).verb == "PATCH"}
    return frozenset(
        o.full_name
        for o in routed
        if route_of(o).verb in ("PATCH", "DELETE") and route_of(o).template in patched
    )


def path_fields(route: Route) -> tuple[str, ...]:
    """The request's fields that stand in the path."""
    parts = route.template.split("/")
    return tuple(part[1:-1] for part in parts if part.startswith("{"))


def clearable_fields(operation: Operation) -> frozenset[str]:
    """Fields that a PATCH may set to null: those that the resource itself may lack."""
    body = route_of(operation).response_body
    answered = fields_of(operation.response)
    resource = fields_of(answered[body].inner) if body else answered
    return frozenset(name for name, field in resource.items() if field.nullable)


class TranscodedOperation:
    """One operation: from request to message, the call, from message to answer."""

    def __init__(
        self, operation: Operation, route: Route, channel: Channel, versioned: bool
    ) -> None:
        if route.body not in ("", "*"):
            raise ValueError(f"{operation.name}: a transcoded body is the whole message")
        self._operation = operation
        self._versioned = versioned
        self._patch = route.verb == "PATCH"
        self._has_body = route.body == "*"
        in_path = path_fields(route)
        everything = tuple(fields_of(operation.request))
        self._body = ObjectReader(
            operation.request,
            hidden=in_path if self._has_body else everything,
            partial=self._patch,
            clearable=clearable_fields(operation) if self._patch else (),
        )
        self._query = QueryReader(
            operation.request, hidden=everything if self._has_body else in_path
        )
        self._media_types = (*JSON_TYPES, MERGE_PATCH) if self._patch else JSON_TYPES
        self._method = channel.method(operation)
        shown = route.response_body
        self._shown = shown
        self._write = writer_of(
            fields_of(operation.response)[shown].inner if shown else operation.response
        )

    async def __call__(self, request: Request) -> Response:
        message = await self._read(request)
        reply = await self._ask(message, self._wanted(request.headers))
        headers = {}
        if reply.etag is not None:
            headers["ETag"] = etag(reply.etag)
        if reply.replayed:
            headers["Idempotent-Replayed"] = "true"
        status = self._operation.success_status
        if status == 204:
            return Response(status_code=204, headers=headers)
        shown = getattr(reply.message, self._shown) if self._shown else reply.message
        return answer(self._write(shown), status, headers)

    async def _read(self, request: Request) -> Message:
        headers = request.headers
        faults = Faults()
        values: dict[str, Any] = {}
        body: Any = {}
        if self._has_body or _announces_body(headers):
            packed = await read_body(request, media_types=self._media_types)
            if packed or self._has_body:
                body = strict_json.parse(packed)
        self._body.check(body, "", faults)
        values |= self._query.read(_query(request), faults)
        faults.raise_any()
        message = message_of(self._operation.request, values | body | request.path_params)
        if self._patch:
            mask = getattr(message, UPDATE_MASK)
            mask.SetInParent()
            mask.paths.extend(body)
        return message

    def _wanted(self, headers: Headers) -> Versions:
        versions = wanted_versions(headers) if "if-match" in headers else None
        if versions is not None and not self._versioned:
            raise PreconditionFailed("This resource has no ETag.")
        return versions

    async def _ask(self, message: Message, versions: Versions) -> Answer:
        """Call with each version that will do, until one is the current one."""
        if versions is None:
            return await self._once(message, None)
        for version in versions[:-1]:
            try:
                return await self._once(message, version)
            except PreconditionFailed:
                continue
        return await self._once(message, versions[-1])

    async def _once(self, message: Message, version: int | None) -> Answer:
        return await self._method.invoke(
            message,
            idempotency_key=None if self._operation.idempotent else current_call().idempotency_key,
            if_match=version,
        )


def _announces_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _query(request: Request) -> Iterator[tuple[str | None, str | None]]:
    for part in request.scope["query_string"].decode("latin-1").split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            yield decode_percent(name), decode_percent(value)
