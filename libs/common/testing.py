"""What tests of a service need: a clock to turn, callers with real tokens, a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from common.clock import Clock, ManualClock, SystemClock
from common.database import Database, find_answer
from common.errors import Unavailable
from common.identity.access import AccessResolver, Roles
from common.identity.call import ANONYMOUS, Call, Principal, set_call
from common.identity.sealing import Sealer
from common.identity.service_tokens import ServiceTokens
from common.identity.tokens import Keys, TokenVerifier, sign_token
from common.rpc.client import Answer, Channel
from common.rpc.contract import operations
from common.rpc.interceptors import Guards
from common.rpc.server import Server
from common.settings import Settings, sealing_key
from common.telemetry import Metrics, Telemetry, Tracing
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub

__all__ = [
    "FakeAccess",
    "ManualClock",
    "Served",
    "Signer",
    "a_project_key",
    "a_user",
    "a_user_key",
    "sealer_of",
    "serve",
    "silent_telemetry",
]

ISSUER = "https://mindweave.test"
_TTL = timedelta(minutes=10)

S = TypeVar("S")


def silent_telemetry(service: str = "test") -> Telemetry:
    """Telemetry with metrics of its own that sends nothing anywhere."""
    metrics = Metrics(CollectorRegistry())
    return Telemetry(service, metrics=metrics, tracing=Tracing(None, version="test"))


def sealer_of(settings: Settings, service: str) -> Sealer:
    return Sealer(sealing_key(settings, service))


def a_user(user_id: UUID | None = None, session_id: UUID | None = None) -> Principal:
    return Principal("user", user_id=user_id or uuid4(), session_id=session_id or uuid4())


def a_user_key(user_id: UUID, scopes: Iterable[str]) -> Principal:
    return Principal("user_key", user_id=user_id, api_key_id=uuid4(), scopes=frozenset(scopes))


def a_project_key(org_id: UUID, project_id: UUID, scopes: Iterable[str]) -> Principal:
    return Principal(
        "project_key",
        api_key_id=uuid4(),
        org_id=org_id,
        project_id=project_id,
        scopes=frozenset(scopes),
    )


class Signer:
    """Signs tokens as auth does, with a key of its own."""

    def __init__(self, clock: Clock | None = None, issuer: str = ISSUER) -> None:
        self.clock = clock or SystemClock()
        self.issuer = issuer
        self.key = Ed25519PrivateKey.generate()
        self.kid = uuid4().hex

    def signed(self, principal: Principal, ttl: timedelta = _TTL) -> Principal:
        """The principal with a token that says it."""
        token = sign_token(
            self.key, self.kid, principal, issuer=self.issuer, now=self.clock.now(), ttl=ttl
        )
        return replace(principal, token=token)

    def verifier(self) -> TokenVerifier:
        return TokenVerifier(self._keys, self.issuer, self.clock)

    def tokens_of(self, service: str) -> ServiceTokens:
        """The own tokens of a service."""

        async def issue() -> tuple[str, datetime]:
            token = self.signed(Principal("service", service=service)).token
            return token, self.clock.now() + _TTL

        return ServiceTokens(issue, self.clock)

    async def _keys(self) -> Keys:
        return {self.kid: self.key.public_key()}


class FakeAccess(AccessResolver):
    """Roles as a test sets them: by subject (``principal.subject``) and organization.

    A project's key has a role in its own organization. ``down`` makes every question fail.
    """

    def __init__(self, roles: Mapping[str, Mapping[UUID, str]] | None = None) -> None:
        super().__init__(cast(TeamServiceStub, None), SystemClock())
        self.roles: dict[str, dict[UUID, str]] = {
            subject: dict(orgs) for subject, orgs in (roles or {}).items()
        }
        self.down = False
        self.evicted: list[tuple[UUID | None, UUID | None]] = []

    def grant(self, principal: Principal, org_id: UUID, role: str) -> None:
        self.roles.setdefault(principal.subject, {})[org_id] = role

    def revoke(self, principal: Principal, org_id: UUID) -> None:
        del self.roles[principal.subject][org_id]

    async def resolve(
        self,
        principal: Principal,
        want: UUID | None = None,
        *,
        reads: bool = False,
        anew: bool = False,
        acting_for: Collection[UUID] = (),
    ) -> Roles:
        if self.down:
            raise Unavailable("Permissions cannot be checked now.", retry_after=1)
        if principal.kind == "service":
            return dict.fromkeys([*acting_for, *([want] if want else [])], "owner")
        if principal.kind == "project_key" and principal.org_id is not None:
            return {principal.org_id: "member"} | self.roles.get(principal.subject, {})
        return dict(self.roles.get(principal.subject, {}))

    def evict(self, *, user_id: UUID | None = None, org_id: UUID | None = None) -> None:
        self.evicted.append((user_id, org_id))


class Served:
    """A running gRPC server, and how to call it as anybody.

    Attributes:
        access: who has which role where; tests change it.
        signer: makes the tokens that the server accepts.
        address: "host:port" of the server.
    """

    def __init__(
        self, address: str, signer: Signer, access: FakeAccess, closing: AsyncExitStack
    ) -> None:
        self.address = address
        self.signer = signer
        self.access = access
        self._closing = closing
        self._channels: dict[tuple[str, str], Channel] = {}

    def channel(self, callee: str, caller: str = "gateway") -> Channel:
        """A channel of the service ``caller`` to one that is served here."""
        if (callee, caller) not in self._channels:
            channel = Channel(
                callee,
                self.address,
                telemetry=silent_telemetry(caller),
                tokens=self.signer.tokens_of(caller),
            )
            self._closing.push_async_callback(channel.close)
            self._channels[callee, caller] = channel
        return self._channels[callee, caller]

    def stub(
        self,
        kind: Callable[[grpc.aio.Channel], S],
        principal: Principal = ANONYMOUS,
        caller: str = "gateway",
    ) -> S:
        """A stub whose calls are made on behalf of ``principal``; they raise our own errors."""
        return kind(cast(grpc.aio.Channel, _ChannelFor(self, principal, caller)))

    async def invoke(
        self,
        method: str,
        request: Message,
        principal: Principal = ANONYMOUS,
        *,
        caller: str = "gateway",
        idempotency_key: str | None = None,
        if_match: int | None = None,
        ip: str | None = None,
    ) -> Answer:
        """Call "/mindweave.team.v1.TeamService/AddMember"; tells the ETag and whether replayed."""
        operation = operations()[method]
        bare = principal.kind not in ("anonymous", "service") and not principal.token
        signed = self.signer.signed(principal) if bare else principal
        call = Call(operation=method, principal=signed, ip=ip)

        async def invoke() -> Answer:
            set_call(call)
            method = self.channel(operation.service, caller).method(operation)
            return await method.invoke(request, idempotency_key=idempotency_key, if_match=if_match)

        # In a task of its own, so that the call is bound nowhere else.
        return await asyncio.create_task(invoke())


class _ChannelFor:
    """What stubs are made from, where each call is one principal's."""

    def __init__(self, served: Served, principal: Principal, caller: str) -> None:
        self._served = served
        self._principal = principal
        self._caller = caller

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        async def call(request: Message, **_: Any) -> Any:
            answer = await self._served.invoke(
                method, request, self._principal, caller=self._caller
            )
            return answer.message

        return call


@asynccontextmanager
async def serve(
    servicers: Iterable[tuple[str, object]],
    *,
    database: Database | None = None,
    access: FakeAccess | None = None,
    clock: Clock | None = None,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Served]:
    """Serve with every interceptor of the kit on a free port.

    Args:
        servicers: pairs of full service name, "mindweave.team.v1.TeamService", and servicer.
        database: the service's, for its idempotency records.
        access: who has which role where; nobody has any when absent.
        clock: by which tokens are made and judged.
        telemetry: the service's.
    """
    signer, access = Signer(clock), access or FakeAccess()
    guards = Guards(
        telemetry=telemetry or silent_telemetry(),
        verifier=signer.verifier(),
        access=access,
        find_answer=partial(find_answer, database) if database is not None else None,
    )
    server = Server("127.0.0.1:0")
    for name, servicer in servicers:
        server.add(name, servicer, guards)
    async with AsyncExitStack() as closing:
        port = await server.start()
        closing.push_async_callback(server.stop, 0)
        await server.serve(True)
        yield Served(f"127.0.0.1:{port}", signer, access, closing)
