"""`python -m tests.chaos`: faults under load, and one line of JSON about what they broke."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from time import monotonic

from tests.chaos.books import WrongAnswer
from tests.chaos.faults.catalog import FAULTS
from tests.chaos.rounds import Failed, Tally, run_round
from tests.chaos.scene import Scene, scene
from tests.chaos.sending import NoAnswer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of load and order; else a new one")
    parser.add_argument("--rounds", type=int, default=1, help="each with every fault once")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long at least")
    parser.add_argument("--only", action="append", choices=FAULTS, help="this fault; repeatable")
    parser.add_argument("--keep", type=Path, help="copy logs there where it fails")
    return parser.parse_args()


def tell(line: str) -> None:
    print(line, flush=True)


async def run(given: argparse.Namespace, seed: int, root: Path, tally: Tally) -> None:
    """The rounds; what went wrong is in the tally."""
    names = list(given.only or FAULTS)
    async with scene(root, Random(seed), tell) as found:
        begun, number = monotonic(), 0
        while number < given.rounds or monotonic() - begun < 60 * given.minutes:
            number += 1
            tell(f"round {number}: {len(names)} faults")
            await one_round(found, names, number, seed, tally)
            if not tally.clean:
                break


async def one_round(found: Scene, names: list[str], number: int, seed: int, tally: Tally) -> None:
    try:
        await run_round(found, names, number, seed, tally, tell)
    except* Failed:
        tell("ended: what is wrong stays so")
    except* (NoAnswer, WrongAnswer) as clients:
        for error in clients.exceptions:
            tally.failures.append(f"a client: {error}")
            tell(f"     WRONG: a client: {error}")


def keep(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for log in (*root.glob("**/*.log"), *root.glob("**/*.out")):
        if log.parent.name in ("data", "logs") or log.parent.parent == root or log.parent == root:
            shutil.copy(log, folder / f"{log.parent.name}-{log.name}")


def main() -> None:
    given = arguments()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    tell(f"chaos, seed {seed}")
    tally = Tally()
    root = Path(tempfile.mkdtemp(prefix="mindweave-"))
    begun = monotonic()
    # What libraries and the watch of the brokers say is no part of the verdict.
    logging.basicConfig(filename=root / "harness.log", level=logging.WARNING)
    try:
        asyncio.run(run(given, seed, root, tally))
    finally:
        if given.keep and not tally.clean:
            keep(root, given.keep)
        shutil.rmtree(root, ignore_errors=True)
    for failure in tally.failures:
        tell(f"FAILED: {failure}")
    for name in sorted(tally.not_run):
        tell(f"NOT RUN: {name}")
    tell(
        f"seed {seed}: {len(tally.faults)} different faults hit, {tally.struck} in all,"
        f" in {monotonic() - begun:.0f} s; {'everything is exact' if tally.clean else 'WRONG'}"
    )
    told = {
        "faults": len(tally.faults),
        "lost": tally.found.lost,
        "doubled": tally.found.doubled,
        "nano_dollars_off": tally.found.nano_off,
    }
    tell(json.dumps(told))
    sys.exit(not tally.clean)


if __name__ == "__main__":
    main()
