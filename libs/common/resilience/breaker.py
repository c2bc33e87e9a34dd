"""Whether a callee is worth a call now."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from enum import IntEnum

# Calls that one replica of several takes along when it is killed fail together, and the next ones
# are answered: so long it takes to tell that nobody is left.
QUIET_SECONDS = 0.5
_SPREAD = 0.25


class State(IntEnum):
    """As the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Exception):
    """The callee is not to be called for now."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"for {retry_after:.1f} s")
        self.retry_after = retry_after


class Pass:
    """A call that was let through; ``began`` is the breaker's time."""

    __slots__ = ("began",)

    def __init__(self, began: float) -> None:
        self.began = began


def _spread() -> float:
    return secrets.SystemRandom().uniform(1 - _SPREAD, 1 + _SPREAD)


class Breaker:
    """Opens when calls in a row come to nothing, and closes when one is answered again.

    A failure counts where the callee has answered nobody since that call began. So one address of
    several that is frozen or killed does not open it: it is the channel's to leave it.

    Open, it lets nothing through for ``open_seconds``, spread by a quarter, so that callers do not
    come back together. Then one call goes through as the probe, and the others wait for its end
    outside: an answer closes the breaker, a failure opens it again.

    Args:
        failures: calls in a row without an answer, over half a second at least.
        open_seconds: from a failure to the next probe.
        changed: is told of every change between closed and open.
        now: seconds that only grow.
        spread: factor of each time that it stays open.
    """

    def __init__(
        self,
        *,
        failures: int,
        open_seconds: float,
        changed: Callable[[State], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = _spread,
    ) -> None:
        self._failures = failures
        self._open_seconds = open_seconds
        self._changed = changed
        self._now = now
        self._spread = spread
        self._failed = 0
        self._silent_since = 0.0
        self._answered_at = -math.inf
        self._open_until: float | None = None
        self._probe: Pass | None = None

    @property
    def state(self) -> State:
        if self._open_until is None:
            return State.CLOSED
        if self._probe is not None or self._now() >= self._open_until:
            return State.HALF_OPEN
        return State.OPEN

    def admit(self) -> Pass:
        """Let a call through; ``answered``, ``failed`` or ``undecided`` is told of its end.

        Raises:
            BreakerOpen: not now.
        """
        now = self._now()
        if self._open_until is None:
            return Pass(now)
        if self._probe is not None:
            raise BreakerOpen(self._open_seconds)
        if now < self._open_until:
            raise BreakerOpen(self._open_until - now)
        self._probe = Pass(now)
        return self._probe

    def answered(self) -> None:
        """The callee has answered a call, whatever it said: it is there."""
        self._answered_at = self._now()
        self._failed = 0
        if self._open_until is not None:
            self._open_until = self._probe = None
            self._changed(State.CLOSED)

    def failed(self, call: Pass) -> None:
        """The callee did not answer."""
        if self._open_until is not None:
            if call is self._probe:
                self._open()
            return
        if call.began < self._answered_at:
            return
        if self._failed == 0:
            self._silent_since = call.began
        self._failed += 1
        quiet = self._now() - self._silent_since >= QUIET_SECONDS
        if self._failed >= self._failures and quiet:
            self._open()
            self._changed(State.OPEN)

    def undecided(self, call: Pass) -> None:
        """The call ended without saying anything of the callee; the next one is the probe."""
        if call is self._probe:
            self._probe = None

    def _open(self) -> None:
        self._probe = None
        self._open_until = self._now() + self._open_seconds * self._spread()
