"""Kafka brokers, PostgreSQL and Valkey: killed and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import redis.asyncio as redis

from tests.chaos.brokers import COUNT
from tests.chaos.faults.hitting import killed, replaced, shown, stopped, until
from tests.chaos.scene import Scene

_PAUSE = 3.0
# What may have been on its way already.
_FEW = 500


async def _kill_brokers(scene: Scene, numbers: Sequence[int]) -> str:
    async def pid_now(name: str) -> int:
        return await asyncio.to_thread(scene.brokers.pid, int(name[-1]) - 1)

    names = [f"broker {n + 1}" for n in numbers]
    return await replaced({name: await pid_now(name) for name in names}, pid_now)


async def _leader(scene: Scene) -> int:
    """A broker that leads a partition of usage.events."""
    leaders = sorted(set((await scene.brokers.leaders()).values()) - {-1})
    return scene.rng.choice(leaders)


async def kill_broker(scene: Scene) -> str:
    leader = await _leader(scene)
    led = sorted(p for p, n in (await scene.brokers.leaders()).items() if n == leader)
    await scene.under_load()
    told = await _kill_brokers(scene, [leader])
    return shown(led, f"{told}, which led the partitions {led}")


async def pause_broker(scene: Scene) -> str:
    leader = await _leader(scene)
    await scene.under_load()
    async with stopped([scene.brokers.pid(leader)]) as state:
        await until(lambda: _leads_none(scene, leader), "other brokers lead its partitions")
    return f"{state}, others lead the partitions of broker {leader + 1}"


async def _leads_none(scene: Scene, broker: int) -> bool:
    leaders = set((await scene.brokers.leaders()).values())
    return bool(leaders) and not leaders & {broker, -1}


async def kill_all_brokers(scene: Scene) -> str:
    await scene.under_load()
    retries = scene.retries
    told = await _kill_brokers(scene, range(COUNT))
    return f"{told}, {scene.retries - retries} requests went again meanwhile"


async def kill_postgres(scene: Scene) -> str:
    await scene.under_load()
    return await killed(scene, ["postgres"])


async def pause_postgres(scene: Scene) -> str:
    await scene.under_load()
    before = await scene.tables.stored([one.who.org_id for one in scene.clients])
    async with stopped([await scene.pid("postgres")]) as state:
        acknowledged = scene.acknowledged
        await asyncio.sleep(_PAUSE)
        silent = not await _answers(scene)
        more = scene.acknowledged - acknowledged
    return shown(
        silent, f"{state}, no answer to a query; {before} rows, {more} events acknowledged"
    )


async def _answers(scene: Scene) -> bool:
    try:
        async with scene.tables.connected(patience=1.0) as connection:
            return bool(await connection.fetchval("SELECT true", timeout=1.0))
    except (TimeoutError, OSError, asyncpg.PostgresError):
        return False


async def kill_valkey(scene: Scene) -> str:
    await scene.under_load()
    return await killed(scene, ["cache"])


async def kill_streams(scene: Scene) -> str:
    await scene.under_load()
    return await killed(scene, ["broker"])


async def pause_streams(scene: Scene) -> str:
    await scene.under_load()
    async with stopped([await scene.pid("broker")]) as state:
        before = scene.acknowledged
        await asyncio.sleep(_PAUSE)
        more = scene.acknowledged - before
    return shown(more < _FEW, f"{state}, {more} events acknowledged meanwhile")


async def pause_valkey(scene: Scene) -> str:
    await scene.under_load()
    cache = redis.from_url(scene.platform.run()["cache_url"], socket_timeout=1.0)
    async with stopped([await scene.pid("cache")]) as state:
        try:
            answered = bool(await cache.ping())
        except (redis.RedisError, OSError, TimeoutError):
            answered = False
        before = scene.acknowledged
        await until(lambda: scene.acknowledged > before, "events are acknowledged without it")
    await cache.aclose()
    return shown(not answered, f"{state}, no answer to PING; events were acknowledged without it")
