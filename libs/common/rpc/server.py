"""A gRPC server for the servicers of one or more services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.identity.call import ANONYMOUS, Call, set_call
from common.rpc.contract import Operation, operations_of
from common.rpc.exchange import Exchange, Handler
from common.rpc.interceptors import Guards, guarded
from common.rpc.interceptors.origin import note_origin

MAX_MESSAGE_BYTES = 12 * 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024
# Callers look a name up again when a connection ends: so they find further servers of it.
CONNECTION_AGE = 60.0
# Until calls under way on a connection of that age are cut off: longer than any call may last.
_CONNECTION_GRACE = 40.0

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A second process on the same port is an error, not a share of its calls.
    ("grpc.so_reuseport", 0),
    # Callers ask every 2 s whether this server still answers, also when they have nothing to say.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    # And a caller that is gone without a word is let go.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_connection_age_grace_ms", int(_CONNECTION_GRACE * 1000)),
)

Method = Callable[[Message, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Message]]


class Server:
    """Serves over gRPC, with health (grpc.health.v1) and reflection.

    Args:
        listen: "host:port"; port 0 takes a free one.
        connection_age: seconds after which a caller is asked for a new connection, a tenth more or
            less; calls under way end on the old one.
    """

    def __init__(self, listen: str, *, connection_age: float = CONNECTION_AGE) -> None:
        self._listen = listen
        age = ("grpc.max_connection_age_ms", int(connection_age * 1000))
        self._server = grpc.aio.server(options=(*_OPTIONS, age))
        # Its type stubs do not know of the asyncio part.
        self._health = cast(Any, health).aio.HealthServicer()
        self._names: list[str] = []
        self.port = 0

    def add(self, grpc_service: str, servicer: object, guards: Guards) -> None:
        """Serve ``servicer`` as ``grpc_service``, "mindweave.team.v1.TeamService", behind guards.

        Raises:
            LookupError: no proto has the service, or the servicer lacks one of its rpcs.
            TypeError: an rpc is a stream, which the interceptors do not cover.
        """
        handlers = {}
        for operation in operations_of(grpc_service):
            if operation.raw:
                continue
            handler = guarded(operation, _last(operation, servicer), guards)
            handlers[operation.method] = grpc.unary_unary_rpc_method_handler(
                _behavior(operation, handler)
            )
        generic = grpc.method_handlers_generic_handler(grpc_service, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self._names.append(grpc_service)

    def bind(self) -> int:
        """Take the address ahead of ``start``, so that others can be told of it; the port.

        Raises:
            OSError: the address cannot be listened on.
        """
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}") from error
        return self.port

    async def start(self) -> int:
        """Serve; the port. Health stays NOT_SERVING until ``serve`` says otherwise.

        Raises:
            OSError: the address cannot be listened on.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        if not self.port:
            self.bind()
        await self.serve(False)
        await self._server.start()
        return self.port

    async def serve(self, serving: bool) -> None:
        """Tell whoever asks the health service whether to send calls here."""
        said = health_pb2.HealthCheckResponse
        status = said.SERVING if serving else said.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new call, and wait ``grace`` seconds for those under way."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def _behavior(
    operation: Operation, handler: Handler
) -> Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]:
    async def serve(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        call = Call(
            operation=operation.name,
            principal=ANONYMOUS,
            permission=operation.permission,
            audited=operation.audited,
        )
        # Each call runs in a task of its own, so nothing has to be unbound.
        set_call(call)
        exchange = Exchange(body, context, call)
        note_origin(exchange)
        answer = await handler(exchange)
        if exchange.trailing:
            context.set_trailing_metadata(tuple(exchange.trailing))
        return answer

    return serve


def _last(operation: Operation, servicer: object) -> Handler:
    if operation.streaming:
        raise TypeError(f"{operation.name} is a stream, which no interceptor guards")
    found = getattr(servicer, operation.method, None)
    if found is None:
        raise LookupError(f"{type(servicer).__name__} has no {operation.method}")
    method = cast(Method, found)
    answer_class = operation.response_class

    async def handle(exchange: Exchange) -> bytes:
        answer = await method(exchange.request, exchange.context)
        if not isinstance(answer, answer_class):
            raise TypeError(f"{operation.name} answered with a {type(answer).__name__}")
        return answer.SerializeToString()

    return handle
