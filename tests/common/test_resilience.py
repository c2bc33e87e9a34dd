"""When a callee is given up, when it is tried again, and how many calls it may have."""

from __future__ import annotations

import pytest

from common.errors import Unavailable
from common.http.edge import REQUEST_SECONDS
from common.resilience import Breaker, BreakerOpen, Guard, Outcome, State
from common.settings import Resilience, SettingsError, load_settings
from common.telemetry import Telemetry
from common.testing import silent_telemetry
from tests.common.logs import capture_logs

pytestmark = pytest.mark.unit

FAILURES, OPEN = 3, 2.0


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def breaker(seconds: Seconds) -> Breaker:
    return Breaker(failures=FAILURES, open_seconds=OPEN, now=seconds, spread=lambda: 1.0)


def fail(breaker: Breaker, seconds: Seconds, times: int = FAILURES, lasting: float = 1.0) -> None:
    for _ in range(times):
        call = breaker.admit()
        seconds.now += lasting
        breaker.failed(call)


def state_of(breaker: Breaker | Guard) -> State:
    return breaker.state


def opened(breaker: Breaker, seconds: Seconds) -> None:
    fail(breaker, seconds)
    assert state_of(breaker) is State.OPEN


def test_failures_in_a_row_open_it_and_every_call_is_refused_for_a_while(
    breaker: Breaker, seconds: Seconds
) -> None:
    fail(breaker, seconds, FAILURES - 1)
    assert state_of(breaker) is State.CLOSED
    fail(breaker, seconds, 1)
    assert state_of(breaker) is State.OPEN
    seconds.now += 0.5
    with pytest.raises(BreakerOpen) as refused:
        breaker.admit()
    assert refused.value.retry_after == OPEN - 0.5


def test_an_answer_between_failures_keeps_it_closed(breaker: Breaker, seconds: Seconds) -> None:
    for _ in range(5):
        fail(breaker, seconds, FAILURES - 1)
        breaker.admit()
        breaker.answered()
    assert state_of(breaker) is State.CLOSED


def test_one_replica_that_takes_its_calls_along_does_not_open_it(
    breaker: Breaker, seconds: Seconds
) -> None:
    """Calls to a frozen address end long after those to the other one, which began with them."""
    lost = [breaker.admit() for _ in range(10)]
    seconds.now += 0.1
    breaker.answered()
    seconds.now += 5
    for call in lost:
        breaker.failed(call)
    assert state_of(breaker) is State.CLOSED
    fail(breaker, seconds, FAILURES - 1)
    assert state_of(breaker) is State.CLOSED


def test_a_burst_of_failures_opens_it_only_when_nothing_succeeds_for_half_a_second(
    breaker: Breaker, seconds: Seconds
) -> None:
    fail(breaker, seconds, 20, lasting=0.02)
    assert state_of(breaker) is State.CLOSED
    seconds.now += 0.1
    fail(breaker, seconds, 1)
    assert state_of(breaker) is State.OPEN


def test_half_open_one_call_goes_through_and_its_answer_closes(
    breaker: Breaker, seconds: Seconds
) -> None:
    opened(breaker, seconds)
    seconds.now += OPEN
    assert state_of(breaker) is State.HALF_OPEN
    breaker.admit()
    for _ in range(3):
        with pytest.raises(BreakerOpen) as refused:
            breaker.admit()
        assert refused.value.retry_after > 0
    breaker.answered()
    assert state_of(breaker) is State.CLOSED
    assert breaker.admit() is not breaker.admit()


def test_a_probe_that_fails_opens_it_again_at_once(breaker: Breaker, seconds: Seconds) -> None:
    opened(breaker, seconds)
    seconds.now += OPEN
    breaker.failed(breaker.admit())
    assert state_of(breaker) is State.OPEN
    with pytest.raises(BreakerOpen) as refused:
        breaker.admit()
    assert refused.value.retry_after == OPEN


def test_a_probe_that_was_given_up_lets_the_next_one_through(
    breaker: Breaker, seconds: Seconds
) -> None:
    opened(breaker, seconds)
    seconds.now += OPEN
    breaker.undecided(breaker.admit())
    assert state_of(breaker) is State.HALF_OPEN
    breaker.admit()
    with pytest.raises(BreakerOpen):
        breaker.admit()


def test_what_began_before_it_opened_neither_probes_nor_prolongs(
    breaker: Breaker, seconds: Seconds
) -> None:
    early = breaker.admit()
    opened(breaker, seconds)
    seconds.now += OPEN - 0.1
    breaker.failed(early)
    breaker.undecided(early)
    seconds.now += 0.1
    breaker.admit()
    breaker.failed(early)
    assert state_of(breaker) is State.HALF_OPEN


def test_a_late_answer_closes_it_too(breaker: Breaker, seconds: Seconds) -> None:
    breaker.admit()
    opened(breaker, seconds)
    breaker.answered()
    seconds.now += 1
    assert state_of(breaker) is State.CLOSED
    fail(breaker, seconds, FAILURES - 1)
    assert state_of(breaker) is State.CLOSED


def test_callers_do_not_come_back_together(seconds: Seconds) -> None:
    waits = set()
    for _ in range(20):
        breaker = Breaker(failures=1, open_seconds=OPEN, now=seconds)
        fail(breaker, seconds, 1)
        with pytest.raises(BreakerOpen) as refused:
            breaker.admit()
        waits.add(refused.value.retry_after)
    assert len(waits) > 1
    assert all(0.7 * OPEN < wait < 1.3 * OPEN for wait in waits)


def test_a_request_at_the_edge_outlasts_every_call_that_is_made_for_it() -> None:
    """Else its user would be cut off, instead of being told what is away."""
    longest = load_settings(secret="x" * 40, rpc_timeout=20.0)
    assert longest.rpc_timeout < REQUEST_SECONDS
    with pytest.raises(SettingsError, match="RPC_TIMEOUT"):
        load_settings(secret="x" * 40, rpc_timeout=REQUEST_SECONDS)


@pytest.fixture
def telemetry() -> Telemetry:
    return silent_telemetry("account")


@pytest.fixture
def guard(telemetry: Telemetry, seconds: Seconds) -> Guard:
    options = Resilience(breaker_failures=FAILURES, breaker_open_seconds=OPEN, bulkhead_calls=2)
    return Guard("team", options, telemetry, seconds)


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    named = {"service": "account", "callee": "team", **labels}
    return telemetry.metrics.registry.get_sample_value(name, named)


def break_off(guard: Guard, seconds: Seconds) -> None:
    for _ in range(FAILURES):
        call = guard.enter()
        seconds.now += 1
        guard.leave(call, Outcome.FAILED)


def test_a_refusal_says_when_to_come_back_and_the_metrics_tell_of_it(
    guard: Guard, telemetry: Telemetry, seconds: Seconds
) -> None:
    assert sample(telemetry, "mindweave_breaker_state") == State.CLOSED
    with capture_logs() as logs:
        break_off(guard, seconds)
        with pytest.raises(Unavailable) as refused:
            guard.enter()
        assert sample(telemetry, "mindweave_breaker_state") == State.OPEN
        seconds.now += 2 * OPEN
        guard.leave(guard.enter(), Outcome.ANSWERED)
    assert (refused.value.status, refused.value.code) == (503, "unavailable")
    assert refused.value.retry_after
    assert sample(telemetry, "mindweave_breaker_state") == State.CLOSED
    assert sample(telemetry, "mindweave_rpc_client_refused_total", reason="breaker") == 1
    assert [log["event"] for log in logs] == [
        "a callee is given up for now",
        "a callee answers again",
    ]


def test_calls_beyond_the_bulkhead_are_refused_at_once(guard: Guard, telemetry: Telemetry) -> None:
    inside = [guard.enter(), guard.enter()]
    assert sample(telemetry, "mindweave_rpc_client_calls") == 2
    with pytest.raises(Unavailable) as refused:
        guard.enter()
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1)
    assert sample(telemetry, "mindweave_rpc_client_refused_total", reason="overloaded") == 1
    guard.leave(inside[0], Outcome.UNDECIDED)
    guard.leave(guard.enter(), Outcome.ANSWERED)
    guard.leave(inside[1], Outcome.ANSWERED)
    assert sample(telemetry, "mindweave_rpc_client_calls") == 0


def test_a_refused_call_takes_no_place(
    guard: Guard, telemetry: Telemetry, seconds: Seconds
) -> None:
    break_off(guard, seconds)
    for _ in range(5):
        with pytest.raises(Unavailable):
            guard.enter()
    assert sample(telemetry, "mindweave_rpc_client_calls") == 0
    seconds.now += 2 * OPEN
    probe = guard.enter()
    guard.leave(probe, Outcome.UNDECIDED)
    guard.leave(guard.enter(), Outcome.ANSWERED)
    assert state_of(guard) is State.CLOSED
