"""A loop that is ended between two steps, never inside one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class Worker:
    """Runs one coroutine, which wraps in ``step`` what must not be interrupted by a stop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._inside = False

    def start(
        self, run: Coroutine[Any, Any, None], ended: Callable[[], None] | None = None
    ) -> None:
        """Run it in a task; ``ended`` is called when it is over, in whatever way."""
        self._task = asyncio.create_task(run, name=self._name)
        if ended is not None:
            self._task.add_done_callback(lambda _: ended())

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    @property
    def failure(self) -> BaseException | None:
        """What ended it, where that was an error."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    @contextmanager
    def step(self) -> Iterator[None]:
        """A stop that comes inside of the block takes effect at its end."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
        if self._ending.is_set():
            raise asyncio.CancelledError

    async def pause(self, seconds: float) -> None:
        """Sleep, also inside of a step; a stop ends it."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return
        raise asyncio.CancelledError

    async def end(self, grace: float) -> None:
        """Let the step at hand finish, for ``grace`` seconds at most; then end."""
        self._ending.set()
        if self._task is None:
            return
        if self._inside:
            await asyncio.wait([self._task], timeout=grace)
        await self.cut()

    async def cut(self) -> None:
        """End at once, wherever it is."""
        if self._task is not None:
            await cut(self._task)


async def cut(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended.

    They are cancelled again and again: ``asyncio.wait_for`` of Python 3.11 loses a cancellation
    that comes as its result does.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)
