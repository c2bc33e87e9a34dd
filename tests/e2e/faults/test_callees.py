"""A callee that was killed, and one that is frozen with its connections open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest

from fleet.process import Platform
from tests.e2e.faults.rows import (
    REFUSED,
    ROWS,
    WORKS,
    Cast,
    Row,
    all_refused,
    cast_of,
    get,
    send,
)
from tests.e2e.faults.watching import is_refusal, open_files, resident, together, until, whole
from tests.e2e.processes import frozen, killed, members, metric, pid_of

pytestmark = pytest.mark.e2e

AT_ONCE = 20
# Files and bytes that a process may have more of than before a fault.
FILES, BYTES = 20, 48 * 1024 * 1024

Fault = Callable[[Platform, list[str]], AbstractContextManager[None]]


@contextmanager
def freeze(platform: Platform, names: list[str]) -> Iterator[None]:
    with frozen([pid_of(platform, name) for name in names]):
        yield


FAULTS: dict[str, Fault] = {"killed": killed, "frozen": freeze}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("callee", ROWS)
def test_callers_answer_as_the_table_says_and_recover(
    platform: Platform, callee: str, fault: str
) -> None:
    cast, rows = cast_of(platform.address), ROWS[callee]
    refused = [row for row in rows if row.seen == REFUSED]
    files, memory = open_files(platform), resident(platform)

    with FAULTS[fault](platform, [p["name"] for p in members(platform, callee)]):
        all_refused(rows, cast)
        for row in refused:
            until(lambda row=row: everybody_is_refused(row, cast) and breakers(platform, row))
        for row in rows:
            if row.seen == WORKS:
                answer = row.send(cast)
                assert answer.is_success, (row, answer.status_code, answer.text)

    until(lambda: whole(platform))
    for row in refused:
        until(lambda row=row: row.send(cast).is_success and not breakers(platform, row))
    assert not calls_under_way(platform, callee)
    until(lambda: not grown(files, open_files(platform), FILES))
    assert not grown(memory, resident(platform), BYTES)


def everybody_is_refused(row: Row, cast: Cast) -> bool:
    answers = together(lambda: row.send(cast), AT_ONCE)
    assert all(is_refusal(answer) for answer in answers), row
    return True


def breakers(platform: Platform, row: Row) -> list[str]:
    """The processes of the row's caller that have given up its callee for now."""
    caller, callee = row.edge.split(" → ")
    return [
        process["name"]
        for process in members(platform, caller)
        if process["role"] != "work"
        and metric(process, "mindweave_breaker_state", callee=callee) > 0
    ]


def calls_under_way(platform: Platform, callee: str) -> float:
    """Calls to the callee that no process has an answer to yet."""
    processes = platform.run()["processes"]
    return sum(metric(p, "mindweave_rpc_client_calls", callee=callee) for p in processes)


def grown(before: dict[str, int], now: dict[str, int], by: int) -> dict[str, tuple[int, int]]:
    """Where there is more than before; a process that was started anew has no before."""
    return {name: (before[name], count) for name, count in now.items() if count > before[name] + by}


# Until a call that waits at the frozen one is given up: longer than its twin takes to answer.
TWIN_SECONDS = 5.0
FRONTS = {"gateway": get("/projects/{project}"), "usage_tracker": send}


@pytest.mark.parametrize("service", FRONTS)
def test_the_proxy_tells_that_nobody_is_there_to_answer(platform: Platform, service: str) -> None:
    cast, ask = cast_of(platform.address), FRONTS[service]
    other = next(ask for name, ask in FRONTS.items() if name != service)
    with killed(platform, serving(platform, service)):
        until(lambda: is_refusal(ask(cast)))
        assert other(cast).is_success
    until(lambda: ask(cast).is_success)


@pytest.mark.parametrize("service", FRONTS)
def test_the_proxy_leaves_a_frozen_process_for_its_twin(platform: Platform, service: str) -> None:
    cast, ask = cast_of(platform.address), FRONTS[service]
    cast.owner.timeout = cast.who.client.timeout = TWIN_SECONDS
    with freeze(platform, serving(platform, service)[:1]):
        until(lambda: answers_everybody(lambda: ask(cast)))


def answers_everybody(ask: Callable[[], httpx.Response]) -> bool:
    """False while calls still wait at the frozen process, which the proxy does not know of yet."""
    try:
        return all(answer.is_success for answer in together(ask, AT_ONCE))
    except httpx.ReadTimeout:
        return False


def serving(platform: Platform, service: str) -> list[str]:
    return [p["name"] for p in members(platform, service) if p["role"] != "work"]
