"""Answers of others that hold for seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from common.errors import DeadlineExceeded, MindWeaveError, Unavailable
from common.renewal import AHEAD, not_needed_yet

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Known(Generic[V]):
    value: V
    since: float


class Noted(Generic[K]):
    """Keys that were noted within so many seconds, the latest ``capacity`` of them."""

    def __init__(self, *, seconds: float, now: Callable[[], float], capacity: int = 50_000) -> None:
        self._seconds, self._now, self._capacity = seconds, now, capacity
        self._since: OrderedDict[K, float] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        since = self._since.get(key)
        return since is not None and self._now() - since < self._seconds

    def add(self, key: K) -> None:
        self._since.pop(key, None)
        if len(self._since) >= self._capacity:
            self._since.popitem(last=False)
        self._since[key] = self._now()


class FreshCache(Generic[K, V]):
    """Answers that hold for seconds, and longer while the one who gives them is down.

    One look-up at a time is made for a key; an error is never kept. An answer in use is asked for
    again before its time is over, so that nobody waits for it.

    Args:
        fresh: seconds in which an answer is used without asking.
        stale: seconds in which it still stands when asking fails because the other side is down.
        now: seconds that only grow.
        capacity: answers kept.
    """

    def __init__(
        self, *, fresh: float, stale: float, now: Callable[[], float], capacity: int = 50_000
    ) -> None:
        self._fresh, self._stale, self._now, self._capacity = fresh, stale, now, capacity
        self._known: OrderedDict[K, _Known[V]] = OrderedDict()
        self._asking: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """The answer for ``key``.

        Raises:
            MindWeaveError: what ``ask`` raises, where no kept answer may stand in.
        """
        known = self._known.get(key)
        age = self._now() - known.since if known is not None else self._fresh
        if known is not None and age < self._fresh:
            if age >= self._fresh * AHEAD:
                self._asked(key, ask).add_done_callback(not_needed_yet)
            return known.value
        try:
            return await asyncio.shield(self._asked(key, ask))
        except (Unavailable, DeadlineExceeded):
            known = self._known.get(key)
            if known is not None and self._now() - known.since < self._stale:
                return known.value
            raise

    def knows(self, key: K) -> bool:
        """Whether there is an answer for ``key``, however old."""
        return key in self._known

    def forget(self, key: K) -> None:
        """Forget the answer for ``key``, also one that is on its way."""
        self._known.pop(key, None)
        self._asking.pop(key, None)

    def forget_values(self, matches: Callable[[V], bool]) -> None:
        """Forget every answer that matches; none that is on its way is kept."""
        for key in [k for k, known in self._known.items() if matches(known.value)]:
            del self._known[key]
        self._asking.clear()

    def _asked(self, key: K, ask: Callable[[], Awaitable[V]]) -> asyncio.Task[V]:
        task = self._asking.get(key)
        if task is None:
            # Nothing of the request that happens to ask (its user, its deadline) goes with it.
            task = self._asking[key] = asyncio.create_task(self._ask(key, ask), context=Context())
        return task

    async def _ask(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        began, me = self._now(), asyncio.current_task()
        try:
            value = await ask()
        except (Unavailable, DeadlineExceeded):
            raise
        except MindWeaveError:
            self._known.pop(key, None)
            raise
        else:
            if self._asking.get(key) is me:
                self._known.pop(key, None)
                if len(self._known) >= self._capacity:
                    self._known.popitem(last=False)
                self._known[key] = _Known(value, began)
            return value
        finally:
            if self._asking.get(key) is me:
                del self._asking[key]
