"""Connections that are cut, refused and slow, and answers that get lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.chaos.faults.hitting import shown, until
from tests.chaos.link import Link, Whom, of_processes
from tests.chaos.scene import INGEST, WORKERS, Scene

_LASTS = 4.0
_SLOW = 0.1
_ANSWERS = 6


async def _of(scene: Scene, names: Sequence[str]) -> Whom:
    return of_processes(*[await scene.pid(name) for name in names])


async def _cut(scene: Scene, links: Sequence[Link], names: Sequence[str]) -> str:
    """Reset what there is, and let nobody in for a while."""
    whom = await _of(scene, names)
    await scene.under_load()
    before = [(link.cuts, link.refusals) for link in links]
    try:
        for link in links:
            await link.refuse(whom)
        await asyncio.sleep(_LASTS)
    finally:
        for link in links:
            link.mend()
    cuts = sum(link.cuts - b[0] for link, b in zip(links, before, strict=True))
    refused = sum(link.refusals - b[1] for link, b in zip(links, before, strict=True))
    return shown(cuts and refused, f"{cuts} connections cut, {refused} refused in {_LASTS:.0f} s")


async def _slow(scene: Scene, links: Sequence[Link], names: Sequence[str]) -> str:
    whom = await _of(scene, names)
    await scene.under_load()
    before = sum(link.delays for link in links)
    try:
        for link in links:
            await link.slow(_SLOW, whom)
        await asyncio.sleep(_LASTS)
    finally:
        for link in links:
            link.mend()
    held = sum(link.delays for link in links) - before
    return shown(held, f"{held} pieces of data were held up for {_SLOW:g} s each")


async def cut_worker_from_postgres(scene: Scene) -> str:
    return await _cut(scene, [scene.database], WORKERS)


async def slow_worker_to_postgres(scene: Scene) -> str:
    return await _slow(scene, [scene.database], WORKERS)


async def cut_ingest_from_kafka(scene: Scene) -> str:
    return await _cut(scene, scene.brokers.links, INGEST)


async def slow_ingest_to_kafka(scene: Scene) -> str:
    return await _slow(scene, scene.brokers.links, INGEST)


async def cut_worker_from_kafka(scene: Scene) -> str:
    return await _cut(scene, scene.brokers.links, WORKERS)


async def lose_answers(scene: Scene) -> str:
    """Requests arrive, and their answers do not: what goes again is there already."""
    await scene.under_load()
    repeats, eaten = await scene.tables.repeats(), scene.edge.eaten
    await scene.edge.eat()
    try:
        await until(lambda: scene.edge.eaten >= eaten + _ANSWERS, "answers are there to be lost")
    finally:
        scene.edge.mend()
    await until(lambda: _counts_more(scene, repeats), "the ledger counts the repeats as such")
    more = await scene.tables.repeats() - repeats
    return f"{scene.edge.eaten - eaten} answers were lost, {more} repeats were counted as such"


async def _counts_more(scene: Scene, than: int) -> bool:
    return await scene.tables.repeats() > than
