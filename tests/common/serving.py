"""Real gRPC servers with every interceptor, whose handlers each test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from common.identity.call import ANONYMOUS, Call, Principal, set_call
from common.identity.service_tokens import ServiceTokens
from common.identity.tokens import TokenVerifier
from common.rpc.client import Channel, UnaryMethod
from common.rpc.contract import operations
from common.rpc.interceptors import FindAnswer, Guards
from common.rpc.server import CONNECTION_AGE, Server
from common.telemetry import Telemetry
from common.testing import FakeAccess, Signer, silent_telemetry

ACCOUNT = "mindweave.account.v1.AccountService"
AUTH = "mindweave.auth.v1.AuthService"
PROJECT = "mindweave.project.v1.ProjectService"
TEAM = "mindweave.team.v1.TeamService"

Handler = Callable[[Any, Any], Awaitable[Any]]


class Handlers:
    """A servicer of any service: ``on`` sets a handler, the others answer with an empty message."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.seen: list[str] = []
        self._set: dict[str, Handler] = {}

    def on(self, method: str, handler: Handler) -> None:
        self._set[method] = handler

    def __getattr__(self, method: str) -> Handler:
        operation = operations().get(f"/{self.service}/{method}")
        if operation is None:
            raise AttributeError(method)
        empty = operation.response_class

        async def handle(request: Any, context: Any) -> Any:
            self.seen.append(method)
            handler = self._set.get(method)
            return empty() if handler is None else await handler(request, context)

        return handle


class Fleet:
    """Servers of this test, and channels to them.

    Attributes:
        port: of the one server that serves all handlers.
        handlers: by full service name.
    """

    def __init__(
        self,
        listen: str,
        signer: Signer,
        access: FakeAccess,
        telemetry: Telemetry,
        connection_age: float = CONNECTION_AGE,
    ) -> None:
        self.signer = signer
        self.access = access
        self.telemetry = telemetry
        self.server = Server(listen, connection_age=connection_age)
        self.handlers: dict[str, Handlers] = {}
        self.closing = AsyncExitStack()
        self._tokens: dict[str, ServiceTokens] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def tokens_of(self, service: str) -> ServiceTokens:
        if service not in self._tokens:
            self._tokens[service] = self.signer.tokens_of(service)
        return self._tokens[service]

    def channel(
        self,
        callee: str,
        caller: str = "gateway",
        *,
        address: str | None = None,
        telemetry: Telemetry | None = None,
        default: float = 5.0,
    ) -> Channel:
        channel = Channel(
            callee,
            address or self.address,
            telemetry=telemetry or silent_telemetry(caller),
            tokens=self.tokens_of(caller),
            timeout=default,
        )
        self.closing.push_async_callback(channel.close)
        return channel

    def method(self, full_name: str, caller: str = "gateway", **options: Any) -> UnaryMethod:
        operation = operations()[f"/{full_name}"]
        return self.channel(operation.service, caller, **options).method(operation)

    def token(self, principal: Principal) -> str:
        return self.signer.signed(principal).token

    async def bare(
        self, full_name: str, request: Message | bytes, metadata: Iterable[tuple[str, str]] = ()
    ) -> tuple[bytes, dict[str, Any]]:
        """Call without the kit's client, with this metadata alone: answer and trailing metadata."""
        body = request if isinstance(request, bytes) else request.SerializeToString()
        async with grpc.aio.insecure_channel(self.address) as channel:
            call = channel.unary_unary(
                f"/{full_name}", request_serializer=None, response_deserializer=None
            )(body, metadata=tuple(metadata))
            answer = await call
            return answer, dict(await call.trailing_metadata())


@asynccontextmanager
async def fleet(
    *services: str,
    signer: Signer | None = None,
    telemetry: Telemetry | None = None,
    verifier: TokenVerifier | None = None,
    find_answer: FindAnswer | None = None,
    deadline: float = 10.0,
    listen: str = "127.0.0.1:0",
    connection_age: float = CONNECTION_AGE,
) -> AsyncIterator[Fleet]:
    """Serve these services, by full name, on one port, which is a free one where none is named."""
    made = Fleet(
        listen,
        signer or Signer(),
        FakeAccess(),
        telemetry or silent_telemetry("team"),
        connection_age,
    )
    guards = Guards(
        telemetry=made.telemetry,
        verifier=verifier or made.signer.verifier(),
        access=made.access,
        find_answer=find_answer,
        deadline=deadline,
    )
    for service in services:
        made.handlers[service] = Handlers(service)
        made.server.add(service, made.handlers[service], guards)
    await made.server.start()
    await made.server.serve(True)
    made.closing.push_async_callback(made.server.stop, 0)
    async with made.closing:
        yield made


async def as_call(call: Call, work: Callable[[], Awaitable[Any]]) -> Any:
    """What ``work`` gives while ``call`` is served, in a task of its own."""

    async def serve() -> Any:
        set_call(call)
        return await work()

    return await asyncio.create_task(serve())


def on_behalf_of(principal: Principal = ANONYMOUS, **fields: Any) -> Call:
    return Call("the test", principal, **fields)
