"""How many requests a credential or an address may send."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """``quota`` requests in a window of ``seconds`` that begins with its first request."""

    name: str
    quota: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a quota after a request; ``reset`` counts seconds to the next window."""

    policy: RatePolicy
    allowed: bool
    remaining: int
    reset: float

    def describe(self, headers: MutableHeaders) -> None:
        """Write the rate-limit fields of an answer."""
        policy, reset = self.policy, math.ceil(self.reset)
        headers["RateLimit-Policy"] = f'"{policy.name}";q={policy.quota};w={policy.seconds}'
        headers["RateLimit"] = f'"{policy.name}";r={self.remaining};t={reset}'
        headers["X-RateLimit-Limit"] = str(policy.quota)
        headers["X-RateLimit-Remaining"] = str(self.remaining)
        headers["X-RateLimit-Reset"] = str(reset)


class Limiter:
    """Counts requests by policy and subject, in this process.

    Args:
        capacity: windows kept; past it the one that was opened first is forgotten.
        now: seconds that only grow.
    """

    def __init__(self, capacity: int = 100_000, now: Callable[[], float] = time.monotonic) -> None:
        self._windows: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._capacity, self._now = capacity, now

    def take(self, policy: RatePolicy, subject: str) -> Allowance:
        """Count one request of ``subject``."""
        now, key = self._now(), (policy.name, subject)
        window = self._windows.get(key)
        if window is None or now >= window[0]:
            self._windows.pop(key, None)
            if len(self._windows) >= self._capacity:
                self._windows.popitem(last=False)
            window = self._windows[key] = [now + policy.seconds, 0]
        reset = window[0] - now
        if window[1] >= policy.quota:
            return Allowance(policy, False, 0, reset)
        window[1] += 1
        return Allowance(policy, True, policy.quota - int(window[1]), reset)

    def peek(self, policy: RatePolicy, subject: str) -> Allowance:
        """What is left to ``subject``; nothing is counted."""
        now, window = self._now(), self._windows.get((policy.name, subject))
        if window is None or now >= window[0]:
            return Allowance(policy, True, policy.quota, policy.seconds)
        left = policy.quota - int(window[1])
        return Allowance(policy, left > 0, left, window[0] - now)

    def give_back(self, policy: RatePolicy, subject: str) -> None:
        """Take one request of ``subject`` out of the count again."""
        window = self._windows.get((policy.name, subject))
        if window is not None and window[1] > 0:
            window[1] -= 1
