"""One process of many: what of a service it runs, how it waits for the others, how it leaves."""

from __future__ import annotations

import asyncio

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.http.app import RestApp
from common.lifecycle import Host
from common.service import Parts, Placed, Role, Runtime, Service
from common.settings import Settings
from tests.common.hosting import Auth, Usage, Work, auth, page, ready, running, usage
from tests.common.waiting import eventually

pytestmark = pytest.mark.rpc

AUTH = "mindweave.auth.v1.AuthService"


@pytest.fixture
def alone(settings: Settings) -> Settings:
    return settings.model_copy(update={"listen": "127.0.0.1:0", "startup_timeout": 1.0})


class Answering(Work):
    """What runs wherever the service answers."""

    name = "answering"

    async def start(self) -> None:
        self._noted.append("answering started")


def both(noted: list[str], app: RestApp | None = None) -> Service:
    """A service with something of each role, that notes what runs."""

    async def build(runtime: Runtime) -> Parts:
        return Parts(
            servicers=[(AUTH, Auth(runtime))],
            app=app,
            serving=[Answering(noted)],
            tasks=[Work(noted)],
        )

    return Service("auth", build, None)


async def said_by(rpc: str) -> int:
    async with grpc.aio.insecure_channel(rpc) as channel:
        request = health_pb2.HealthCheckRequest(service=AUTH)
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_a_process_that_serves_does_no_shared_work(alone: Settings) -> None:
    noted: list[str] = []
    async with running([Placed(both(noted), frozenset({Role.SERVE}))], alone) as host:
        assert await said_by(host.rpc_address) == health_pb2.HealthCheckResponse.SERVING

    assert "answering started" in noted
    assert "work started" not in noted


async def test_a_process_that_works_serves_nothing_and_says_how_it_is(alone: Settings) -> None:
    noted: list[str] = []
    async with running([auth()], alone) as elsewhere:
        named = alone.model_copy(update={"addresses": {"auth": elsewhere.rpc_address}})
        placed = Placed(both(noted, Usage().app()), frozenset({Role.WORK}))
        async with running([placed], named) as host:
            status, report = await ready(host.metrics_address)
            with pytest.raises(grpc.aio.AioRpcError):
                await said_by(host.rpc_address)

    assert (host.http_address, status) == ("", 200)
    assert "work" in {part["name"] for part in report["services"][0]["parts"]}
    assert noted == ["work started", "work stopped"]


async def test_a_patient_process_lives_and_names_what_it_waits_for(alone: Settings) -> None:
    down = alone.model_copy(update={"redis_url": "redis://127.0.0.1:1", "startup_timeout": 0.1})
    host = Host([auth()], down, version="0", patient=True)
    starting = asyncio.create_task(host.start())

    async def names_it() -> bool:
        return bool(host.metrics_address) and "waits for the event broker of auth" in str(
            await ready(host.metrics_address)
        )

    await eventually(names_it)
    live, _ = await page(host.metrics_address, "live")
    waiting, _ = await ready(host.metrics_address)
    assert not starting.done()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)

    assert (live, waiting) == (200, 503)


async def test_a_patient_process_calls_what_is_not_in_it_by_name(alone: Settings) -> None:
    seen: list[str] = []

    async def look(runtime: Runtime) -> None:
        seen.extend(runtime.channel(name).target for name in ("auth", "team"))
        raise LookupError("seen")

    named = alone.model_copy(update={"addresses": {"auth": "127.0.0.1:1, 127.0.0.1:2"}})
    host = Host([usage(Usage().app(), look)], named, version="0", patient=True)

    with pytest.raises(LookupError, match="seen"):
        await host.start()
    assert seen == ["ipv4:127.0.0.1:1,127.0.0.1:2", "team:9000"]


async def test_a_process_that_drains_says_so_and_still_serves(alone: Settings) -> None:
    free = Usage()
    free.free.set()
    draining = alone.model_copy(update={"drain_delay": 1.0})
    host = Host([auth(), usage(free.app())], draining, version="0")
    await host.start()
    stopping = asyncio.create_task(host.stop())

    async def says_so() -> bool:
        return (await ready(host.http_address))[0] == 503

    await eventually(says_so)
    async with httpx.AsyncClient() as http:
        response = await http.get(f"http://{host.http_address}/v1/health")
    said, still = await said_by(host.rpc_address), not stopping.done()
    await stopping

    assert (response.status_code, still) == (200, True)
    assert said == health_pb2.HealthCheckResponse.NOT_SERVING
