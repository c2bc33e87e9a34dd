"""auth as its composition root builds it, on a clock that tests turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from common.clock import ManualClock
from common.database import Database
from common.errors import MindWeaveError
from common.identity.call import Principal
from common.identity.tokens import TokenVerifier, published_keys
from common.rpc.client import Answer
from common.service import Runtime
from common.settings import Settings
from common.testing import Served, serve, silent_telemetry
from mindweave.auth.v1 import auth_pb2 as pb
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from services.auth.service import build

# Later than any run: what protovalidate calls the future is not on this clock.
START = datetime(2060, 7, 1, 12, tzinfo=UTC)
PASSWORD = "an uncommon pass phrase"
NEW_PASSWORD = "another uncommon pass phrase"
SERVICE = Principal("service")


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]], clock: ManualClock) -> Database:
    made: Database = await service_database("auth", clock=clock)
    return made


@pytest.fixture(scope="module")
async def cache(settings: Settings) -> AsyncIterator[Redis]:
    """The cache as auth has it, emptied for this module."""
    cache = Redis.from_url(settings.cache_url or "")
    await cache.flushdb()
    yield cache
    await cache.aclose()


@pytest.fixture(scope="module")
async def served(
    database: Database, cache: Redis, settings: Settings, clock: ManualClock
) -> AsyncIterator[Served]:
    """A running AuthService; it takes the harness's tokens, and signs its own."""
    runtime = Runtime(
        "auth",
        settings,
        telemetry=silent_telemetry("auth"),
        version="test",
        own_address="127.0.0.1:1",
        clock=clock,
    )
    parts = await build(runtime)
    async with serve(parts.servicers, database=database, clock=clock) as served:
        yield served
    await runtime.close()


@dataclass(frozen=True)
class Person:
    """A registered user."""

    id: UUID
    email: str
    password: str


class Auth:
    """The service as its callers see it."""

    def __init__(self, served: Served, settings: Settings, clock: ManualClock) -> None:
        self.served = served
        self.verifier = TokenVerifier(
            published_keys(served.stub(AuthServiceStub)), settings.issuer, clock
        )

    async def call(self, method: str, request: Any, principal: Principal | None = None) -> Any:
        """The response of an rpc, called by the gateway for ``principal`` or for nobody."""
        return (await self.answer(method, request, principal)).message

    async def answer(
        self, method: str, request: Any, principal: Principal | None = None, **given: Any
    ) -> Answer:
        given["principal"] = principal or Principal("anonymous")
        return await self.served.invoke(
            f"/mindweave.auth.v1.AuthService/{method}", request, **given
        )

    async def register(self, password: str = PASSWORD, **given: Any) -> Person:
        email = f"{uuid4().hex}@example.org"
        request = pb.RegisterRequest(email=email, password=password, display_name="Ada Lovelace")
        given.setdefault("ip", f"2001:db8:{uuid4().hex[:4]}:{uuid4().hex[:4]}::1")
        answer = await self.answer("Register", request, **given)
        return Person(UUID(answer.message.user.id), email, password)

    async def login(self, person: Person, password: str | None = None) -> pb.LoginResponse:
        request = pb.LoginRequest(email=person.email, password=password or person.password)
        response: pb.LoginResponse = await self.call("Login", request)
        return response

    async def refresh(self, token: str) -> pb.RefreshResponse:
        response: pb.RefreshResponse = await self.call(
            "Refresh", pb.RefreshRequest(refresh_token=token)
        )
        return response

    async def sign_in(self, person: Person) -> Principal:
        """The caller that a new session of the person makes."""
        return await self.who(await self.login(person))

    async def who(self, pair: pb.LoginResponse | pb.RefreshResponse) -> Principal:
        """Whom an access token names, as every service reads it; the harness signs it anew."""
        return replace(await self.verifier.verify(pair.access_token), token="")

    async def is_open(self, principal: Principal) -> bool:
        listed = await self.call("ListSessions", pb.ListSessionsRequest(), principal)
        return str(principal.session_id) in {session.id for session in listed.sessions}


@pytest.fixture(scope="module")
def auth(served: Served, settings: Settings, clock: ManualClock) -> Auth:
    return Auth(served, settings, clock)


@pytest.fixture
async def person(auth: Auth) -> Person:
    return await auth.register()


@pytest.fixture
async def caller(auth: Auth) -> Principal:
    return await auth.sign_in(await auth.register())


async def outcome(attempt: Any) -> str:
    """How a call went: "ok", or the code of its error."""
    try:
        await attempt
    except MindWeaveError as error:
        return error.code
    return "ok"
