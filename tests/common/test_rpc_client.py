from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest
from structlog.testing import capture_logs

from common.clock import ManualClock
from common.errors import (
    DeadlineExceeded,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from common.identity.call import Call, Principal, current_call
from common.identity.callers import SERVICES, may_call
from common.rpc.client import Channel, acting_for
from common.rpc.contract import operations
from common.telemetry import bind_correlation_id, correlation_id
from common.testing import Signer, a_user, silent_telemetry
from mindweave.account.v1.account_pb2 import CreateOrgRequest, CreateOrgResponse
from mindweave.auth.v1.auth_pb2 import (
    CreateProjectApiKeyRequest,
    GetJwksRequest,
    ListProfilesRequest,
)
from mindweave.team.v1.team_pb2 import (
    CloseOrgRequest,
    ListMembersResponse,
    OpenOrgRequest,
    ResolveAccessRequest,
    ResolveAccessResponse,
)
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from tests.common.serving import ACCOUNT, AUTH, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

RESOLVE = f"{TEAM}/ResolveAccess"
CREATE_KEY = f"{AUTH}/CreateProjectApiKey"
A_KEY = CreateProjectApiKeyRequest(
    org_id=str(uuid4()), project_id=str(uuid4()), name="a", scopes=["events:write"]
)


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(ACCOUNT, AUTH, TEAM) as running:
        yield running


class Foreign:
    """A server without any of the kit, which fails as a test says and keeps what it is sent."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.fails: list[grpc.StatusCode] = []
        self.pushback: str | None = None
        self.address = ""

    async def _answer(self, request: bytes, context: Any) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        if self.fails:
            trailing = (("grpc-retry-pushback-ms", self.pushback),) if self.pushback else ()
            await context.abort(self.fails.pop(0), "as told", trailing)
        return b""

    @asynccontextmanager
    async def serving(self, *services: str) -> AsyncIterator[None]:
        server = grpc.aio.server()
        for service in services:
            methods = {
                operation.method: grpc.unary_unary_rpc_method_handler(self._answer)
                for operation in operations().values()
                if operation.grpc_service == service
            }
            handler = grpc.method_handlers_generic_handler(service, methods)
            server.add_generic_rpc_handlers((handler,))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        yield
        await server.stop(0)

    def channel(self, callee: str, caller: str = "project") -> Channel:
        tokens = Signer().tokens_of(caller)
        return Channel(callee, self.address, telemetry=silent_telemetry(caller), tokens=tokens)


@pytest.fixture
async def foreign() -> AsyncIterator[Foreign]:
    running = Foreign()
    async with running.serving(AUTH, TEAM):
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


@pytest.mark.parametrize("failures", [1, 2])
async def test_what_cannot_be_reached_is_tried_again_under_the_same_key(
    foreign: Foreign, failures: int
) -> None:
    foreign.fails = [grpc.StatusCode.UNAVAILABLE] * failures
    async with foreign.channel("auth") as channel:
        await channel.method(operations()[f"/{CREATE_KEY}"])(A_KEY)
    keys = [metadata["idempotency-key"] for metadata in foreign.metadata]
    assert len(keys) == failures + 1
    assert len(set(keys)) == 1
    assert len(keys[0]) >= 32


async def test_after_three_tries_it_is_given_up(foreign: Foreign) -> None:
    foreign.fails = [grpc.StatusCode.UNAVAILABLE] * 4
    async with foreign.channel("auth") as channel:
        with pytest.raises(Unavailable) as failed:
            await channel.method(operations()[f"/{CREATE_KEY}"])(A_KEY)
    assert len(foreign.metadata) == 3
    assert failed.value.retry_after == 1
    assert "as told" not in failed.value.detail


@pytest.mark.parametrize(
    "code", [c for c in grpc.StatusCode if c.name not in ("OK", "UNAVAILABLE", "CANCELLED")]
)
async def test_no_other_status_is_tried_again(foreign: Foreign, code: grpc.StatusCode) -> None:
    foreign.fails = [code]
    async with foreign.channel("auth") as channel:
        with pytest.raises(MindWeaveError):
            await channel.method(operations()[f"/{CREATE_KEY}"])(A_KEY)
    assert len(foreign.metadata) == 1


async def test_a_callee_that_cancels_is_a_callee_that_is_not_there(foreign: Foreign) -> None:
    foreign.fails = [grpc.StatusCode.CANCELLED]
    async with foreign.channel("auth") as channel:
        with pytest.raises(Unavailable):
            await channel.method(operations()[f"/{CREATE_KEY}"])(A_KEY)


async def test_a_callee_that_fails_and_fails_is_not_asked_three_times_for_ever(
    foreign: Foreign,
) -> None:
    async with foreign.channel("auth") as channel:
        method = channel.method(operations()[f"/{CREATE_KEY}"])
        for _ in range(12):
            foreign.fails = [grpc.StatusCode.UNAVAILABLE] * 3
            with pytest.raises(Unavailable):
                await method(A_KEY)
    assert len(foreign.metadata) < 12 * 2


async def test_what_a_server_of_ours_has_judged_is_not_tried_again(served: Fleet) -> None:
    async def down(request: Any, context: Any) -> Any:
        raise Unavailable("Full.", code="full", retry_after=7)

    served.handlers[TEAM].on("ResolveAccess", down)
    with pytest.raises(Unavailable) as failed:
        await served.method(RESOLVE, "account")(ResolveAccessRequest())
    assert served.handlers[TEAM].seen == ["ResolveAccess"]
    assert (failed.value.code, failed.value.retry_after) == ("full", 7)


async def test_a_callee_that_nobody_serves_is_unavailable() -> None:
    signer = Signer()
    channel = Channel(
        "team",
        "127.0.0.1:1",
        telemetry=silent_telemetry("account"),
        tokens=signer.tokens_of("account"),
    )
    async with channel:
        with pytest.raises(Unavailable) as failed:
            await channel.method(operations()[f"/{RESOLVE}"])(ResolveAccessRequest())
    assert "127.0.0.1" not in failed.value.detail


async def test_a_callee_that_comes_back_is_found_again() -> None:
    first = Foreign()
    async with first.serving(TEAM):
        channel = first.channel("team", "account")
        method = channel.method(operations()[f"/{RESOLVE}"])
        await method(ResolveAccessRequest())
    with pytest.raises(Unavailable):
        await method(ResolveAccessRequest())
    server = grpc.aio.server()
    handlers = {"ResolveAccess": grpc.unary_unary_rpc_method_handler(first._answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TEAM, handlers),))
    server.add_insecure_port(first.address)
    await server.start()
    await asyncio.wait_for(channel.channel_ready(), 10)
    await method(ResolveAccessRequest())
    await channel.close()
    await server.stop(0)


async def test_what_may_be_repeated_has_no_key_and_what_changes_has_a_fresh_one(
    foreign: Foreign,
) -> None:
    async with foreign.channel("auth") as channel:
        await channel.method(operations()[f"/{AUTH}/ListProfiles"])(ListProfilesRequest())
        for _ in range(2):
            await channel.method(operations()[f"/{CREATE_KEY}"])(A_KEY)
    read, first, second = [metadata.get("idempotency-key") for metadata in foreign.metadata]
    assert read is None
    assert first != second


async def test_the_repeat_of_a_call_repeats_the_calls_it_makes(foreign: Foreign) -> None:
    """A saga that broke off is gone through again with the keys of the first time."""
    async with foreign.channel("auth") as channel:
        method = channel.method(operations()[f"/{CREATE_KEY}"])
        another = CreateProjectApiKeyRequest()
        another.CopyFrom(A_KEY)
        another.name = "b"

        async def saga() -> None:
            for request in (A_KEY, A_KEY, another):
                await method(request)

        for key in ("the key", "the key", "another key"):
            await as_call(on_behalf_of(idempotency_key=key), saga)
    keys = [metadata["idempotency-key"] for metadata in foreign.metadata]
    assert keys[:3] == keys[3:6]
    assert len(set(keys)) == 6
    assert not {"the key", "another key"} & set(keys)


async def test_a_call_says_how_long_it_may_take(served: Fleet) -> None:
    left: list[float] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        left.append(context.time_remaining())
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    await served.method(RESOLVE, "account")(ResolveAccessRequest())
    await served.method(RESOLVE, "account", default=2.0)(ResolveAccessRequest())
    await served.method(RESOLVE, "account")(ResolveAccessRequest(), timeout=1.0)
    assert 4 < left[0] <= 5
    assert 1 < left[1] <= 2
    assert 0 < left[2] <= 1


async def test_a_deadline_shrinks_over_two_hops(served: Fleet) -> None:
    left: dict[str, float] = {}
    second = served.method(f"{TEAM}/OpenOrg", "account")
    third = served.method(f"{AUTH}/ListProfiles", "team")

    async def create(request: Any, context: Any) -> CreateOrgResponse:
        left["account"] = context.time_remaining()
        await second(OpenOrgRequest(org_id=str(uuid4()), owner_id=str(uuid4())))
        return CreateOrgResponse()

    async def open_org(request: Any, context: Any) -> Any:
        left["team"] = context.time_remaining()
        await third(ListProfilesRequest(), timeout=30)
        return operations()[f"/{TEAM}/OpenOrg"].response_class()

    async def profiles(request: Any, context: Any) -> Any:
        left["auth"] = context.time_remaining()
        return operations()[f"/{AUTH}/ListProfiles"].response_class()

    served.handlers[ACCOUNT].on("CreateOrg", create)
    served.handlers[TEAM].on("OpenOrg", open_org)
    served.handlers[AUTH].on("ListProfiles", profiles)
    call = on_behalf_of(served.signer.signed(a_user()), deadline=time.monotonic() + 3)
    first = served.method(f"{ACCOUNT}/CreateOrg")
    await as_call(call, lambda: first(CreateOrgRequest(name="a")))
    assert left["account"] <= 3 - 0.05
    assert left["team"] <= left["account"] - 0.05
    assert left["auth"] <= left["team"] - 0.05


async def test_a_call_that_has_no_time_left_is_not_made(served: Fleet) -> None:
    method = served.method(RESOLVE, "account")
    call = on_behalf_of(deadline=time.monotonic() + 0.01)
    with pytest.raises(DeadlineExceeded):
        await as_call(call, lambda: method(ResolveAccessRequest()))
    assert served.handlers[TEAM].seen == []


async def test_a_cancelled_call_cancels_what_it_called_in_turn(served: Fleet) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()
    second = served.method(f"{TEAM}/CloseOrg", "account")

    async def create(request: Any, context: Any) -> Any:
        return await second(CloseOrgRequest(org_id=str(uuid4())))

    async def close(request: Any, context: Any) -> Any:
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    served.handlers[ACCOUNT].on("CreateOrg", create)
    served.handlers[TEAM].on("CloseOrg", close)
    call = on_behalf_of(served.signer.signed(a_user()))
    first = served.method(f"{ACCOUNT}/CreateOrg")
    calling = asyncio.create_task(as_call(call, lambda: first(CreateOrgRequest(name="a"))))
    await asyncio.wait_for(entered.wait(), 5)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.wait_for(cancelled.wait(), 5)


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


async def test_a_service_that_is_not_known_asks_for_a_new_token_and_hides_it_from_its_user() -> (
    None
):
    class Renewed(Signer):
        """Its first token is of a key that was withdrawn."""

    signer, stale = Renewed(), Signer()
    issued: list[str] = []

    async with fleet(TEAM, signer=signer) as served:
        tokens = served.tokens_of("account")

        async def issue() -> Any:
            signing = signer if issued else stale
            token = signing.signed(Principal("service", service="account")).token
            issued.append(token)
            return token, ManualClock(signing.clock.now()).now().replace(year=2100)

        tokens._issue = issue
        method = served.method(RESOLVE, "account")
        with capture_logs() as logs, pytest.raises(Unavailable):
            await method(ResolveAccessRequest())
        await method(ResolveAccessRequest())
    assert len(issued) == 2
    assert [log["event"] for log in logs] == ["a callee refuses this service"]
    assert issued[0] not in repr(logs)


async def test_a_service_that_is_turned_away_does_not_blame_its_user(served: Fleet) -> None:
    """The callee's table is stricter than the caller's, as in the middle of a roll-out."""
    channel = served.channel("auth", "team")
    channel.callee = "account"
    channel._tokens = served.tokens_of("audit")
    user = on_behalf_of(served.signer.signed(a_user()))
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
