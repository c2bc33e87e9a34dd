"""`python -m tests.chaos`: faults under load, and one line of JSON about what they broke."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import monotonic

from fleet.surroundings import BROKERS, KAFKA
from tests.chaos.books import WrongAnswer
from tests.chaos.faults.catalog import FAULTS, beside, short_round, whole_round
from tests.chaos.ledger import NotFresh
from tests.chaos.rounds import Failed, Tally, run_round
from tests.chaos.scene import Hangs, Scene, scene
from tests.chaos.sending import NoAnswer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of load and order; else a new one")
    parser.add_argument("--broker", choices=BROKERS, default=KAFKA)
    parser.add_argument("--rounds", type=int, help="so many with every fault; else a short one")
    parser.add_argument("--minutes", type=float, help="such rounds, for so long at least")
    parser.add_argument("--only", action="append", choices=FAULTS, help="this fault; repeatable")
    parser.add_argument("--keep", type=Path, help="copy logs there where it fails")
    return parser.parse_args()


def tell(line: str) -> None:
    print(line, flush=True)


async def run(given: argparse.Namespace, seed: int, root: Path, tally: Tally) -> None:
    """The rounds; what went wrong is in the tally."""
    rounds, seconds = given.rounds or 1, 60 * (given.minutes or 0.0)
    async with scene(root, given.broker, Random(seed), tell) as found:
        begun, number = monotonic(), 0
        while tally.clean and (number < rounds or monotonic() - begun < seconds):
            number += 1
            name = f"{seed}:{number}"
            faults = faults_of(given, number, Random(name))
            tell(f"round {number}: {len(faults)} faults")
            await one_round(found, faults, name, tally)


def faults_of(given: argparse.Namespace, number: int, rng: Random) -> list[tuple[str, str | None]]:
    """Of a round; from the second one on others are killed in the middle of them."""
    short = given.rounds is None and given.minutes is None
    names = given.only or (short_round if short else whole_round)(given.broker, rng)
    return [(name, beside(name, given.broker, rng) if number > 1 else None) for name in names]


async def one_round(
    found: Scene, faults: Sequence[tuple[str, str | None]], name: str, tally: Tally
) -> None:
    try:
        await run_round(found, faults, name, tally, tell)
    except* Failed:
        tell("ended: what is wrong stays so")
    except* (NoAnswer, WrongAnswer, NotFresh, Hangs) as group:
        for error in group.exceptions:
            tally.failures.append(f"{type(error).__name__}: {error}")
            tell(f"     WRONG: {tally.failures[-1]}")


def keep(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for log in (*root.glob("**/*.log"), *root.glob("**/*.out")):
        if log.parent.name in ("data", "logs") or log.parent.parent == root or log.parent == root:
            shutil.copy(log, folder / f"{log.parent.name}-{log.name}")


def report(seed: int, tally: Tally, seconds: float, *, finished: bool) -> bool:
    """Whether all is well; the last line that it prints is JSON."""
    well = finished and tally.clean
    for failure in tally.failures:
        tell(f"FAILED: {failure}")
    for name in sorted(tally.not_run):
        tell(f"NOT RUN: {name}")
    tell(
        f"seed {seed}: {len(tally.faults)} different faults hit, {tally.struck} in all,"
        f" in {seconds:.0f} s; {'everything is exact' if well else 'WRONG'}"
    )
    told = {
        "faults": len(tally.faults),
        "lost": tally.found.lost,
        "doubled": tally.found.doubled,
        "nano_dollars_off": tally.found.nano_off,
    }
    tell(json.dumps(told))
    return well


def main() -> None:
    given = arguments()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    tell(f"chaos, seed {seed}")
    tally, begun, finished = Tally(), monotonic(), False
    # Else brokers, a platform and mounts would stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="mindweave-"))
    # What libraries and the watch of the brokers say is no part of the verdict.
    logging.basicConfig(filename=root / "harness.log", level=logging.WARNING)
    try:
        asyncio.run(run(given, seed, root, tally))
        finished = True
    finally:
        well = report(seed, tally, monotonic() - begun, finished=finished)
        if given.keep and not well:
            keep(root, given.keep)
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(not well)


if __name__ == "__main__":
    main()
