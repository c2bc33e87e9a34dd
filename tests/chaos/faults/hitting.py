"""How faults hit, and what shows that they did."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from tests.chaos.scene import PATIENCE, Hangs, Scene
from tests.common.waiting import eventually

# Does harm, ends it, and says by what it is seen that it hit.
Fault = Callable[[Scene], Awaitable[str]]


class NotHit(Exception):
    """The fault did nothing that could be seen, so that its round proves nothing."""


class NotRun(Exception):
    """This machine does not permit the fault."""


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """As ``eventually``.

    Raises:
        Hangs: it does not come; what is waited for.
    """
    try:
        await eventually(condition, PATIENCE)
    except TimeoutError:
        raise Hangs(f"after {PATIENCE:.0f} s: {what}") from None


def shown(fact: object, text: str) -> str:
    """The text, where the fact holds.

    Raises:
        NotHit: it does not.
    """
    if not fact:
        raise NotHit(f"not so: {text}")
    return text


async def killed(scene: Scene, names: Sequence[str]) -> str:
    """Kill -9 of processes and servers of the platform, in whose place others come."""
    before = {name: await scene.pid(name) for name in names}
    return await replaced(before, scene.pid)


async def replaced(before: Mapping[str, int], pid_now: Callable[[str], Awaitable[int]]) -> str:
    """Kill -9 of what runs, until each of them runs as another process."""
    shown(all(before.values()), f"all of {', '.join(before)} run")
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    async def are_others() -> bool:
        return all([await pid_now(name) not in (0, pid) for name, pid in before.items()])

    await until(are_others, f"others in place of {', '.join(before)}")
    return ", ".join([f"{name} {pid} → {await pid_now(name)}" for name, pid in before.items()])


@asynccontextmanager
async def stopped(pids: Sequence[int]) -> AsyncIterator[str]:
    """SIGSTOP for processes and their children; gives the states that the system then tells.

    Raises:
        NotHit: one of them was not stopped.
    """
    family: list[psutil.Process] = []
    try:
        for pid in pids:
            process = psutil.Process(pid)
            for member in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    member.suspend()
                    family.append(member)
        states = await _settled(family)
        yield shown(
            states and set(states) == {psutil.STATUS_STOPPED},
            f"state T of {len(states)} process{'es' if len(states) > 1 else ''}",
        )
    finally:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.resume()


async def _settled(family: Sequence[psutil.Process]) -> list[str]:
    """The states, once all are stopped or a second has passed."""
    states: list[str] = []
    for _ in range(50):
        states = []
        for member in family:
            with suppress(psutil.NoSuchProcess):
                states.append(member.status())
        if set(states) == {psutil.STATUS_STOPPED}:
            break
        await asyncio.sleep(0.02)
    return states


class Log:
    """What is added to a file from now on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._start = file.stat().st_size if file.exists() else 0

    def has(self, *texts: str) -> bool:
        return any(self.count(text) for text in texts)

    def count(self, text: str) -> int:
        """How often the text has come."""
        if not self._file.exists():
            return 0
        with self._file.open("rb") as file:
            file.seek(self._start)
            return file.read().count(text.encode())
