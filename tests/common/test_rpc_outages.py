"""A callee that is down, frozen, slow or about to go, as those see it who call it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from common.clock import SystemClock
from common.errors import MindWeaveError, NotFound, Unavailable
from common.identity.service_tokens import ServiceTokens
from common.resilience import Guard, State
from common.rpc.client import PATIENT_SECONDS, Channel, UnaryMethod
from common.rpc.contract import operations
from common.settings import Resilience
from common.telemetry import Telemetry
from common.testing import Signer, silent_telemetry
from mindweave.auth.v1.auth_pb2 import GetJwksRequest
from mindweave.team.v1.team_pb2 import CloseOrgRequest, ResolveAccessRequest
from tests.common.serving import AUTH, TEAM, Fleet, fleet
from tests.common.waiting import PATIENCE, eventually

pytestmark = pytest.mark.rpc

ROOT = Path(__file__).resolve().parents[2]
GET_JWKS = operations()[f"/{AUTH}/GetJwks"]
RESOLVE = operations()[f"/{TEAM}/ResolveAccess"]
CLOSE = operations()[f"/{TEAM}/CloseOrg"]
# Long enough to be the callee's fault.
LONG = 2 * PATIENT_SECONDS


class AuthProcess:
    """auth in a process of its own."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, again at the address of the first time; returns when it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.common.rpc_process", self.address],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'libs'}"},
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        with self._process as process:
            process.kill()


def state_of(guard: Guard) -> State:
    return guard.state


class Caller:
    """A service that calls auth, with its guard in view."""

    def __init__(self, target: str, **options: Any) -> None:
        self.telemetry = silent_telemetry("team")
        self.guard = Guard("auth", Resilience(**options), self.telemetry)
        self.channel = Channel(
            "auth", target, telemetry=self.telemetry, tokens=None, guard=self.guard
        )
        self._method = self.channel.method(GET_JWKS)

    async def call(self) -> None:
        await self._method(GetJwksRequest(), timeout=LONG)

    async def works(self) -> bool:
        try:
            await self.call()
        except Unavailable:
            return False
        return True

    async def give_up(self) -> None:
        """Call until the breaker has opened; every call on the way is refused as it should."""
        while self.guard.state is State.CLOSED:
            with pytest.raises(Unavailable) as refused:
                await self.call()
            assert refused.value.retry_after

    def counted(self, name: str, **labels: str) -> float | None:
        return counted(self.telemetry, name, callee="auth", **labels)


def counted(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    named = {"service": telemetry.service, **labels}
    return telemetry.metrics.registry.get_sample_value(name, named)


@pytest.fixture
async def auth() -> AsyncIterator[AuthProcess]:
    process = AuthProcess()
    await asyncio.to_thread(process.start)
    yield process
    process.kill()


async def test_a_frozen_callee_is_given_up_and_called_again_when_it_wakes(
    auth: AuthProcess,
) -> None:
    caller = Caller(auth.address)
    async with caller.channel:
        await caller.call()
        tasks = len(asyncio.all_tasks())
        auth.send(signal.SIGSTOP)
        async with asyncio.timeout(PATIENCE):
            await caller.give_up()
        made = caller.counted("mindweave_rpc_client_calls")
        refused = await asyncio.gather(*(caller.call() for _ in range(50)), return_exceptions=True)
        assert {type(error) for error in refused} == {Unavailable}
        assert caller.counted("mindweave_rpc_client_refused_total", reason="breaker")
        auth.send(signal.SIGCONT)
        await eventually(caller.works)
        await eventually(lambda: caller.guard.state is State.CLOSED)
        assert await asyncio.gather(*(caller.works() for _ in range(50))) == [True] * 50
    assert made == caller.counted("mindweave_rpc_client_calls") == 0
    assert len(asyncio.all_tasks()) == tasks


async def test_a_callee_that_stays_frozen_loses_its_connection(auth: AuthProcess) -> None:
    caller = Caller(auth.address, breaker_failures=1000)
    async with caller.channel:
        await caller.call()
        auth.send(signal.SIGSTOP)
        lost = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        await eventually(lambda: caller.channel.get_state() is lost)
        auth.send(signal.SIGCONT)
        await eventually(caller.works)


async def test_a_callee_that_was_killed_is_found_again_at_its_old_address(
    auth: AuthProcess,
) -> None:
    caller = Caller(auth.address)
    async with caller.channel:
        await caller.call()
        auth.kill()
        async with asyncio.timeout(PATIENCE):
            await caller.give_up()
        await asyncio.to_thread(auth.start)
        await eventually(caller.works)
        assert await asyncio.gather(*(caller.works() for _ in range(50))) == [True] * 50


async def test_a_frozen_replica_is_left_and_its_callee_is_not_given_up(auth: AuthProcess) -> None:
    """Calls that the other replica answers keep the breaker closed until keepalive has noticed."""
    other = AuthProcess()
    await asyncio.to_thread(other.start)
    caller = Caller(f"ipv4:{auth.address},{other.address}")
    try:
        async with caller.channel:
            for _ in range(4):
                await caller.call()
            auth.send(signal.SIGSTOP)

            async def all_work() -> bool:
                outcomes = await asyncio.gather(*(caller.works() for _ in range(20)))
                assert any(outcomes)
                return all(outcomes)

            await eventually(all_work)
            assert not caller.counted("mindweave_rpc_client_refused_total", reason="breaker")
            auth.send(signal.SIGCONT)
    finally:
        other.kill()


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(TEAM) as running:
        yield running


def guarded(served: Fleet, target: str = "", **options: Any) -> tuple[Guard, Channel]:
    """A channel of account to team, and its guard."""
    telemetry = silent_telemetry("account")
    guard = Guard("team", Resilience(**options), telemetry)
    channel = Channel(
        "team",
        target or served.address,
        telemetry=telemetry,
        tokens=served.tokens_of("account"),
        guard=guard,
    )
    served.closing.push_async_callback(channel.close)
    return guard, channel


@pytest.mark.parametrize("said", [Unavailable(), NotFound(), MindWeaveError()])
async def test_a_callee_that_refuses_is_a_callee_that_is_there(
    served: Fleet, said: MindWeaveError
) -> None:
    """Also where it says that what it needs itself is down."""

    async def refuse(request: Any, context: Any) -> Any:
        await asyncio.sleep(PATIENT_SECONDS)
        raise said

    served.handlers[TEAM].on("ResolveAccess", refuse)
    guard, channel = guarded(served, breaker_failures=1)
    for _ in range(2):
        with pytest.raises(type(said)):
            await channel.method(RESOLVE)(ResolveAccessRequest())
    assert state_of(guard) is State.CLOSED


async def test_a_callee_that_is_too_slow_is_given_up(served: Fleet) -> None:
    async def endless(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    served.handlers[TEAM].on("ResolveAccess", endless)
    guard, channel = guarded(served, breaker_failures=1)
    with pytest.raises(Unavailable) as late:
        await channel.method(RESOLVE)(ResolveAccessRequest(), timeout=LONG)
    assert late.value.retry_after
    assert state_of(guard) is State.OPEN


async def cancelled(call: Callable[[], Awaitable[Any]], after: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after):
            await call()


async def test_only_those_who_waited_say_that_a_callee_is_silent(served: Fleet) -> None:
    async def endless(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    served.handlers[TEAM].on("ResolveAccess", endless)
    guard, channel = guarded(served, breaker_failures=1)
    method = channel.method(RESOLVE)
    with pytest.raises(Unavailable):
        await method(ResolveAccessRequest(), timeout=0.05)
    await cancelled(lambda: method(ResolveAccessRequest()), 0.05)
    assert state_of(guard) is State.CLOSED
    await cancelled(lambda: method(ResolveAccessRequest()), LONG)
    assert state_of(guard) is State.OPEN


async def test_calls_that_a_slow_callee_holds_leave_no_room_for_more(served: Fleet) -> None:
    inside, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def wait(request: Any, context: Any) -> Any:
        inside.release()
        await go_on.wait()
        return RESOLVE.response_class()

    served.handlers[TEAM].on("ResolveAccess", wait)
    _, channel = guarded(served, bulkhead_calls=3)
    method = channel.method(RESOLVE)
    calls = [asyncio.create_task(method(ResolveAccessRequest())) for _ in range(3)]
    for _ in calls:
        await inside.acquire()
    with pytest.raises(Unavailable) as refused:
        await method(ResolveAccessRequest())
    assert refused.value.code == "overloaded"
    go_on.set()
    await asyncio.gather(*calls)
    await method(ResolveAccessRequest())


async def test_a_call_does_not_outlast_its_time_while_the_callers_own_token_does_not_come(
    served: Fleet,
) -> None:
    async def never() -> tuple[str, datetime]:
        await asyncio.Event().wait()
        raise AssertionError

    tokens = ServiceTokens(never, SystemClock())
    channel = Channel("team", served.address, telemetry=silent_telemetry("account"), tokens=tokens)
    async with channel, asyncio.timeout(PATIENCE):
        with pytest.raises(Unavailable) as refused:
            await channel.method(RESOLVE)(ResolveAccessRequest(), timeout=0.1)
    assert refused.value.retry_after
    assert served.handlers[TEAM].seen == []


class Traffic:
    """Reads and writes, more than 200 a second, until it is ended."""

    def __init__(self, read: UnaryMethod, write: UnaryMethod) -> None:
        self._read, self._write = read, write
        self._calls: list[asyncio.Task[Any]] = []
        self._ending = asyncio.Event()
        self._flowing = asyncio.create_task(self._flow())

    async def _flow(self) -> None:
        while not self._ending.is_set():
            self._calls.append(asyncio.create_task(self._read(ResolveAccessRequest())))
            write = self._write(CloseOrgRequest(org_id=str(uuid4())))
            self._calls.append(asyncio.create_task(write))
            await asyncio.sleep(1 / 150)

    @property
    def count(self) -> int:
        return len(self._calls)

    async def more(self, count: int) -> None:
        """Returns when so many more calls were made."""
        goal = self.count + count
        await eventually(lambda: self.count >= goal)

    async def end(self) -> list[Any]:
        """What each call gave or raised."""
        self._ending.set()
        await self._flowing
        return await asyncio.gather(*self._calls, return_exceptions=True)


async def test_a_server_that_is_drained_loses_no_call_and_none_is_made_twice() -> None:
    async with AsyncExitStack() as stack:
        signer = Signer()
        going = await stack.enter_async_context(fleet(TEAM, signer=signer))
        staying = await stack.enter_async_context(fleet(TEAM, signer=signer))

        async def work(request: Any, context: Any) -> Any:
            await asyncio.sleep(0.01)
            return RESOLVE.response_class()

        async def change(request: Any, context: Any) -> Any:
            await asyncio.sleep(0.05)
            return CLOSE.response_class()

        for server in (going, staying):
            server.handlers[TEAM].on("ResolveAccess", work)
            server.handlers[TEAM].on("CloseOrg", change)
        _, channel = guarded(staying, f"ipv4:{going.address},{staying.address}")
        await eventually(lambda: answered_by_both(channel, going, staying))
        before = len(going.handlers[TEAM].seen) + len(staying.handlers[TEAM].seen)
        traffic = Traffic(channel.method(RESOLVE), channel.method(CLOSE))
        stack.push_async_callback(traffic.end)
        await traffic.more(100)
        await going.server.serve(False)
        await traffic.more(100)
        left_behind = len(going.handlers[TEAM].seen)
        await traffic.more(100)
        assert len(going.handlers[TEAM].seen) == left_behind
        async with asyncio.timeout(PATIENCE):
            await going.server.stop(10 * PATIENCE)
        await traffic.more(100)
        outcomes = await traffic.end()
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert failures == []
        handled = len(going.handlers[TEAM].seen) + len(staying.handlers[TEAM].seen) - before
        assert handled == len(outcomes) >= 400


async def answered_by_both(channel: Channel, *servers: Fleet) -> bool:
    await channel.method(RESOLVE)(ResolveAccessRequest())
    return all(server.handlers[TEAM].seen for server in servers)
