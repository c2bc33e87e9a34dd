from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest

from common.errors import (
    MindWeaveError,
    Unavailable,
)
from common.rpc.client import Channel
from common.rpc.contract import operations
from common.testing import Signer, silent_telemetry
from mindweave.auth.v1.auth_pb2 import (
    CreateProjectApiKeyRequest,
    ListProfilesRequest,
)
from mindweave.team.v1.team_pb2 import (
    ResolveAccessRequest,
)
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

    async def answer(self, request: bytes, context: Any) -> bytes:
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
                operation.method: grpc.unary_unary_rpc_method_handler(self.answer)
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
    handlers = {"ResolveAccess": grpc.unary_unary_rpc_method_handler(first.answer)}
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
