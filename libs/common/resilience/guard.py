"""What every call to one callee passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from common.errors import Unavailable
from common.resilience.breaker import Breaker, BreakerOpen, Pass, State
from common.settings import Resilience
from common.telemetry import Telemetry

OVERLOADED = "overloaded"


class Outcome(Enum):
    """What the end of a call says of the callee."""

    ANSWERED = "answered"
    FAILED = "failed"
    UNDECIDED = "undecided"


class Guard:
    """The breaker and the bulkhead in front of one callee, with their metrics.

    The bulkhead bounds the calls that are open at once. None waits for a place: a callee that is
    slow would else fill its callers with what waits for it.

    Args:
        callee: the service's name.
        options: when it opens, and how many calls fit.
        telemetry: of the calling service.
        now: seconds that only grow.
    """

    def __init__(
        self,
        callee: str,
        options: Resilience,
        telemetry: Telemetry,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callee = callee
        self._log = telemetry.log
        self._calls = options.bulkhead_calls
        self._open = 0
        self._breaker = Breaker(
            failures=options.breaker_failures,
            open_seconds=options.breaker_open_seconds,
            changed=self._tell,
            now=now,
        )
        state = telemetry.gauge(
            "mindweave_breaker_state",
            "Whether a callee is called: 0 closed, 1 half-open, 2 open.",
            ["callee"],
        )
        state.of(callee=callee).set_function(lambda: self._breaker.state)
        calls = telemetry.gauge(
            "mindweave_rpc_client_calls", "Calls to a callee that are open now.", ["callee"]
        )
        calls.of(callee=callee).set_function(lambda: self._open)
        refused = telemetry.counter(
            "mindweave_rpc_client_refused_total",
            "Calls that were not made, by reason: its breaker was open, or too many were open.",
            ["callee", "reason"],
        )
        self._by_breaker = refused.of(callee=callee, reason="breaker")
        self._by_bulkhead = refused.of(callee=callee, reason=OVERLOADED)

    @property
    def state(self) -> State:
        """The breaker's."""
        return self._breaker.state

    def enter(self) -> Pass:
        """Begin a call; ``leave`` ends it.

        Raises:
            Unavailable: the callee is not to be called now.
        """
        if self._open >= self._calls:
            self._by_bulkhead.inc()
            raise Unavailable(
                "A part that is needed has too much to do.", code=OVERLOADED, retry_after=1
            )
        try:
            call = self._breaker.admit()
        except BreakerOpen as refused:
            self._by_breaker.inc()
            raise Unavailable(
                "A part that is needed cannot be reached now.", retry_after=refused.retry_after
            ) from None
        self._open += 1
        return call

    def leave(self, call: Pass, outcome: Outcome) -> None:
        """End a call."""
        self._open -= 1
        if outcome is Outcome.ANSWERED:
            self._breaker.answered()
        elif outcome is Outcome.FAILED:
            self._breaker.failed(call)
        else:
            self._breaker.undecided(call)

    def _tell(self, state: State) -> None:
        if state is State.OPEN:
            self._log.warning("a callee is given up for now", callee=self._callee)
        else:
            self._log.info("a callee answers again", callee=self._callee)
