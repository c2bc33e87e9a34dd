"""The platform in one process: how soon ready, how large, how fast a read through all of it.

``uv run python -m bench.platform`` prints what it measured and ends with one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform as machine
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

from bench.bare_grpc import bare_rate, kit_rate
from bench.load import HttpConnections, Latencies, at_rate, spread
from bench.tenant import make_tenant
from common.settings import load_settings, service_secret
from fleet.embedded.folder import read_run
from fleet.process import Platform
from mindweave.auth.v1 import auth_pb2, auth_pb2_grpc
from mindweave.project.v1 import project_pb2, project_pb2_grpc

STARTS = 3
ROUNDS = 5
RATE = 50.0
SECONDS = 8.0


def main() -> None:
    print(f"{os.cpu_count()} cores, {machine.platform()}, Python {machine.python_version()}")
    print("layout: one process of mindweave all, embedded PostgreSQL and two Valkeys beside it;")
    print("the load comes from this process on the same cores; load average", os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder)))
    result |= uvloop.run(measure_grpc())
    print(json.dumps(result))


async def measure(folder: Path) -> dict[str, float]:
    """Start, memory and latencies; as the last line names them."""
    ready = []
    for number in range(STARTS):
        running = Platform(folder / f"data-{number}", f"127.0.0.1:{18080 + number}")
        with running:
            ready.append(running.wait_until_ready())
            if number == STARTS - 1:
                resident, shared_once = running.memory()
                print(f"memory when ready: {mb(resident)} MB resident, {mb(shared_once)} MB PSS")
                latencies = await measure_latencies(running)
                resident, shared_once = running.memory()
    again = Platform(folder / "data-0", "127.0.0.1:18080")
    with again:
        second = again.wait_until_ready()
    print(f"ready, empty folder: {spread(ready, ' s')}; with its data there: {second:.2f} s")
    print(f"memory after load:  {mb(resident)} MB resident, {mb(shared_once)} MB PSS")
    return {
        "ready_s": round(statistics.median(ready), 2),
        "rss_mb": mb(resident),
        "pss_mb": mb(shared_once),
        **latencies,
    }


def mb(size: int) -> int:
    return round(size / 2**20)


async def measure_latencies(running: Platform) -> dict[str, float]:
    """GET /projects/{id} through everything, and the same rpc without the gateway, in turns."""
    tenant = make_tenant(running.address, projects=1)
    (project,), token = tenant.projects, tenant.token
    host, port = running.address.removeprefix("http://").split(":")
    head = (
        f"GET /projects/{project} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    connections = HttpConnections(host, int(port))

    async def rest() -> None:
        assert (await connections.get(head.encode()))["id"] == project

    (process,) = running.run()["processes"]
    async with grpc.aio.insecure_channel(process["rpc"]) as channel:
        direct = await _direct(running, channel, project, token)
        seen: dict[str, list[Latencies]] = {"rest": [], "grpc": []}
        for _ in range(ROUNDS):
            seen["rest"].append(await at_rate(RATE, SECONDS, rest))
            seen["grpc"].append(await at_rate(RATE, SECONDS, direct))
    await connections.close()
    for name, rounds in seen.items():
        for latencies in rounds:
            print(f"{name:<5} {RATE:.0f}/s for {SECONDS:.0f} s  {latencies}")
    found = {}
    for q in (0.5, 0.95, 0.99):
        through = [latencies.quantile(q) for latencies in seen["rest"]]
        adds = [
            a.quantile(q) - b.quantile(q) for a, b in zip(seen["rest"], seen["grpc"], strict=True)
        ]
        name = f"p{round(q * 100)}"
        print(f"{name}: rest {spread(through, ' ms')}, the gateway adds {spread(adds, ' ms')}")
        found[f"rest_ms_{name}"] = round(statistics.median(through), 2)
        found[f"gateway_adds_ms_{name}"] = round(statistics.median(adds), 2)
    return found


def facts_of(running: Platform) -> dict[str, Any]:
    """What ``run.json`` says of a platform that is ready."""
    for _ in range(100):
        facts = read_run(running.data)
        if facts is not None:
            return facts
        time.sleep(0.05)
    raise TimeoutError("the platform is ready and has left no run.json")


async def _direct(
    running: Platform, channel: grpc.aio.Channel, project: str, token: str
) -> Callable[[], Awaitable[None]]:
    """Project's own rpc, called as the gateway calls it: with its caller token."""
    settings = load_settings(secret=(running.data / "secret").read_text().strip())
    issued = await auth_pb2_grpc.AuthServiceStub(channel).IssueServiceToken(
        auth_pb2.IssueServiceTokenRequest(
            service="gateway", secret=service_secret(settings, "gateway")
        )
    )
    stub = project_pb2_grpc.ProjectServiceStub(channel)
    request = project_pb2.GetProjectRequest(id=project)
    metadata = (("authorization", f"Bearer {token}"), ("x-mindweave-caller", issued.token))

    async def call() -> None:
        answer = await stub.GetProject(request, timeout=5, metadata=metadata)
        assert answer.project.id == project

    return call


async def measure_grpc() -> dict[str, float]:
    """Unary calls through the interceptors beside bare grpc.aio, both ends in this process."""
    bare, kit = [], []
    for _ in range(ROUNDS):
        bare.append(await bare_rate())
        kit.append(await kit_rate())
    ratio = [k / b for k, b in zip(kit, bare, strict=True)]
    print(f"grpc.aio, both ends in one process, 16 calls at once: bare {spread(bare, '/s')},")
    print(f"through the interceptors {spread(kit, '/s')}, ratio {spread(ratio)}")
    return {
        "grpc_calls_per_s": round(statistics.median(kit)),
        "grpc_bare_calls_per_s": round(statistics.median(bare)),
    }


if __name__ == "__main__":
    sys.exit(main())
