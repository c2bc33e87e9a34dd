"""Commands whose failure ends the run, and conditions that are waited for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 300.0


def run(*command: str, given: str | None = None, patience: float = 1800, **more: str) -> str:
    """What a command prints; ``more`` is added to its environment.

    Raises:
        SystemExit: it failed, with what it printed at last.
    """
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience,
        env={**os.environ, **more},
    )
    if done.returncode != 0:
        last = "\n".join(f"{done.stdout}{done.stderr}".strip().splitlines()[-20:])
        raise SystemExit(f"{' '.join(command)[:300]} failed ({done.returncode}):\n{last}")
    return done.stdout


def fails(*command: str) -> str:
    """What a command that is to fail prints.

    Raises:
        SystemExit: it succeeded.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    demand(done.returncode != 0, f"{' '.join(command)[:300]} fails")
    return done.stdout + done.stderr


def until(what: str, condition: Callable[[], object], patience: float = PATIENCE) -> float:
    """The seconds until the condition held.

    Raises:
        SystemExit: it did not within ``patience`` seconds.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + patience:
            raise SystemExit(f"not within {patience:.0f} s: {what}")
        time.sleep(0.5)
    return time.monotonic() - begun


def demand(condition: object, what: object) -> None:
    """Go on only where it holds.

    Raises:
        SystemExit: it does not.
    """
    if not condition:
        raise SystemExit(f"it does not hold: {what}")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"── {name}", flush=True)
    begun = time.monotonic()
    yield
    print(f"   {time.monotonic() - begun:.0f} s", flush=True)
