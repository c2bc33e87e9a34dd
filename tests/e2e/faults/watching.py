"""Looking at a platform of many processes from beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from fleet.process import Platform
from tests.common.plain import PLAIN
from tests.e2e.processes import health, pid_of

PATIENCE = 120.0
# Until a client stops to wait for an answer; whoever takes longer hangs.
ANSWER_SECONDS = 15.0
# What a problem says is away: a service, its database, the broker.
AWAY = ("unavailable", "database_unavailable", "bus_unavailable")


def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds.

    Raises:
        AssertionError: it never did.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def statuses(platform: Platform, kind: str) -> dict[str, int]:
    """What each process's own ``/health/live`` or ``/health/ready`` answers, by its name."""
    processes = platform.run()["processes"]
    with ThreadPoolExecutor(len(processes)) as pool:
        return dict(
            zip(
                [process["name"] for process in processes],
                pool.map(lambda process: health(process, kind), processes),
                strict=True,
            )
        )


def whole(platform: Platform) -> bool:
    """Whether every process and the public address say that they are ready."""
    edge = httpx.get(f"{platform.address}/health/ready", timeout=ANSWER_SECONDS, verify=PLAIN)
    return edge.status_code == 200 and set(statuses(platform, "ready").values()) == {200}


def is_refusal(answer: httpx.Response) -> bool:
    """Whether it says what a user sees of a part that is away; every other refusal is wrong."""
    if answer.status_code != 503:
        return False
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert int(answer.headers["retry-after"]) >= 1
    problem = answer.json()
    assert problem["status"] == 503
    assert problem["code"] in AWAY, answer.text
    return True


def open_files(platform: Platform) -> dict[str, int]:
    """Open files of each process, its connections among them."""
    found: dict[str, int] = {}
    for process in platform.run()["processes"]:
        pid = pid_of(platform, process["name"])
        found[process["name"]] = psutil.Process(pid).num_fds()
    return found


def resident(platform: Platform) -> dict[str, int]:
    """Resident bytes of each process."""
    return {
        process["name"]: psutil.Process(pid_of(platform, process["name"])).memory_info().rss
        for process in platform.run()["processes"]
    }


def together(send: Callable[[], httpx.Response], times: int) -> list[httpx.Response]:
    """The answers to the same request, sent so many times at once."""
    with ThreadPoolExecutor(times) as pool:
        return [done.result() for done in [pool.submit(send) for _ in range(times)]]
