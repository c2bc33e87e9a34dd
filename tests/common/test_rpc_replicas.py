"""Several servers of one callee: how they are found, and which of them are called."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from common.errors import Unavailable
from common.identity.call import Principal
from common.rpc.contract import operations
from common.service import Runtime
from common.settings import load_settings
from common.testing import Signer, silent_telemetry
from mindweave.auth.v1.auth_pb2 import IssueServiceTokenResponse
from mindweave.team.v1.team_pb2 import CloseOrgRequest, ResolveAccessRequest
from tests.common.names import names
from tests.common.serving import AUTH, TEAM, Fleet, fleet
from tests.common.waiting import eventually

pytestmark = pytest.mark.rpc

RESOLVE = operations()[f"/{TEAM}/ResolveAccess"]
CLOSE = operations()[f"/{TEAM}/CloseOrg"]


class Seen:
    """The calls that a server handled, and the connections that they came by."""

    def __init__(self, served: Fleet) -> None:
        self.calls, self.peers = 0, set[str]()
        for method in ("ResolveAccess", "CloseOrg"):
            answer = operations()[f"/{TEAM}/{method}"].response_class

            async def handle(request: Any, context: Any, answer: Any = answer) -> Any:
                self.calls += 1
                self.peers.add(context.peer())
                await asyncio.sleep(0.01)
                return answer()

            served.handlers[TEAM].on(method, handle)


async def test_a_server_that_comes_later_is_called_and_no_call_is_lost_as_connections_age() -> None:
    signer, age = Signer(), 0.3
    ended = asyncio.Event()
    async with (
        names("127.0.0.1") as (known, address),
        fleet(TEAM, signer=signer, connection_age=age) as first,
    ):
        port = first.server.port
        channel = first.channel("team", "account", address=f"dns://{address}/team.test:{port}")
        before = Seen(first)

        async def call() -> int:
            made = 0
            while not ended.is_set():
                await channel.method(RESOLVE)(ResolveAccessRequest())
                await channel.method(CLOSE)(CloseOrgRequest(org_id=str(uuid4())))
                made += 2
            return made

        async with asyncio.TaskGroup() as calling:
            callers = [calling.create_task(call()) for _ in range(10)]
            await eventually(lambda: len(before.peers) >= 5)
            listen = f"127.0.0.2:{port}"
            async with fleet(TEAM, signer=signer, connection_age=age, listen=listen) as second:
                later = Seen(second)
                known.addresses.append("127.0.0.2")
                await eventually(lambda: len(later.peers) >= 5)
                await eventually(lambda: before.calls + later.calls >= 3000)
                ended.set()
                made = [await caller for caller in callers]
    # Each was handled once: none was lost with its connection, none made again.
    assert sum(made) == before.calls + later.calls


async def test_channels_to_the_same_server_do_not_share_a_connection() -> None:
    """Else one waits for the next attempt of another, whose server was away when it asked."""
    async with fleet(TEAM) as served:
        seen = Seen(served)
        for caller in ("account", "account", "gateway"):
            await served.channel("team", caller).method(RESOLVE)(ResolveAccessRequest())
    assert len(seen.peers) == 3


@pytest.mark.parametrize("named", [True, False])
async def test_only_callees_that_settings_name_are_asked_for_their_health(named: bool) -> None:
    """Behind another name a mesh may answer, whose health is that of one server among many."""
    async with fleet(AUTH, TEAM) as served:
        seen = Seen(served)

        async def issue(request: Any, context: Any) -> IssueServiceTokenResponse:
            signed = served.signer.signed(Principal("service", service=request.service))
            answer = IssueServiceTokenResponse(token=signed.token)
            answer.expires_at.FromDatetime(datetime.now(UTC) + timedelta(minutes=5))
            return answer

        served.handlers[AUTH].on("IssueServiceToken", issue)
        await served.server.serve(False)
        settings = load_settings(
            secret="a secret of the tests, longer than needed",
            addresses={"team": served.address} if named else {},
        )
        telemetry = silent_telemetry("account")
        runtime = Runtime(
            "account", settings, telemetry=telemetry, version="test", own_address=served.address
        )
        served.closing.push_async_callback(runtime.close)
        call = runtime.channel("team").method(RESOLVE)(ResolveAccessRequest())
        if named:
            with pytest.raises(Unavailable):
                await call
        else:
            await call
    assert seen.calls == (0 if named else 1)
