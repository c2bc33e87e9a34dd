from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import grpc
import pytest
from prometheus_client import CollectorRegistry
from protovalidate import Validator

from common.errors import (
    DeadlineExceeded,
    Invalid,
    MindWeaveError,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Unavailable,
)
from common.identity.call import Call, current_call
from common.rpc.contract import operations
from common.rpc.exchange import Exchange
from common.rpc.interceptors.deadline import Deadline
from common.rpc.interceptors.validation import invalid as invalid_of
from common.rpc.status import error_of
from common.telemetry import Metrics, Telemetry, Tracing, correlation_id
from common.testing import Signer, a_user
from mindweave.account.v1.account_pb2 import CreateOrgRequest, UpdateOrgRequest, UpdateOrgResponse
from mindweave.auth.v1.auth_pb2 import CreateApiKeyRequest, ListProfilesRequest
from mindweave.team.v1.team_pb2 import (
    ListMembersRequest,
    ResolveAccessRequest,
    ResolveAccessResponse,
)
from mindweave.usage_tracker.v1.usage_tracker_pb2 import TrackRequest
from tests.common.logs import capture_logs
from tests.common.otlp import otlp_receiver
from tests.common.serving import ACCOUNT, AUTH, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

RESOLVE = f"{TEAM}/ResolveAccess"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(ACCOUNT, AUTH, TEAM) as running:
        yield running


def caller(served: Fleet) -> tuple[str, str]:
    return "x-mindweave-caller", served.tokens_of("account").fresh() or ""


def raising(error: BaseException) -> Any:
    async def handle(request: Any, context: Any) -> Any:
        raise error

    return handle


async def invalid(served: Fleet, name: str, request: Any) -> Invalid:
    call = on_behalf_of(served.signer.signed(a_user()))
    with pytest.raises(Invalid) as refused:
        await as_call(call, lambda: served.method(name)(request))
    return refused.value


async def test_a_field_that_breaks_a_rule_is_named_by_a_json_pointer(served: Fleet) -> None:
    error = await invalid(served, f"{TEAM}/ListMembers", ListMembersRequest(org_id="x"))
    (field,) = error.fields
    assert (field.pointer, field.code) == ("/org_id", "invalid_value")
    assert "UUID" in field.message or "uuid" in field.message
    assert error.detail == "These fields are not valid: /org_id."


async def test_every_field_that_breaks_a_rule_is_named_at_once(served: Fleet) -> None:
    request = ListMembersRequest(org_id="x", page_size=501, page_token="t" * 600)
    error = await invalid(served, f"{TEAM}/ListMembers", request)
    assert [field.pointer for field in error.fields] == ["/org_id", "/page_size", "/page_token"]


async def test_an_element_of_a_list_is_named_by_its_index(served: Fleet) -> None:
    request = ListProfilesRequest(user_ids=[str(uuid4()), "x", str(uuid4()), "y"])
    error = await invalid(served, f"{AUTH}/ListProfiles", request)
    assert [field.pointer for field in error.fields] == ["/user_ids/1", "/user_ids/3"]
    repeated = CreateApiKeyRequest(name="a", scopes=["org:read", "org:read"])
    error = await invalid(served, f"{AUTH}/CreateApiKey", repeated)
    assert [field.pointer for field in error.fields] == ["/scopes"]


async def test_a_text_with_a_nul_is_refused_wherever_it_stands(served: Fleet) -> None:
    request = CreateApiKeyRequest(name="a\0", scopes=["org:read", "\0"])
    error = await invalid(served, f"{AUTH}/CreateApiKey", request)
    assert {(field.pointer, field.code) for field in error.fields} == {
        ("/name", "invalid_value"),
        ("/scopes/1", "invalid_value"),
    }


def test_a_required_field_that_is_missing_has_a_code_of_its_own() -> None:
    error = invalid_of(Validator().collect_violations(TrackRequest()))
    assert [(field.pointer, field.code) for field in error.fields] == [("/event", "missing_field")]


async def test_bytes_that_are_no_message_are_the_callers_fault(served: Fleet) -> None:
    await served.tokens_of("account").get()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.bare(RESOLVE, b"\xff\xff\xff", [caller(served)])
    assert error_of(refused.value).status == 422


async def test_a_domain_error_arrives_with_its_code_fields_and_delay(served: Fleet) -> None:
    class TooEager(RateLimited):
        code = "too_eager"

    served.handlers[TEAM].on("ResolveAccess", raising(TooEager("Wait.", retry_after=3)))
    with pytest.raises(RateLimited) as told:
        await served.method(RESOLVE, "account")(ResolveAccessRequest())
    assert (told.value.code, told.value.detail) == ("too_eager", "Wait.")
    assert told.value.retry_after == 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=hunter2 at /srv/team/store.py"),
        KeyError("hunter2"),
        MindWeaveError("hunter2 in an error of ours"),
        TimeoutError("hunter2"),
        ExceptionGroup("hunter2", [ValueError("hunter2")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_that_nobody_expected_tells_the_correlation_id_and_nothing_else(
    served: Fleet, error: Exception
) -> None:
    served.handlers[TEAM].on("ResolveAccess", raising(error))
    await served.tokens_of("account").get()
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.bare(RESOLVE, b"", [caller(served), ("x-correlation-id", "request-7")])
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "request-7" in (failed.value.details() or "")
    everything = repr((failed.value.details(), failed.value.trailing_metadata()))
    assert "hunter2" not in everything
    assert "store.py" not in everything
    assert "Traceback" not in everything
    (line,) = [log for log in logs if log["level"] == "error"]
    assert line["operation"] == RESOLVE
    assert line["exception"]


async def test_an_expected_error_is_not_logged_as_a_failure(served: Fleet) -> None:
    served.handlers[TEAM].on("ResolveAccess", raising(NotFound()))
    with capture_logs() as logs, pytest.raises(NotFound):
        await served.method(RESOLVE, "account")(ResolveAccessRequest())
    assert logs == []


async def test_a_correlation_id_is_made_where_none_is_offered(served: Fleet) -> None:
    seen: list[tuple[str, str]] = []

    async def handle(request: Any, context: Any) -> Any:
        seen.append((current_call().correlation_id, correlation_id()))
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    await served.tokens_of("account").get()
    await served.bare(RESOLVE, b"", [caller(served), ("x-correlation-id", "request-7")])
    await served.bare(RESOLVE, b"", [caller(served)])
    await served.bare(RESOLVE, b"", [caller(served), ("x-correlation-id", "two words")])
    assert seen[0] == ("request-7", "request-7")
    for bound, told in seen[1:]:
        assert bound == told == str(UUID(told))
    assert seen[1] != seen[2]


async def test_the_handler_learns_the_expected_version_and_the_caller_the_new_one(
    served: Fleet,
) -> None:
    async def update(request: Any, context: Any) -> Any:
        call = current_call()
        if call.if_match not in (None, 7):
            raise PreconditionFailed
        call.etag = 8
        return UpdateOrgResponse()

    user, org = a_user(), uuid4()
    served.access.grant(user, org, "owner")
    served.handlers[ACCOUNT].on("UpdateOrg", update)
    call = on_behalf_of(served.signer.signed(user))
    method, request = served.method(f"{ACCOUNT}/UpdateOrg"), UpdateOrgRequest(id=str(org))
    assert (await as_call(call, lambda: method.invoke(request, if_match=7))).etag == 8
    assert (await as_call(call, lambda: method.invoke(request))).etag == 8
    with pytest.raises(PreconditionFailed):
        await as_call(call, lambda: method.invoke(request, if_match=6))
    foreign = [("if-match", 'W/"7"')]
    with pytest.raises(PreconditionFailed):
        await as_call(call, lambda: method(request, metadata=foreign))


async def test_an_answer_without_a_version_has_no_etag(served: Fleet) -> None:
    answer = await served.method(RESOLVE, "account").invoke(ResolveAccessRequest())
    assert (answer.etag, answer.replayed) == (None, False)


async def test_a_call_without_a_deadline_ends_at_the_servers_own() -> None:
    ended = asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with fleet(TEAM, deadline=0.05) as served:
        served.handlers[TEAM].on("ResolveAccess", endless)
        await served.tokens_of("account").get()
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await served.bare(RESOLVE, b"", [caller(served)])
    assert isinstance(error_of(late.value), DeadlineExceeded)
    assert ended.is_set()


async def test_a_timeout_within_a_handler_is_not_taken_for_the_deadline() -> None:
    async def handler(_: Any) -> bytes:
        raise TimeoutError("the handler's own")

    context = SimpleNamespace(time_remaining=lambda: None)
    exchange = cast(Exchange, SimpleNamespace(context=context, call=on_behalf_of()))
    limited = Deadline(10.0).wrap(operations()[f"/{RESOLVE}"], handler)
    with pytest.raises(TimeoutError, match="own"):
        await limited(exchange)


async def test_a_call_is_cancelled_in_its_handler_when_its_deadline_passes() -> None:
    metrics = Metrics(CollectorRegistry())
    telemetry = Telemetry("team", metrics=metrics, tracing=Tracing(None, version="1"))
    cancelled = asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async with fleet(TEAM, telemetry=telemetry) as served:
        served.handlers[TEAM].on("ResolveAccess", endless)
        with pytest.raises(Unavailable):
            await served.method(RESOLVE, "account")(ResolveAccessRequest(), timeout=0.1)
        await asyncio.wait_for(cancelled.wait(), 5)
        await asyncio.sleep(0)
    counted = calls(metrics, "server")
    assert counted == {("team", "TeamService/ResolveAccess", "DEADLINE_EXCEEDED"): 1}


async def test_a_client_that_goes_away_cancels_the_handler() -> None:
    metrics = Metrics(CollectorRegistry())
    telemetry = Telemetry("team", metrics=metrics, tracing=Tracing(None, version="1"))
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with fleet(TEAM, telemetry=telemetry) as served:
        served.handlers[TEAM].on("ResolveAccess", endless)
        method = served.method(RESOLVE, "account")
        calling = asyncio.create_task(method(ResolveAccessRequest()))
        await asyncio.wait_for(entered.wait(), 5)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await asyncio.wait_for(cancelled.wait(), 5)
        await asyncio.sleep(0)
    assert calls(metrics, "server") == {("team", "TeamService/ResolveAccess", "CANCELLED"): 1}


def calls(metrics: Metrics, side: str) -> dict[tuple[str, str, str], float]:
    name = f"mindweave_rpc_{side}_duration_seconds"
    return {
        (s.labels["service"], s.labels["method"], s.labels["code"]): s.value
        for family in metrics.registry.collect()
        if family.name == name
        for s in family.samples
        if s.name == f"{name}_count"
    }


async def test_every_call_is_counted_and_timed_on_both_sides_by_its_status() -> None:
    metrics = Metrics(CollectorRegistry())
    tracing = Tracing(None, version="1")
    async with fleet(TEAM, telemetry=Telemetry("team", metrics=metrics, tracing=tracing)) as served:
        client = Telemetry("account", metrics=metrics, tracing=tracing)
        method = served.method(RESOLVE, "account", telemetry=client)
        await method(ResolveAccessRequest())
        await method(ResolveAccessRequest())
        served.handlers[TEAM].on("ResolveAccess", raising(NotFound()))
        with pytest.raises(NotFound):
            await method(ResolveAccessRequest())
        with pytest.raises(Invalid):
            await method(ResolveAccessRequest(org_ids=["x"]))
    for side, service in (("server", "team"), ("client", "account")):
        assert calls(metrics, side) == {
            (service, "TeamService/ResolveAccess", "OK"): 2,
            (service, "TeamService/ResolveAccess", "NOT_FOUND"): 1,
            (service, "TeamService/ResolveAccess", "INVALID_ARGUMENT"): 1,
        }


async def test_a_trace_goes_through_every_service_of_a_call() -> None:
    with otlp_receiver() as receiver:
        tracing = Tracing(receiver.endpoint, version="1")
        metrics = Metrics(CollectorRegistry())

        def telemetry(service: str) -> Telemetry:
            return Telemetry(service, metrics=metrics, tracing=tracing)

        signer = Signer()
        async with (
            fleet(ACCOUNT, signer=signer, telemetry=telemetry("account")) as first,
            fleet(TEAM, signer=signer, telemetry=telemetry("team")) as second,
        ):
            onward = second.method(RESOLVE, "account", telemetry=telemetry("account"))

            async def create(request: Any, context: Any) -> Any:
                await onward(ResolveAccessRequest())
                raise RuntimeError("broken")

            first.handlers[ACCOUNT].on("CreateOrg", create)
            edge = telemetry("gateway")
            method = first.method(f"{ACCOUNT}/CreateOrg", telemetry=edge)

            async def request() -> None:
                with edge.continued({"traceparent": PARENT}, "POST /orgs"):
                    await method(CreateOrgRequest(name="a"))

            with pytest.raises(MindWeaveError):
                await as_call(on_behalf_of(signer.signed(a_user())), request)
        await tracing.stop()
    chain = [
        receiver.named("POST /orgs", "gateway"),
        receiver.named(f"{ACCOUNT}/CreateOrg", "gateway"),
        receiver.named(f"{ACCOUNT}/CreateOrg", "account"),
        receiver.named(RESOLVE, "account"),
        receiver.named(RESOLVE, "team"),
    ]
    assert {span.trace for span in chain} == {"0af7651916cd43dd8448eb211c80319c"}
    assert chain[0].parent == "b7ad6b7169203331"
    for above, below in pairwise(chain):
        assert below.parent == above.id
    assert [span.kind for span in chain[1:]] == [3, 2, 3, 2]
    assert [span.error for span in chain] == [True, True, True, False, False]
    assert chain[2].attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert chain[2].attributes["rpc.system"] == "grpc"
    assert chain[2].attributes["rpc.service"] == ACCOUNT
    assert chain[2].attributes["rpc.method"] == "CreateOrg"


async def test_the_time_a_handler_has_left_is_known_to_it(served: Fleet) -> None:
    left: list[float] = []

    async def handle(request: Any, context: Any) -> Any:
        call: Call = current_call()
        assert call.deadline is not None
        left.append(call.deadline - time.monotonic())
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    await served.method(RESOLVE, "account")(ResolveAccessRequest(), timeout=3)
    await served.tokens_of("account").get()
    await served.bare(RESOLVE, b"", [caller(served)])
    assert left[0] <= 3 < left[1] <= 10
