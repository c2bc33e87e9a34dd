"""The database, the cache and the broker, stopped, while users and their events go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest

from fleet.embedded import Valkey
from fleet.embedded.daemon import Daemon
from fleet.process import Platform
from tests.common.plain import PLAIN
from tests.e2e.checker import Checker
from tests.e2e.comparison import Grouping, differences
from tests.e2e.faults.conftest import Servers
from tests.e2e.faults.rows import (
    REFUSED,
    USAGE,
    WORKS,
    Row,
    all_refused,
    cast_of,
    get,
    log_in,
    rename,
    send,
)
from tests.e2e.faults.watching import is_refusal, statuses, until, whole
from tests.e2e.own import own_platform
from tests.e2e.processes import frozen
from tests.e2e.raw_rows import connect, raw_rows, row_differences
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

GROUPINGS: tuple[Grouping, ...] = (("all", ("model",)),)


@contextmanager
def killed(server: Daemon) -> Iterator[None]:
    """SIGKILL; at the end of the block it is started again, with the data that it has."""
    process = server.process
    assert process is not None
    process.kill()
    process.wait(timeout=30)
    try:
        yield
    finally:
        server.start()


@contextmanager
def suspended(server: Daemon) -> Iterator[None]:
    """SIGSTOP: connections stay open, and nothing answers on them."""
    assert server.pid is not None
    with frozen([server.pid]):
        yield


Stop = Callable[[Daemon], AbstractContextManager[None]]
STOPS: dict[str, Stop] = {"killed": killed, "frozen": suspended}

# What users see while a server is away.
ROWS = {
    "postgres": [
        Row("auth → postgres", "log in", log_in, REFUSED),
        Row("account → postgres", "read an organization", get("/orgs/{org}"), REFUSED),
        Row("team → postgres", "list members", get("/orgs/{org}/members"), REFUSED),
        Row("project → postgres", "rename a project", rename("/projects/{project}"), REFUSED),
        Row("analytics → postgres", "read usage", get(USAGE), REFUSED),
    ],
    "cache": [
        Row("auth → cache", "log in", log_in, WORKS),
        Row("analytics → cache", "read usage", get(USAGE), WORKS),
        Row("gateway → project", "rename a project", rename("/projects/{project}"), WORKS),
    ],
    "kafka": [
        Row("usage_tracker → kafka", "send an event", send, REFUSED),
        Row("project → kafka", "rename a project", rename("/projects/{project}"), WORKS),
        Row("auth → kafka", "log in", log_in, WORKS),
        Row("analytics → kafka", "read usage", get(USAGE), WORKS),
    ],
}
# Services whose readiness says that a server is away.
TOLD_BY = {
    "postgres": {"auth", "account", "team", "project", "usage_tracker", "analytics"},
    "cache": {"auth", "analytics"},
    "kafka": {"gateway", "auth", "account", "team", "project", "usage_tracker", "analytics"},
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", ROWS)
async def test_readiness_says_so_liveness_does_not_and_all_recovers(
    platform: Platform, servers: Servers, name: str, stop: str
) -> None:
    def away() -> None:
        told = {p["name"] for p in platform.run()["processes"] if p["service"] in TOLD_BY[name]}
        with STOPS[stop](getattr(servers, name)):
            until(lambda: {n for n, s in statuses(platform, "ready").items() if s == 503} == told)
            all_refused(ROWS[name], cast)
            for row in ROWS[name]:
                if row.seen == WORKS:
                    answer = row.send(cast)
                    assert answer.is_success, (row, answer.status_code, answer.text)
            assert set(statuses(platform, "live").values()) == {200}
        until(lambda: whole(platform))
        for row in ROWS[name]:
            until(lambda row=row: row.send(cast).is_success)

    cast = await asyncio.to_thread(cast_of, platform.address)
    sender = await asyncio.to_thread(tenant, platform.address)
    checker = Checker(platform.address, sender)
    async with checker.replaying(seed=1, streams=1):
        await asyncio.to_thread(away)
    await all_is_there(checker, sender, servers.postgres.admin_dsn)


async def all_is_there(checker: Checker, who: Tenant, database_url: str) -> None:
    await checker.finish()
    assert checker.oracle.events
    connection = await connect(database_url)
    assert row_differences(await raw_rows(connection, who.org_id), checker.oracle) == []
    await connection.close()
    found = await asyncio.to_thread(differences, who.client, who.org_id, checker.oracle, GROUPINGS)
    assert found == []


@pytest.fixture(scope="module")
def valkey_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey") / "broker", "password", durable=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def on_valkey(
    valkey_broker: Valkey, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """One process, on a broker that a test may hurt."""
    named = {"REDIS_URL": valkey_broker.url, "REDIS_CACHE_URL": servers.cache.url}
    with own_platform(tmp_path_factory.mktemp("on_valkey") / "data", named) as platform:
        yield platform


@pytest.mark.parametrize("stop", STOPS)
async def test_the_same_holds_for_valkey_as_the_broker(
    on_valkey: Platform, valkey_broker: Valkey, stop: str
) -> None:
    def status(kind: str) -> int:
        url = f"{on_valkey.address}/health/{kind}"
        return httpx.get(url, timeout=15, verify=PLAIN).status_code

    def away() -> None:
        with STOPS[stop](valkey_broker):
            until(lambda: status("ready") == 503)
            until(lambda: is_refusal(send(cast)))
            assert rename("/projects/{project}")(cast).is_success
            assert status("live") == 200
        until(lambda: status("ready") == 200)
        until(lambda: send(cast).is_success)

    cast = await asyncio.to_thread(cast_of, on_valkey.address)
    sender = await asyncio.to_thread(tenant, on_valkey.address)
    checker = Checker(on_valkey.address, sender)
    async with checker.replaying(seed=2, streams=1):
        await asyncio.to_thread(away)
    await all_is_there(checker, sender, on_valkey.run()["database_url"])
