from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from common.database import bootstrap, migrate
from common.errors import NotReady
from common.events.bus import TopicMismatch
from common.lifecycle import Host
from common.service import Runtime
from common.settings import Settings
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from tests.common.hosting import Usage, Work, auth, page, ready, running, usage
from tests.common.waiting import eventually

pytestmark = pytest.mark.rpc

SCHEMA = "CREATE TABLE things (id integer PRIMARY KEY);"


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    (tmp_path / "0001_things.sql").write_text(SCHEMA)
    return tmp_path


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    await connection.execute("DROP DATABASE IF EXISTS auth WITH (FORCE)")
    await connection.close()


@pytest.fixture
def alone(settings: Settings) -> Settings:
    """Of a process on free ports that waits for a second at most."""
    return settings.model_copy(update={"listen": "127.0.0.1:0", "startup_timeout": 1.0})


async def migrated(settings: Settings, migrations: Path) -> None:
    await bootstrap(settings.database_url or "", "auth", settings)
    await migrate(settings.owner_dsn("auth"), "auth", migrations)


async def test_a_process_tells_each_service_and_part_when_it_is_ready(
    alone: Settings, migrations: Path, admin: object
) -> None:
    await migrated(alone, migrations)
    noted: list[str] = []

    async with running([auth(migrations, Work(noted)), usage(Usage().app())], alone) as host:
        status, report = await ready(host.http_address)
        same = await ready(host.metrics_address)

    assert (status, report["status"]) == (200, "ok")
    assert [s["name"] for s in report["services"]] == ["auth", "usage_tracker"]
    assert {s["version"] for s in report["services"]} == {"1.2.3"}
    parts = {part["name"]: part for part in report["services"][0]["parts"]}
    assert {"database", "broker", "work", "outbox", "housekeeping"} <= parts.keys()
    assert parts["work"] == {"name": "work", "ready": True, "detail": "", "lag": 3}
    assert same[0] == 200
    assert noted == ["work started", "work stopped"]


async def test_grpc_health_and_metrics_are_served(alone: Settings) -> None:
    async with running([auth()], alone) as host:
        async with grpc.aio.insecure_channel(host.rpc_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            said = await health.Check(
                health_pb2.HealthCheckRequest(service="mindweave.auth.v1.AuthService")
            )
        async with httpx.AsyncClient() as http:
            metrics = await http.get(f"http://{host.metrics_address}/metrics")

    assert said.status == health_pb2.HealthCheckResponse.SERVING
    assert metrics.status_code == 200
    assert 'service="auth"' in metrics.text
    assert host.http_address == ""


async def test_metrics_tell_the_version_and_which_part_is_not_ready(
    alone: Settings, migrations: Path, admin: object
) -> None:
    await migrated(alone, migrations)
    work = Work([])

    async with running([auth(migrations, work), usage(Usage().app())], alone) as host:
        before = await metrics(host)
        work.ready = False
        after = await metrics(host, until='mindweave_ready{role="work",service="auth"} 0.0')

    assert 'mindweave_build_info{service="auth",version="1.2.3"} 1.0' in before
    assert 'mindweave_migrations_pending{service="auth"} 0.0' in before
    assert 'mindweave_ready{role="work",service="auth"} 1.0' in before
    for part in ("database", "broker", "work", "outbox", "statistics"):
        assert f'mindweave_part_ready{{part="{part}",service="auth"}} 1.0' in before
    assert 'mindweave_part_ready{part="work",service="auth"} 0.0' in after
    assert 'mindweave_part_ready{part="outbox",service="auth"} 1.0' in after
    assert 'mindweave_ready{role="serve",service="usage_tracker"} 1.0' in after


async def test_metrics_tell_what_a_start_waits_for_and_then_no_more(
    alone: Settings, migrations: Path, admin: object
) -> None:
    await bootstrap(alone.database_url or "", "auth", alone)
    host = Host([auth(migrations)], alone, version="1.2.3", patient=True)
    starting = asyncio.create_task(host.start())
    waits = 'mindweave_part_ready{part="start",service="auth"} 0.0'
    try:
        lacking = await metrics(host, until=waits)
        await migrated(alone, migrations)
        await starting
        ready = await metrics(host)
    finally:
        await host.stop()

    assert 'mindweave_migrations_pending{service="auth"} 0.0' not in lacking
    assert 'mindweave_migrations_pending{service="auth"} 0.0' in ready
    assert 'part="start"' not in ready


async def metrics(host: Host, until: str = "") -> str:
    """What the host shows, once the text is in it."""
    text = ""

    async def shown() -> bool:
        nonlocal text
        if not host.metrics_address:
            return False
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"http://{host.metrics_address}/metrics")
        text = answer.text
        return until in text

    await eventually(shown)
    return text


async def test_a_database_that_was_not_migrated_is_named(
    alone: Settings, migrations: Path, admin: object
) -> None:
    await bootstrap(alone.database_url or "", "auth", alone)
    host = Host([auth(migrations)], alone, version="0")

    with pytest.raises(NotReady, match=r"database of auth: lacks .*0001_things.sql.*migrate"):
        await host.start()


async def test_a_broker_that_is_down_is_named(alone: Settings) -> None:
    down = alone.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    host = Host([auth()], down, version="0")

    with pytest.raises(NotReady, match="the event broker"):
        await host.start()


async def test_without_auth_nothing_starts(alone: Settings) -> None:
    host = Host([usage(Usage().app())], alone, version="0")

    with pytest.raises(NotReady, match="auth"):
        await host.start()


async def test_a_part_that_does_not_get_ready_is_named(alone: Settings) -> None:
    host = Host([auth(work=Work([], ready=False))], alone, version="0")

    with pytest.raises(NotReady, match="auth work: has no work"):
        await host.start()


async def test_a_part_that_fails_later_makes_the_process_unready(alone: Settings) -> None:
    work = Work([])
    async with running([auth(work=work), usage(Usage().app())], alone) as host:
        work.ready = False
        status, report = await ready(host.http_address)

    assert (status, report["status"]) == (503, "unavailable")
    assert [s["ready"] for s in report["services"]] == [False, True]


async def test_a_part_that_only_a_new_process_can_help_ends_liveness_and_no_other_does(
    alone: Settings,
) -> None:
    work = Work([])
    async with running([auth(work=work), usage(Usage().app())], alone) as host:
        work.ready = False
        assert await page(host.http_address, "live") == (200, {"status": "ok"})
        work.live = False
        status, report = await page(host.http_address, "live")
        same = await page(host.metrics_address, "live")
        work.live = True
        assert (await page(host.http_address, "live"))[0] == 200

    assert (status, same[0]) == (503, 503)
    [found] = report["services"]
    assert (found["name"], [p["name"] for p in found["parts"]]) == ("auth", ["work"])
    assert found["parts"][0]["detail"] == "has no work"


async def test_a_process_that_is_stopping_lives(alone: Settings) -> None:
    """Its parts have ended, as they should; nobody is to kill it for that."""
    work, slow = Work([]), Usage()
    host = Host([auth(work=work), usage(slow.app())], alone, version="0")
    await host.start()
    async with httpx.AsyncClient() as http:
        request = asyncio.create_task(http.get(f"http://{host.http_address}/v1/health"))
        await slow.entered.wait()
        stopping = asyncio.create_task(host.stop())
        work.live = False
        assert (await page(host.metrics_address, "live"))[0] == 200
        slow.free.set()
        await request
        await stopping


async def test_a_cache_that_is_down_makes_those_unready_who_use_it_and_nobody_dead(
    alone: Settings,
) -> None:
    async def use(runtime: Runtime) -> None:
        assert runtime.cache

    down = alone.model_copy(update={"cache_url": "redis://127.0.0.1:1"})
    async with running([auth(), usage(Usage().app(), use)], down) as host:
        status, report = await ready(host.http_address)
        live, _ = await page(host.http_address, "live")

    assert (status, live) == (503, 200)
    assert [s["ready"] for s in report["services"]] == [True, False]
    (cache,) = (p for p in report["services"][1]["parts"] if p["name"] == "cache")
    assert cache == {
        "name": "cache",
        "ready": False,
        "detail": "The cache is not available.",
        "lag": None,
    }


async def test_those_who_ask_about_a_frozen_dependency_wait_together_and_liveness_does_not(
    alone: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def silent() -> None:
        asked.append("ping")
        await asyncio.Event().wait()

    async def freeze(runtime: Runtime) -> None:
        monkeypatch.setattr(runtime.bus, "ping", silent)

    async with running([auth(), usage(Usage().app(), freeze)], alone) as host:
        asking = [asyncio.create_task(ready(host.http_address)) for _ in range(10)]
        await eventually(lambda: bool(asked))
        assert (await page(host.http_address, "live"))[0] == 200
        assert not any(one.done() for one in asking)
        answers = await asyncio.gather(*asking)

    assert [status for status, _ in answers] == [503] * 10
    assert "no answer" in repr(answers[0][1]["services"][1])
    assert asked == ["ping"]


async def test_another_number_of_partitions_than_the_stored_one_is_refused(
    alone: Settings,
) -> None:
    async with running([auth()], alone):
        pass
    other = alone.model_copy(update={"partitions": 5})

    with pytest.raises(TopicMismatch, match=r"usage\.events"):
        await Host([auth()], other, version="0").start()


async def test_the_topics_of_usage_keep_records_for_readers_that_have_not_started_yet(
    alone: Settings,
) -> None:
    async with running([auth()], alone), Redis.from_url(alone.broker_url()) as broker:
        for topic, reader in (("usage.events", b"usage_tracker"), ("usage.windows", b"analytics")):
            assert reader in await broker.hkeys(f"mw:{topic}:0:groups")


async def test_an_address_that_is_taken_is_an_error(alone: Settings) -> None:
    services = [auth(), usage(Usage().app())]
    async with running(services, alone) as host:
        taken = alone.model_copy(update={"listen": host.http_address})
        with pytest.raises(OSError, match="in use"):
            await Host(services, taken, version="0").start()


async def test_a_stop_lets_open_requests_end(alone: Settings) -> None:
    noted: list[str] = []
    slow = Usage()
    host = Host([auth(work=Work(noted)), usage(slow.app())], alone, version="0")
    await host.start()
    async with httpx.AsyncClient() as http:
        request = asyncio.create_task(http.get(f"http://{host.http_address}/v1/health"))
        await slow.entered.wait()
        stopping = asyncio.create_task(host.stop())
        status, report = await ready(host.metrics_address)
        noted.append("request answered")
        slow.free.set()
        response = await request
        await stopping
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://{host.http_address}/v1/health")

    assert response.status_code == 200
    assert (status, report["status"]) == (503, "unavailable")
    # Asked of nobody: a database that is slow now must not keep those who ask from going elsewhere.
    assert all([p["detail"] for p in s["parts"]] == ["is ending"] for s in report["services"])
    assert noted == ["work started", "request answered", "work stopped"]


async def test_a_service_calls_only_whom_the_table_names(alone: Settings) -> None:
    seen: list[Runtime] = []

    async def look(runtime: Runtime) -> None:
        seen.append(runtime)
        assert runtime.channel("team") is runtime.channel("team")
        assert isinstance(runtime.stub("team", TeamServiceStub), TeamServiceStub)
        assert await runtime.cache.ping()
        with pytest.raises(LookupError, match="account"):
            runtime.channel("account")

    async with running([auth(), usage(Usage().app(), look)], alone):
        assert seen[0].name == "usage_tracker"
        assert await seen[0].service_token.get()
        principal = await seen[0].verifier.verify(await seen[0].service_token.get())

    assert principal.service == "usage_tracker"
