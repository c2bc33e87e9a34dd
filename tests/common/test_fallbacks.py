"""The rows of docs/fallbacks.md that are the kit's: what stands while a callee is away.

Each callee is a real server at the end of a wire that is cut (down) or held (frozen), or whose
handlers take longer than anybody waits (slow).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.datastructures import Headers

from common.clock import ManualClock, SystemClock
from common.errors import Unavailable
from common.http.credentials import Credentials
from common.identity.access import AccessResolver
from common.identity.api_keys import new_secret
from common.identity.call import ANONYMOUS, Principal
from common.identity.service_tokens import ServiceTokens, issued_by
from common.identity.tokens import TokenVerifier, public_jwk, published_keys
from common.rpc.client import Channel
from common.rpc.contract import operations
from common.testing import ISSUER, Signer, a_project_key, a_user, silent_telemetry
from mindweave.auth.v1 import auth_pb2 as pb
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.project.v1.project_pb2 import (
    GetProjectRequest,
    ResolvedProject,
    ResolveProjectsResponse,
)
from mindweave.project.v1.project_pb2_grpc import ProjectServiceStub
from mindweave.team.v1.team_pb2 import (
    Access,
    OpenOrgRequest,
    ResolveAccessRequest,
    ResolveAccessResponse,
)
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from services.usage_tracker.actions.projects import FRESH, Projects
from tests.common.serving import AUTH, PROJECT, TEAM, Fleet, as_call, fleet, on_behalf_of
from tests.common.wire import Wire, wire

pytestmark = pytest.mark.rpc

FAULTS = ("down", "frozen", "slow")
# What a caller waits for an answer here; the code waits longer.
ASK_SECONDS = 0.6
# Seconds that a call has which stands for a user's.
CALL_SECONDS = 3.0
ORG, PROJECT_ID = uuid4(), uuid4()
KEY = new_secret("project")


class Callee:
    """auth, team and project behind one wire."""

    def __init__(self, served: Fleet, between: Wire) -> None:
        self.served = served
        self.signer = served.signer
        self._wire = between
        self._slow = False
        self.keys = a_project_key(ORG, PROJECT_ID, ["events:write"])

    def channel(self, callee: str, caller: str, *, bare: bool = False) -> grpc.aio.Channel:
        tokens = None if bare else self.served.tokens_of(caller)
        channel = Channel(
            callee,
            self._wire.address,
            telemetry=silent_telemetry(caller),
            tokens=tokens,
            timeout=ASK_SECONDS,
        )
        self.served.closing.push_async_callback(channel.close)
        return channel

    def answers(self, service: str, method: str, answer: Callable[[Any], Message]) -> None:
        async def handle(request: Any, _: Any) -> Message:
            if self._slow:
                await asyncio.sleep(10 * ASK_SECONDS)
            return answer(request)

        self.served.handlers[service].on(method, handle)

    def suffer(self, fault: str) -> None:
        if fault == "down":
            self._wire.cut()
        elif fault == "frozen":
            self._wire.hold()
        else:
            self._slow = True


@pytest.fixture
async def callee(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callee]:
    for module in ("common.http.credentials", "common.identity.access"):
        monkeypatch.setattr(f"{module}._ASK_SECONDS", ASK_SECONDS)
    monkeypatch.setattr("services.usage_tracker.actions.projects._ASK_SECONDS", ASK_SECONDS)
    async with fleet(AUTH, PROJECT, TEAM) as served, wire(served.address) as between:
        made = Callee(served, between)
        signer = served.signer
        made.answers(AUTH, "GetJwks", lambda _: jwks(signer))
        made.answers(AUTH, "IssueServiceToken", lambda request: service_token(signer, request))
        made.answers(AUTH, "CheckSession", lambda _: pb.CheckSessionResponse())
        made.answers(
            AUTH,
            "ExchangeApiKey",
            lambda _: pb.ExchangeApiKeyResponse(token=signer.signed(made.keys).token),
        )
        owner = ResolveAccessResponse(access=[Access(org_id=str(ORG), role="owner")])
        made.answers(TEAM, "ResolveAccess", lambda _: owner)
        project = ResolvedProject(id=str(PROJECT_ID), org_id=str(ORG))
        made.answers(
            PROJECT, "ResolveProjects", lambda _: ResolveProjectsResponse(projects=[project])
        )
        yield made


def jwks(signer: Signer) -> pb.GetJwksResponse:
    return pb.GetJwksResponse(
        keys=[pb.JsonWebKey(**public_jwk(signer.kid, signer.key.public_key()))]
    )


def service_token(
    signer: Signer, request: pb.IssueServiceTokenRequest
) -> pb.IssueServiceTokenResponse:
    token = signer.signed(Principal("service", service=request.service)).token
    ends = Timestamp()
    ends.FromDatetime(signer.clock.now() + timedelta(minutes=10))
    return pb.IssueServiceTokenResponse(token=token, expires_at=ends)


async def in_time(work: Callable[[], Awaitable[Any]], principal: Principal = ANONYMOUS) -> Any:
    """What it gives in a call of a user, which is over before the user's patience is."""
    call = on_behalf_of(principal, deadline=time.monotonic() + CALL_SECONDS)
    async with asyncio.timeout(2 * CALL_SECONDS):
        return await as_call(call, work)


async def refused(work: Callable[[], Awaitable[Any]], principal: Principal = ANONYMOUS) -> None:
    """It is a 503 that says when to come back."""
    with pytest.raises(Unavailable) as told:
        await in_time(work, principal)
    assert (told.value.status, told.value.code) == (503, "unavailable")
    assert told.value.retry_after


class Edge:
    """Credentials as the edge checks them, with a hand on the age of its answers."""

    def __init__(self, callee: Callee) -> None:
        self.age = 0.0
        self._signer = callee.signer
        stub = AuthServiceStub(callee.channel("auth", "gateway"))
        self._credentials = Credentials(callee.signer.verifier(), stub, lambda: self.age)

    def user(self) -> Callable[[], Awaitable[Principal]]:
        token = self._signer.signed(a_user()).token
        return self._shown("Authorization", f"Bearer {token}")

    def key(self, key: str) -> Callable[[], Awaitable[Principal]]:
        return self._shown("X-API-Key", key)

    def _shown(self, name: str, value: str) -> Callable[[], Awaitable[Principal]]:
        return lambda: self._credentials.principal(Headers({name: value}), self)

    def check(self) -> None:
        """Any number of wrong credentials may be shown."""

    def count(self) -> None: ...


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_session_that_auth_knew_stands_while_auth_is_away(
    callee: Callee, fault: str
) -> None:
    edge = Edge(callee)
    known, unknown = edge.user(), edge.user()
    await known()
    callee.suffer(fault)
    edge.age = 50.0
    assert (await in_time(known)).kind == "user"
    await refused(unknown)
    edge.age = 61.0
    await refused(known)


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_api_key_that_auth_knew_stands_while_auth_is_away(
    callee: Callee, fault: str
) -> None:
    edge = Edge(callee)
    await edge.key(KEY)()
    callee.suffer(fault)
    edge.age = 50.0
    assert (await in_time(edge.key(KEY))).project_id == PROJECT_ID
    await refused(edge.key(new_secret("project")))
    edge.age = 56.0
    await refused(edge.key(KEY))


@pytest.mark.parametrize("fault", FAULTS)
async def test_tokens_under_known_keys_are_verified_while_auth_is_away(
    callee: Callee, fault: str
) -> None:
    auth = AuthServiceStub(callee.channel("auth", "project", bare=True))
    clock = ManualClock(callee.signer.clock.now())
    verifier = TokenVerifier(published_keys(auth), ISSUER, clock)
    await verifier.verify(callee.signer.signed(a_user()).token)
    callee.suffer(fault)
    clock.advance(timedelta(seconds=2))
    user = a_user()
    found = await in_time(lambda: verifier.verify(callee.signer.signed(user).token))
    assert found.user_id == user.user_id
    rotated = Signer().signed(a_user()).token
    await refused(lambda: verifier.verify(rotated))


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_service_token_serves_to_its_end_while_auth_is_away(
    callee: Callee, fault: str
) -> None:
    auth = AuthServiceStub(callee.channel("auth", "account", bare=True))
    clock = ManualClock(callee.signer.clock.now())
    tokens = ServiceTokens(issued_by(auth, "account", "secret"), clock)
    resolve = operations()[f"/{TEAM}/ResolveAccess"]
    direct = Channel(
        "team", callee.served.address, telemetry=silent_telemetry("account"), tokens=tokens
    )
    async with direct:
        method = direct.method(resolve)
        await method(ResolveAccessRequest())
        callee.suffer(fault)
        callee.served.handlers[TEAM].on("ResolveAccess", at_once)
        clock.advance(timedelta(minutes=9))
        await in_time(lambda: method(ResolveAccessRequest()))
        clock.advance(timedelta(minutes=2))
        await refused(lambda: method(ResolveAccessRequest()))


async def at_once(_: Any, __: Any) -> ResolveAccessResponse:
    return ResolveAccessResponse()


@pytest.mark.parametrize("fault", FAULTS)
async def test_reads_go_on_with_known_roles_while_team_is_away_and_writes_do_not(
    callee: Callee, fault: str
) -> None:
    clock = ManualClock(SystemClock().now())
    access = AccessResolver(TeamServiceStub(callee.channel("team", "project")), clock)
    known, unknown = (callee.signer.signed(a_user()) for _ in range(2))
    await access.resolve(known, ORG)
    callee.suffer(fault)
    clock.advance(timedelta(seconds=50))
    assert await in_time(lambda: access.resolve(known, ORG, reads=True)) == {ORG: "owner"}
    await refused(lambda: access.resolve(known, ORG))
    await refused(lambda: access.resolve(unknown, ORG, reads=True))
    clock.advance(timedelta(seconds=11))
    await refused(lambda: access.resolve(known, ORG, reads=True))


@pytest.mark.parametrize("fault", FAULTS)
async def test_events_of_known_projects_are_taken_while_project_is_away(
    callee: Callee, fault: str
) -> None:
    clock = ManualClock(SystemClock().now())
    stub = ProjectServiceStub(callee.channel("project", "usage_tracker"))
    projects = Projects(stub, clock)
    await projects.resolve([PROJECT_ID])
    callee.suffer(fault)
    clock.advance(FRESH + timedelta(seconds=45))
    assert (await in_time(lambda: projects.resolve([PROJECT_ID])))[PROJECT_ID].org_id == ORG
    await refused(lambda: projects.resolve([uuid4()]))
    clock.advance(timedelta(seconds=15))
    await refused(lambda: projects.resolve([PROJECT_ID]))


ANY = str(uuid4())
WITHOUT_FALLBACK: dict[str, tuple[str, Message]] = {
    "gateway reads a project": (f"{PROJECT}/GetProject", GetProjectRequest(id=ANY)),
    "account opens an organization": (
        f"{TEAM}/OpenOrg",
        OpenOrgRequest(org_id=ANY, owner_id=ANY),
    ),
    "team asks for profiles": (f"{AUTH}/ListProfiles", pb.ListProfilesRequest(user_ids=[ANY])),
    "project lists keys": (
        f"{AUTH}/ListProjectApiKeys",
        pb.ListProjectApiKeysRequest(org_id=ANY, project_id=ANY),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("edge", WITHOUT_FALLBACK)
async def test_a_call_without_a_fallback_is_refused_in_time(
    callee: Callee, edge: str, fault: str
) -> None:
    method, request = WITHOUT_FALLBACK[edge]
    operation = operations()[f"/{method}"]
    channel = cast(Channel, callee.channel(operation.service, edge.partition(" ")[0]))
    callee.answers(operation.grpc_service, operation.method, lambda _: operation.response_class())
    callee.suffer(fault)
    user = callee.signer.signed(a_user())
    await refused(lambda: channel.method(operation)(request), user)
