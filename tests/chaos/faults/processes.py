"""Ingest, workers, and the platform as a whole: killed, stopped, taken in and out."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import psutil

from tests.chaos.faults.hitting import killed, replaced, shown, stopped, until
from tests.chaos.scene import INGEST, WORKERS, Scene
from tests.e2e.own import START_PATIENCE
from tests.e2e.processes import health, member

_TURNS = 4
_ENOUGH_EPOCHS = 6
_MID_BATCH_TRIES = 40


async def kill_ingest(scene: Scene) -> str:
    await scene.under_load()
    return await killed(scene, [scene.rng.choice(INGEST)])


async def pause_ingest(scene: Scene) -> str:
    name = scene.rng.choice(INGEST)
    pid = await scene.pid(name)
    await scene.under_load()
    async with stopped([pid]) as state:
        process = await asyncio.to_thread(member, scene.platform, name)
        silent = await asyncio.to_thread(health, process, "live") == 0
        before = scene.acknowledged
        await until(lambda: scene.acknowledged > before, "the other one acknowledges events")
    return shown(silent, f"{state}, {name} did not answer, its twin acknowledged events")


async def kill_worker(scene: Scene) -> str:
    epochs = await scene.tables.epochs()
    await scene.under_load()
    told = await killed(scene, [scene.rng.choice(WORKERS)])
    await until(lambda: _advanced(scene, epochs + 1), "its partitions are taken")
    return f"{told}, {await scene.tables.epochs() - epochs} epochs began"


async def _advanced(scene: Scene, epochs: int) -> bool:
    return await scene.tables.epochs() >= epochs


async def pause_worker(scene: Scene) -> str:
    """Past its lease: others take its partitions, and it wakes as a zombie."""
    name = scene.rng.choice(WORKERS)
    pid = await scene.pid(name)
    epochs = await scene.tables.epochs()
    await scene.under_load()
    batch = "no batch in hand"
    for _ in range(_MID_BATCH_TRIES):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.15)
        if await scene.tables.a_batch_waits():
            batch = "a batch in hand that it could still commit"
            break
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(scene.rng.uniform(0.0, 0.1))
    async with stopped([pid]) as state:
        await until(lambda: scene.tables.shared(1), "another worker takes all partitions")
        taken = await scene.tables.epochs() - epochs
    return shown(taken > 0, f"{state} with {batch}, {taken} epochs began, then it woke")


async def rebalance_storm(scene: Scene) -> str:
    """Workers go in order, one upon the other: each is called back before its twin has all."""
    epochs = await scene.tables.epochs()
    for turn in range(_TURNS):
        name, before = WORKERS[turn % 2], await scene.tables.epochs()
        await asyncio.to_thread(scene.platform.hold, name)
        await asyncio.to_thread(scene.platform.release, name)
        await until(partial(_advanced, scene, before + 1), "its twin takes partitions")
    await until(lambda: scene.tables.shared(2), "both workers have their share")
    begun = await scene.tables.epochs() - epochs
    return shown(
        begun >= _ENOUGH_EPOCHS, f"{_TURNS} times a worker went and came, {begun} epochs began"
    )


async def kill_everything(scene: Scene) -> str:
    """The whole platform with its servers, and all brokers; then it is started again."""
    await scene.under_load()
    family = await asyncio.to_thread(scene.platform.processes)
    brokers = {str(n): scene.brokers.pid(n) for n in range(len(scene.brokers.brokers))}

    async def broker_now(number: str) -> int:
        return await asyncio.to_thread(scene.brokers.pid, int(number))

    await asyncio.to_thread(scene.platform.kill_everything)
    gone, _ = await asyncio.to_thread(psutil.wait_procs, family, 10.0)
    await replaced(brokers, broker_now)
    await asyncio.to_thread(scene.platform.start)
    await asyncio.to_thread(scene.platform.wait_until_ready, START_PATIENCE)
    told = f"{len(gone)} of {len(family)} processes and {len(brokers)} brokers were killed"
    return shown(len(gone) == len(family), f"{told}, and the platform was started again")
