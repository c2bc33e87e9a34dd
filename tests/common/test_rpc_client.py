from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest

from common.clock import SystemClock
from common.errors import (
    MindWeaveError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from common.identity.call import Call, Principal, current_call
from common.identity.callers import SERVICES, may_call
from common.identity.service_tokens import ServiceTokens
from common.rpc.client import Channel, acting_for
from common.rpc.contract import operations
from common.telemetry import bind_correlation_id, correlation_id
from common.testing import Signer, a_user, silent_telemetry
from mindweave.account.v1.account_pb2 import CreateOrgRequest
from mindweave.auth.v1.auth_pb2 import GetJwksRequest
from mindweave.team.v1.team_pb2 import (
    CloseOrgRequest,
    ListMembersResponse,
    ResolveAccessRequest,
    ResolveAccessResponse,
)
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from tests.common.logs import capture_logs
from tests.common.serving import ACCOUNT, AUTH, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

RESOLVE = f"{TEAM}/ResolveAccess"


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(ACCOUNT, AUTH, TEAM) as running:
        yield running


@pytest.mark.parametrize("callee", SERVICES)
@pytest.mark.parametrize("caller", SERVICES)
async def test_a_channel_is_opened_only_where_the_table_allows_it(caller: str, callee: str) -> None:
    telemetry = silent_telemetry(caller)
    if may_call(caller, callee):
        await Channel(callee, "127.0.0.1:1", telemetry=telemetry, tokens=None).close()
    else:
        with pytest.raises(LookupError, match=f"{caller} may not call {callee}"):
            Channel(callee, "127.0.0.1:1", telemetry=telemetry, tokens=None)


async def test_generated_stubs_call_through_a_channel(served: Fleet) -> None:
    async def resolve(request: Any, context: Any) -> ResolveAccessResponse:
        answer = ResolveAccessResponse()
        answer.access.add(org_id=request.org_ids[0], role="owner")
        return answer

    served.handlers[TEAM].on("ResolveAccess", resolve)
    async with served.channel("team", "account") as channel:
        await channel.channel_ready()
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        await channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE)
        stub = TeamServiceStub(cast(grpc.aio.Channel, channel))
        org = str(uuid4())
        first, second = await asyncio.gather(
            stub.ResolveAccess(ResolveAccessRequest(org_ids=[org])),
            stub.ResolveAccess(ResolveAccessRequest(org_ids=[org]), timeout=2),
        )
    assert first == second
    assert (first.access[0].org_id, first.access[0].role) == (org, "owner")


async def test_a_channel_to_one_service_does_not_call_another(served: Fleet) -> None:
    channel = served.channel("team", "account")
    with pytest.raises(LookupError, match="team does not serve"):
        channel.method(operations()[f"/{ACCOUNT}/GetOrg"])


async def test_streams_are_refused_because_nothing_would_cover_them(served: Fleet) -> None:
    channel = served.channel("team", "account")
    operation = replace(operations()[f"/{RESOLVE}"], streaming=True)
    with pytest.raises(TypeError, match="is a stream"):
        channel.method(operation)
    for kind in (channel.unary_stream, channel.stream_unary, channel.stream_stream):
        with pytest.raises(TypeError, match="is a stream"):
            kind(f"/{RESOLVE}")


async def test_what_travels_with_a_call_arrives_in_the_next_one(served: Fleet) -> None:
    seen: list[tuple[Call, str]] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        seen.append((current_call(), correlation_id()))
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    user = served.signer.signed(a_user())
    call = on_behalf_of(user, ip="192.0.2.7", user_agent="Bröwser/1\n2")
    method = served.method(RESOLVE, "account")

    async def work() -> None:
        bind_correlation_id("request-7")
        await method(ResolveAccessRequest())

    await as_call(call, work)
    ((arrived, correlation),) = seen
    assert arrived.principal.user_id == user.user_id
    assert arrived.principal.token == user.token
    assert arrived.caller == "account"
    assert (arrived.ip, arrived.user_agent) == ("192.0.2.7", "Br?wser/1 2")
    assert correlation == arrived.correlation_id == "request-7"


async def test_a_service_never_passes_on_the_token_of_another_service(served: Fleet) -> None:
    seen: list[Principal] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        seen.append(current_call().principal)
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    alerts = served.signer.signed(Principal("service", service="alerts"))
    method = served.method(RESOLVE, "account")
    await as_call(on_behalf_of(alerts), lambda: method(ResolveAccessRequest()))
    assert [(p.kind, p.service) for p in seen] == [("service", "account")]


async def test_the_organizations_a_service_acts_for_travel_on(served: Fleet) -> None:
    seen: list[tuple[Any, ...]] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        seen.append(current_call().acting_for)
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    method, org, other = served.method(RESOLVE, "account"), uuid4(), uuid4()
    request = ResolveAccessRequest()
    with acting_for([org, other]):
        await method(request)
    await method(request)
    alerts = on_behalf_of(Principal("service", service="alerts"), acting_for=(org,))
    await as_call(alerts, lambda: method(request))
    user = on_behalf_of(served.signer.signed(a_user()), acting_for=(org,))
    await as_call(user, lambda: method(request))
    assert seen == [(org, other), (), (org,), ()]


async def test_an_error_goes_through_a_service_between_unchanged(served: Fleet) -> None:
    second = served.method(f"{TEAM}/CloseOrg", "account")

    async def create(request: Any, context: Any) -> Any:
        return await second(CloseOrgRequest(org_id=str(uuid4())))

    async def close(request: Any, context: Any) -> Any:
        raise NotFound("There is no such organization.", code="org_not_found")

    served.handlers[ACCOUNT].on("CreateOrg", create)
    served.handlers[TEAM].on("CloseOrg", close)
    call = on_behalf_of(served.signer.signed(a_user()))
    first = served.method(f"{ACCOUNT}/CreateOrg")
    with pytest.raises(NotFound) as told:
        await as_call(call, lambda: first(CreateOrgRequest(name="a")))
    assert (told.value.code, told.value.detail) == (
        "org_not_found",
        "There is no such organization.",
    )


async def test_a_service_that_is_not_known_asks_for_a_new_token_and_its_user_comes_back() -> None:
    signer, withdrawn = Signer(), Signer()
    issued: list[str] = []

    async def issue() -> tuple[str, datetime]:
        signing = signer if issued else withdrawn
        issued.append(signing.signed(Principal("service", service="account")).token)
        return issued[-1], datetime.now(UTC) + timedelta(minutes=10)

    async with fleet(TEAM, signer=signer) as served:
        tokens = ServiceTokens(issue, SystemClock())
        telemetry = silent_telemetry("account")
        async with Channel("team", served.address, telemetry=telemetry, tokens=tokens) as channel:
            method = channel.method(operations()[f"/{RESOLVE}"])
            with capture_logs() as logs, pytest.raises(Unavailable):
                await method(ResolveAccessRequest())
            await method(ResolveAccessRequest())
    assert len(issued) == 2
    assert [log["event"] for log in logs] == ["a callee refuses this service"]
    assert issued[0] not in repr(logs)


async def test_a_service_that_is_turned_away_does_not_blame_its_user(served: Fleet) -> None:
    """The token says audit where the table says project: the callee knows better."""
    channel = Channel(
        "account",
        served.address,
        telemetry=silent_telemetry("project"),
        tokens=served.tokens_of("audit"),
    )
    user = on_behalf_of(served.signer.signed(a_user()))
    async with channel:
        method = channel.method(operations()[f"/{ACCOUNT}/CreateOrg"])
        with capture_logs() as logs, pytest.raises(MindWeaveError) as failed:
            await as_call(user, lambda: method(CreateOrgRequest(name="a")))
    assert not isinstance(failed.value, PermissionDenied)
    assert (failed.value.status, failed.value.code) == (500, "internal")
    assert logs[0]["reason"] == "audit may not call account."


async def test_a_channel_without_a_token_fetches_keys(served: Fleet) -> None:
    channel = Channel("auth", served.address, telemetry=silent_telemetry("team"), tokens=None)
    async with channel:
        await channel.method(operations()[f"/{AUTH}/GetJwks"])(GetJwksRequest())
    assert served.handlers[AUTH].seen == ["GetJwks"]


async def test_a_large_answer_arrives_whole(served: Fleet) -> None:
    async def many(request: Any, context: Any) -> ResolveAccessResponse:
        answer = ResolveAccessResponse()
        for _ in range(100_000):
            answer.access.add(org_id="0" * 36, role="viewer")
        return answer

    served.handlers[TEAM].on("ResolveAccess", many)
    answer = await served.method(RESOLVE, "account")(ResolveAccessRequest())
    assert len(answer.access) == 100_000
    assert not ListMembersResponse().members
