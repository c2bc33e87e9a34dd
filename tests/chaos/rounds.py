"""Rounds of faults: each strikes under load, and is judged once everything is back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from tests.chaos.faults.catalog import FAULTS
from tests.chaos.faults.hitting import Fault, NotHit, NotRun
from tests.chaos.ledger import Findings, NotFresh, held_within, judged
from tests.chaos.scene import GROUPINGS, Hangs, Scene
from tests.e2e.harms import HARMS

_PAUSE = 0.12
Tell = Callable[[str], None]


@dataclass
class Tally:
    """Of all rounds.

    Attributes:
        faults: those that hit and were judged, each once.
        not_run: those that this machine does not permit.
        failures: what else is wrong, in words.
    """

    faults: set[str] = field(default_factory=set)
    not_run: set[str] = field(default_factory=set)
    found: Findings = field(default_factory=Findings)
    failures: list[str] = field(default_factory=list)
    struck: int = 0

    @property
    def clean(self) -> bool:
        return self.found.clean and not self.failures


class Failed(Exception):
    """There is no going on; the tally says why."""


async def run_round(
    scene: Scene, faults: Sequence[tuple[str, str | None]], name: str, tally: Tally, tell: Tell
) -> None:
    """One fault after another, each with what is killed in the middle of it.

    Raises:
        Failed: something does not come back, or differs from the books.
        ExceptionGroup: a client was not answered, or answered wrongly.
    """
    async with scene.sending(name, _PAUSE):
        await _judge(scene, "before the first fault", tally, tell)
        for fault, beside in faults:
            await _strike(scene, fault, beside, tally, tell)
        await _judge_all(scene, tally, tell)


async def _strike(scene: Scene, name: str, beside: str | None, tally: Tally, tell: Tell) -> None:
    tally.struck += 1
    label = f"{tally.struck:>3}. {name}{f' and {beside}' if beside else ''}"
    begun = monotonic()
    scene.gate.listen()
    try:
        evidence = await _hit([FAULTS[one] for one in (name, beside) if one is not None], scene)
        lasted = monotonic() - begun
        back = await scene.whole()
    except NotRun as why:
        tally.not_run.add(name)
        tell(f"{label}: NOT RUN: {why}")
        return
    except Hangs as hanging:
        tally.failures.append(f"{name}: {hanging}")
        tell(f"{label}: HANGS: {hanging}")
        raise Failed from hanging
    hit = not isinstance(evidence, NotHit)
    verdict = "hit" if hit else "DID NOT HIT"
    silence = scene.gate.silence
    tell(
        f"{label}: {verdict} in {lasted:.1f} s: {evidence}; {back};"
        f" no answer to anybody for {silence:.1f} s at most"
    )
    await _judge(scene, name, tally, tell)
    if hit:
        tally.faults.add(name)
    else:
        tally.failures.append(f"{name}: did not hit")


async def _hit(faults: Sequence[Fault], scene: Scene) -> str | NotHit:
    """What shows that all of them hit, or that one did not."""
    try:
        return "; ".join(await asyncio.gather(*(fault(scene) for fault in faults)))
    except NotHit as why:
        return why


async def _judge(scene: Scene, name: str, tally: Tally, tell: Tell) -> None:
    """See that everything is as in the books.

    Raises:
        Failed: it is not, or does not come to be shown.
    """
    begun = monotonic()
    try:
        found = await scene.examine()
    except NotFresh as why:
        tally.failures.append(f"{name}: {why}")
        tell(f"     HANGS: {why}")
        raise Failed from why
    tally.found.add(found)
    doubtful = sum(len(one.books.in_doubt) for one in scene.clients)
    tell(
        f"     {'ok' if found.clean else 'WRONG'}: {scene.acknowledged} acknowledged,"
        f" {doubtful} in doubt; lost {found.lost}, doubled {found.doubled},"
        f" nano-dollars off {found.nano_off} ({monotonic() - begun:.1f} s)"
    )
    for line in found.told():
        tell(f"     - {line}")
    if not found.clean:
        raise Failed


async def _judge_all(scene: Scene, tally: Tally, tell: Tell) -> None:
    """What is judged once a round: repeats, every answer of analytics, and the judge itself."""
    await _judge_load(scene, tally, tell)
    async with scene.gate.shut():
        for one in scene.clients:
            found = await scene.examine_answers(one)
            tally.found.add(found)
            asked = f"{len(GROUPINGS)} groupings of analytics and all sessions"
            tell(f"     {asked}, {len(found.others)} differences")
        noticed = [name for name in HARMS if await _is_noticed(scene, name)]
    tell(f"     the judge notices {len(noticed)} of {len(HARMS)} harms done by hand")
    if len(noticed) < len(HARMS):
        missed = ", ".join(name for name in HARMS if name not in noticed)
        tally.failures.append(f"the judge does not notice {missed}")


async def _judge_load(scene: Scene, tally: Tally, tell: Tell) -> None:
    """What was sent had in it what it must have, and repeats were counted as such."""
    repeats = sum(one.books.repeats for one in scene.clients)
    rebatched = sum(one.books.rebatched for one in scene.clients)
    refused = sum(len(one.books.refused) for one in scene.clients)
    conflicts = sum(one.books.oracle.conflicts for one in scene.clients)
    windows = sum(len(one.books.windows(one.books.acknowledged.keys())) for one in scene.clients)
    tell(
        f"     sent: {scene.retries} requests again, {rebatched} events in other batches;"
        f" {repeats} repeats, {conflicts} with another body; {refused} refused beyond the edges;"
        f" {windows} windows"
    )
    if not (repeats and rebatched and refused and conflicts):
        tally.failures.append("the load lacked repeats, other batches, refusals or conflicts")
    counted = await scene.tables.repeats() - scene.repeats_before
    if counted < repeats:
        tally.failures.append(f"of {repeats} repeats only {counted} were counted as such")


async def _is_noticed(scene: Scene, harm: str) -> bool:
    """Whether the judge sees it in the tables, where it is undone again."""
    one = scene.clients[0]
    async with scene.tables.connected() as connection:
        undone = connection.transaction()
        await undone.start()
        await connection.execute(HARMS[harm], UUID(one.who.org_id))
        there = await held_within(connection, one.who.org_id)
        await undone.rollback()
    return not judged(there, one.books).clean
