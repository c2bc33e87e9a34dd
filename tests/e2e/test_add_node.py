"""A further node of Citus under load: nothing is lost, doubled or off."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.database import Connection
from fleet.services import owners
from tests import variants
from tests.common.waiting import eventually
from tests.e2e.checker import Checker
from tests.e2e.comparison import Grouping, differences
from tests.e2e.own import own_platform
from tests.e2e.raw_rows import connect, count_rows, raw_rows, row_differences, window_differences
from tests.e2e.tenant import tenant

pytestmark = pytest.mark.e2e

PATIENCE = 300.0
GROUPINGS: tuple[Grouping, ...] = (
    ("all", ("model",)),
    ("all", ("project_id", "user_id", "status")),
    ("minute", ()),
)


@pytest.fixture
def coordinator() -> str:
    return variants.given()["citus"]


@pytest.fixture
async def further(coordinator: str) -> AsyncIterator[str]:
    """The address of a node that the new databases of the coordinator do not know yet."""
    *others, node = await variants.workers(coordinator)
    assert others, "CITUS_DSN must be of a coordinator with two workers"

    async def drop() -> None:
        for owner in owners():
            await variants.drop_database(coordinator, owner.name)

    await drop()
    for service in variants.SERVICES:
        await variants.make_database("citus", coordinator, service, without=[node])
    yield urlsplit(node).netloc.rpartition("@")[2]
    await drop()


async def shards_on(coordinator: str, service: str, address: str) -> int:
    async with variants.connected(variants.at(coordinator, database=service)) as database:
        found: int = await database.fetchval(
            "SELECT count(*) FROM citus_shards WHERE nodename || ':' || nodeport = $1", address
        )
    return found


async def has_rows(database: Connection, org_id: str) -> bool:
    return await count_rows(database, org_id) > 0


async def test_a_node_takes_its_share_of_the_shards_while_events_come_in_and_sums_are_exact(
    tmp_path: Path, coordinator: str, further: str
) -> None:
    with own_platform(tmp_path / "data", {"DATABASE_URL": coordinator}) as platform:
        who = await asyncio.to_thread(tenant, platform.address)
        checker = Checker(platform.address, who)
        database = await connect(coordinator)
        async with checker.replaying(21, streams=2, size=20, pause=0.2):
            await eventually(lambda: len(checker.oracle.events) > 2000, PATIENCE)
            await eventually(partial(has_rows, database, who.org_id), PATIENCE)
            before = len(checker.oracle.events)
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fleet", "add-node", further),
                f"--data={platform.data}",
                stdout=PIPE,
                stderr=STDOUT,
            )
            told, _ = await command.communicate()
            assert command.returncode == 0, told.decode()
            assert len(checker.oracle.events) > before
        for service in variants.SERVICES:
            assert await shards_on(coordinator, service, further) > 0
        await checker.finish(PATIENCE)
        wrong = row_differences(await raw_rows(database, who.org_id), checker.oracle)
        wrong += await window_differences(database, who.org_id, checker.oracle)
        wrong += await asyncio.to_thread(
            differences, who.client, who.org_id, checker.oracle, GROUPINGS
        )
        await database.close()
        assert wrong == []
