from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.rpc import server as server_module
from common.rpc.contract import operations_of
from common.rpc.interceptors import Guards
from common.rpc.server import Server
from common.testing import FakeAccess, Signer, a_user, silent_telemetry
from mindweave.team.v1 import team_pb2
from tests.common.serving import TEAM, Handlers, fleet

pytestmark = pytest.mark.rpc


def guards() -> Guards:
    return Guards(silent_telemetry("team"), Signer().verifier(), FakeAccess())


def test_a_servicer_that_lacks_an_rpc_is_refused_at_start() -> None:
    partial = SimpleNamespace(ListMembers=Handlers(TEAM).ListMembers)
    with pytest.raises(LookupError, match="SimpleNamespace has no AddMember"):
        Server("127.0.0.1:0").add(TEAM, partial, guards())


def test_a_service_that_no_proto_has_is_refused_at_start() -> None:
    with pytest.raises(LookupError, match="no proto"):
        Server("127.0.0.1:0").add("mindweave.nothing.v1.Nothing", object(), guards())


def test_a_stream_is_refused_at_start_because_nothing_would_guard_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = tuple(replace(operation, streaming=True) for operation in operations_of(TEAM))
    monkeypatch.setattr(server_module, "operations_of", lambda _: streams)
    with pytest.raises(TypeError, match="ListMembers is a stream, which no interceptor guards"):
        Server("127.0.0.1:0").add(TEAM, Handlers(TEAM), guards())


async def test_an_rpc_that_is_served_by_http_alone_is_not_served_here() -> None:
    service = "mindweave.usage_tracker.v1.UsageTrackerService"
    async with fleet(service) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.bare(f"{service}/SendEvents", b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_tells_of_each_service_whether_to_send_calls_here() -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    async with fleet(TEAM) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            request = health_pb2.HealthCheckRequest(service=service)
            answer: int = (await stub.Check(request)).status
            return answer

        assert [await status(name) for name in ("", TEAM)] == [serving, serving]
        await served.server.serve(False)
        assert [await status(name) for name in ("", TEAM)] == [not_serving, not_serving]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await status("mindweave.nothing.v1.Nothing")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_server_that_has_only_started_does_not_say_that_it_serves() -> None:
    server = Server("127.0.0.1:0")
    server.add(TEAM, Handlers(TEAM), guards())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=TEAM))
    await server.stop(0)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_names_the_services() -> None:
    async with fleet(TEAM) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = stub.ServerReflectionInfo(iter([question]))
        async for answer in stream:
            names = {found.name for found in answer.list_services_response.service}
            break
        stream.cancel()
    assert {TEAM, "grpc.health.v1.Health"} <= names


async def test_a_stop_waits_for_the_calls_under_way() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        entered.set()
        await leave.wait()
        return team_pb2.ResolveAccessResponse(access=[team_pb2.Access(role="owner")])

    async with fleet(TEAM) as served:
        served.handlers[TEAM].on("ResolveAccess", slow)
        method = served.method(f"{TEAM}/ResolveAccess", "account")
        calling = asyncio.create_task(method(team_pb2.ResolveAccessRequest()))
        await entered.wait()
        stopping = asyncio.create_task(served.server.stop(5))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        leave.set()
        assert (await calling).access[0].role == "owner"
        await stopping


async def test_a_port_that_another_server_has_is_refused() -> None:
    async with fleet(TEAM) as served:
        second = Server(served.address)
        with pytest.raises(OSError, match=f"cannot listen on {served.address}"):
            await second.start()


async def test_a_message_above_the_limit_is_refused() -> None:
    async with fleet(TEAM) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.bare(f"{TEAM}/AddMember", b"\0" * (13 * 1024 * 1024))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_handler_that_answers_with_another_message_is_an_error_of_ours() -> None:
    async def wrong(request: Any, context: Any) -> Any:
        return team_pb2.AddMemberResponse()

    async with fleet(TEAM) as served:
        served.handlers[TEAM].on("ResolveAccess", wrong)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.bare(
                f"{TEAM}/ResolveAccess",
                b"",
                [("x-mindweave-caller", await served.tokens_of("account").get())],
            )
    assert failed.value.code() is grpc.StatusCode.INTERNAL


async def test_the_same_rpcs_of_two_services_do_not_meet() -> None:
    project = "mindweave.project.v1.ProjectService"
    auth = "mindweave.auth.v1.AuthService"
    async with fleet(project, auth) as served:
        caller = ("x-mindweave-caller", await served.tokens_of("gateway").get())
        user = ("authorization", f"Bearer {served.token(a_user())}")
        await served.bare(f"{auth}/ListApiKeys", b"", [caller, user])
        assert served.handlers[auth].seen == ["ListApiKeys"]
        assert served.handlers[project].seen == []
