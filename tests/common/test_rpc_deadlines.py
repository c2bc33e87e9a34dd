from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from common.errors import DeadlineExceeded
from common.identity.call import current_call
from common.rpc.contract import operations
from common.rpc.outgoing import time_for
from common.testing import a_user
from mindweave.account.v1.account_pb2 import CreateOrgRequest, CreateOrgResponse
from mindweave.auth.v1.auth_pb2 import ListProfilesRequest
from mindweave.team.v1.team_pb2 import (
    CloseOrgRequest,
    OpenOrgRequest,
    ResolveAccessRequest,
    ResolveAccessResponse,
)
from tests.common.serving import ACCOUNT, AUTH, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

RESOLVE = f"{TEAM}/ResolveAccess"


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(ACCOUNT, AUTH, TEAM) as running:
        yield running


async def test_a_call_says_how_long_it_may_take(served: Fleet) -> None:
    left: list[float] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        left.append(context.time_remaining())
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    await served.method(RESOLVE, "account")(ResolveAccessRequest())
    await served.method(RESOLVE, "account", default=15.0)(ResolveAccessRequest())
    await served.method(RESOLVE, "account")(ResolveAccessRequest(), timeout=30.0)
    # gRPC tells times to the nearest tenth.
    assert 0 < left[0] <= 5.1 < left[1] <= 15.1 < left[2] <= 30.1


@pytest.mark.parametrize("had", [30.0, 14.2, 9.99, 4.95, 2.95])
async def test_no_callee_has_more_time_than_its_caller_keeps_a_hop_of(
    served: Fleet, had: float
) -> None:
    seen: list[float] = []

    async def handle(request: Any, context: Any) -> ResolveAccessResponse:
        seen.append(current_call().deadline or 0)
        return ResolveAccessResponse()

    served.handlers[TEAM].on("ResolveAccess", handle)
    deadline = time.monotonic() + had
    method = served.method(RESOLVE, "account", default=60.0)
    call = on_behalf_of(deadline=deadline)
    await as_call(call, lambda: method(ResolveAccessRequest()))
    assert seen[0] < deadline


@pytest.mark.parametrize("had", [1.07, 0.9, 0.333, 0.06])
def test_a_short_time_is_not_rounded_up_to_a_longer_one(had: float) -> None:
    assert 0 < time_for(on_behalf_of(deadline=time.monotonic() + had), 5.0) < had - 0.04


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
    assert 3 > left["account"] > left["team"] > left["auth"] > 0


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
