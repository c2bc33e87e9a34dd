"""Background work that is done again and again: sweepers, retention, cleaning."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

from common.background import PartStatus

_logger = logging.getLogger(__name__)


class Periodic:
    """Runs ``step`` at the start and then again ``every`` so often, never twice at a time.

    A step that fails is logged and tried again at its next turn.

    Args:
        name: shown in the status.
        step: does the work; returns how much is left to do, None where nothing can be left.
        every: from the end of one step to the start of the next.
    """

    def __init__(
        self, name: str, step: Callable[[], Awaitable[int | None]], *, every: timedelta
    ) -> None:
        self._name = name
        self._step = step
        self._every = every.total_seconds()
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._status = PartStatus(ready=True)

    @property
    def name(self) -> str:
        return self._name

    async def start(self) -> None:
        self._ending.clear()
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        self._ending.set()
        if self._task is not None:
            await self._task
            self._task = None

    def status(self) -> PartStatus:
        ended = self._task is not None and self._task.done()
        return replace(self._status, ready=False, live=False) if ended else self._status

    async def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._status = PartStatus(ready=True, lag=await self._step())
            except Exception as error:
                _logger.exception("%s failed and will try again", self._name)
                self._status = PartStatus(ready=True, detail=f"failed: {type(error).__name__}")
            try:
                async with asyncio.timeout(self._every):
                    await self._ending.wait()
            except TimeoutError:
                continue
