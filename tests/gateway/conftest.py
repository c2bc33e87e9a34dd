"""The gateway behind a real HTTP server, in front of throw-away services behind real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import grpc.aio
import httpx
import pytest
from google.protobuf.message import Message

from common.background import PartStatus
from common.errors import NotFound
from common.events.bus import Bus, Handler, Subscription
from common.http.app import RestApp
from common.http.edge import Edge
from common.http.health import PartHealth, ServiceHealth
from common.http.server import HttpServer
from common.identity.call import Call, Principal, current_call
from common.identity.tokens import TokenVerifier
from common.rpc.contract import Operation, operations_of
from common.rpc.metadata import REPLAYED
from common.settings import Settings, load_settings
from common.telemetry import Telemetry
from common.testing import Served, a_user, serve, silent_telemetry
from mindweave.auth.v1.auth_pb2 import ExchangeApiKeyResponse
from services.gateway.http.pages import pages
from services.gateway.http.routes import handlers

SERVICES = {
    "auth": "mindweave.auth.v1.AuthService",
    "team": "mindweave.team.v1.TeamService",
    "account": "mindweave.account.v1.AccountService",
    "project": "mindweave.project.v1.ProjectService",
    "analytics": "mindweave.analytics.v1.AnalyticsService",
}
SECRET = "a secret of the tests, longer than needed"
S = TypeVar("S")
Reply = Message | Exception | Callable[[Message], Message]


class Throwaway:
    """Answers every rpc of a proto's service as the test says, and remembers what it was asked.

    Attributes:
        replies: by method; an empty answer where there is none.
        etags: by method.
        replayed: methods whose answer is an earlier one.
        asked: method, request and call, in order.
        told: what travelled beside each of them.
    """

    def __init__(self, grpc_service: str) -> None:
        self.replies: dict[str, Reply] = {}
        self.etags: dict[str, int] = {}
        self.replayed: set[str] = set()
        self.asked: list[tuple[str, Any, Call]] = []
        self.told: list[dict[str, Any]] = []
        self._operations = {o.method: o for o in operations_of(grpc_service)}

    def __getattr__(self, name: str) -> Any:
        operation = self.__dict__["_operations"].get(name)
        if operation is None:
            raise AttributeError(name)

        async def method(request: Message, context: Any) -> Message:
            self.told.append(dict(context.invocation_metadata()))
            if name in self.replayed:
                context.set_trailing_metadata(((REPLAYED, "1"),))
            return await self._answer(operation, request)

        return method

    async def _answer(self, operation: Operation, request: Message) -> Message:
        call = current_call()
        self.asked.append((operation.method, request, call))
        call.authorized = True
        reply = self.replies.get(operation.method)
        if isinstance(reply, Exception):
            raise reply
        call.etag = self.etags.get(operation.method)
        if reply is None:
            return operation.response_class()
        return reply if isinstance(reply, Message) else reply(request)


class StillBus:
    """A bus on which nothing happens but what a test lets its tails hear."""

    name = "still"

    def __init__(self) -> None:
        self.handlers: list[Handler] = []

    def tail(self, topics: Sequence[str], handler: Handler) -> Subscription:
        self.handlers.append(handler)
        return _Tail()


class _Tail:
    name = "tail"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def status(self) -> PartStatus:
        return PartStatus(True)


@dataclass
class GatewayRuntime:
    """What the edge takes of a runtime."""

    settings: Settings
    telemetry: Telemetry
    verifier: TokenVerifier
    bus: Bus
    served: Served

    def stub(self, callee: str, kind: Callable[[grpc.aio.Channel], S]) -> S:
        return kind(self.served.channel(callee))


@dataclass
class Platform:
    """A running gateway.

    Attributes:
        address: "host:port" of its HTTP server.
        http: a client of it.
        services: the throw-away services by name.
        health: what the process says of itself.
    """

    address: str
    http: httpx.AsyncClient
    edge: Edge
    services: Mapping[str, Throwaway]
    served: Served
    bus: StillBus
    user: Principal
    api_keys: dict[str, Principal]
    telemetry: Telemetry
    health: list[ServiceHealth] = field(default_factory=list)

    @property
    def auth(self) -> dict[str, str]:
        """The header field of a signed-in user."""
        return {"Authorization": f"Bearer {self.token(self.user)}"}

    def token(self, principal: Principal) -> str:
        return self.served.signer.signed(principal).token

    async def send(self, data: bytes, *, parts: Sequence[bytes] = (), pause: float = 0.0) -> bytes:
        """Send bytes as they are, and read until the server closes or nothing comes any more."""
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            for part in parts:
                await asyncio.sleep(pause)
                writer.write(part)
                await writer.drain()
            return await _read(reader)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One answer, by its Content-Length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


@asynccontextmanager
async def running(
    *, apps: Sequence[RestApp] = (), seconds: float = 30.0, **given: Any
) -> AsyncIterator[Platform]:
    """A gateway with every service thrown away behind it; ``given`` are settings."""
    services = {name: Throwaway(full) for name, full in SERVICES.items()}
    settings = load_settings(secret=SECRET, **given)
    keys: dict[str, Principal] = {}
    bus = StillBus()
    async with AsyncExitStack() as closing:
        served = await closing.enter_async_context(
            serve([(SERVICES[name], servicer) for name, servicer in services.items()])
        )

        def exchange(request: Any) -> Message:
            principal = keys.get(request.key)
            if principal is None:
                raise NotFound
            signed = served.signer.signed(principal, timedelta(seconds=60))
            return ExchangeApiKeyResponse(token=signed.token)

        services["auth"].replies["ExchangeApiKey"] = exchange
        runtime = GatewayRuntime(
            settings,
            silent_telemetry("gateway"),
            served.signer.verifier(),
            cast(Bus, bus),
            served,
        )
        health = [ServiceHealth("gateway", True, "1.0", [PartHealth("edge", True, "")])]

        async def reported() -> list[ServiceHealth]:
            return health

        rest = RestApp(handlers=handlers(served.channel), pages=pages())
        edge = Edge(runtime, [rest, *apps], reported, seconds=seconds)
        server = HttpServer(edge, "127.0.0.1:0", drain=1)
        address = await server.start()
        closing.push_async_callback(server.stop)
        client = await closing.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{address}", timeout=20)
        )
        yield Platform(
            address,
            client,
            edge,
            services,
            served,
            bus,
            a_user(),
            keys,
            runtime.telemetry,
            health,
        )


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with running() as made:
        yield made


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    """Each test begins with services that say nothing yet."""
    if "platform" in request.fixturenames:
        made: Platform = request.getfixturevalue("platform")
        for service in made.services.values():
            exchange = service.replies.get("ExchangeApiKey")
            service.replies = {"ExchangeApiKey": exchange} if exchange else {}
            service.etags, service.asked, service.told, service.replayed = {}, [], [], set()
