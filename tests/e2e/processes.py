"""The processes of a platform that runs as many: found by name, asked, frozen, killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from fleet.process import Platform
from tests.common.plain import PLAIN


def pid_of(platform: Platform, name: str) -> int:
    """Of a process or server by its name; 0 where it does not run now."""
    try:
        pid = platform.pid(name)
    except LookupError:
        return 0
    return pid if psutil.pid_exists(pid) else 0


def members(platform: Platform, service: str, role: str | None = None) -> list[dict[str, Any]]:
    """The processes of a service, as ``run.json`` lists them, in one role where it is given."""
    return [
        process
        for process in platform.run()["processes"]
        if process["service"] == service and role in (None, process["role"])
    ]


def member(platform: Platform, name: str) -> dict[str, Any]:
    (found,) = (p for p in platform.run()["processes"] if p["name"] == name)
    return found


def asked(process: dict[str, Any], path: str) -> httpx.Response:
    """What a process answers at its own address."""
    return httpx.get(f"http://{process['metrics']}{path}", timeout=5, verify=PLAIN)


def health(process: dict[str, Any], kind: str) -> int:
    """The status of a process's own ``/health/live`` or ``/health/ready``; 0 without an answer."""
    try:
        return asked(process, f"/health/{kind}").status_code
    except httpx.TransportError:
        return 0


def report(process: dict[str, Any]) -> str:
    """What a process says of its parts; nothing where it does not answer."""
    try:
        return asked(process, "/health/ready").text
    except httpx.TransportError:
        return ""


def all_are(platform: Platform, kind: str, status: int = 200) -> bool:
    """Whether every process says so of itself."""
    return all(health(p, kind) == status for p in platform.run()["processes"])


def metric(process: dict[str, Any], name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry the labels."""
    told = asked(process, "/metrics").text.splitlines()
    lines = "\n".join(line for line in told if line.startswith(name))
    return sum(
        sample.value
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """SIGSTOP for the processes and their children, whose connections stay open."""
    stopped: list[psutil.Process] = []
    try:
        for pid in pids:
            process = psutil.Process(pid)
            process.suspend()
            stopped.append(process)
            for child in process.children(recursive=True):
                child.suspend()
                stopped.append(child)
        yield
    finally:
        for process in stopped:
            if process.is_running():
                process.resume()


@contextmanager
def killed(platform: Platform, names: Iterable[str]) -> Iterator[None]:
    """SIGKILL, and no new start before the end of the block."""
    names = list(names)
    for name in names:
        os.kill(platform.pid(name), signal.SIGKILL)
    for name in names:
        platform.hold(name)
    try:
        yield
    finally:
        for name in names:
            platform.release(name)
