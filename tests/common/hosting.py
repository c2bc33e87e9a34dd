"""Services for tests of a host, and a host that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.requests import Request
from starlette.responses import Response

from common.background import PartStatus
from common.http.app import RestApp, answer
from common.identity.call import Principal
from common.identity.tokens import public_jwk
from common.lifecycle import Host
from common.service import Parts, Placed, Runtime, Service
from common.settings import Settings
from common.testing import Signer
from mindweave.auth.v1 import auth_pb2, auth_pb2_grpc


class Auth(auth_pb2_grpc.AuthServiceServicer):
    """Gives every service its token."""

    def __init__(self, runtime: Runtime) -> None:
        self._signer = Signer(runtime.clock, runtime.settings.issuer)

    async def issue(
        self, request: auth_pb2.IssueServiceTokenRequest, context: object
    ) -> auth_pb2.IssueServiceTokenResponse:
        principal = self._signer.signed(Principal("service", service=request.service))
        ends = Timestamp()
        ends.FromDatetime(datetime.now(UTC) + timedelta(minutes=5))
        return auth_pb2.IssueServiceTokenResponse(token=principal.token, expires_at=ends)

    async def keys(
        self, request: auth_pb2.GetJwksRequest, context: object
    ) -> auth_pb2.GetJwksResponse:
        jwk = public_jwk(self._signer.kid, self._signer.key.public_key())
        return auth_pb2.GetJwksResponse(keys=[auth_pb2.JsonWebKey(**jwk)])

    IssueServiceToken, GetJwks = issue, keys


class Work:
    """Background work that notes what happens to it."""

    name = "work"

    def __init__(self, noted: list[str], *, ready: bool = True) -> None:
        self._noted = noted
        self.ready = ready
        self.live = True

    async def start(self) -> None:
        self._noted.append("work started")

    async def stop(self) -> None:
        self._noted.append("work stopped")

    def status(self) -> PartStatus:
        return PartStatus(self.ready, "" if self.ready else "has no work", lag=3, live=self.live)


class Usage:
    """Answers one REST route, when it is told to."""

    def __init__(self) -> None:
        self.entered, self.free = asyncio.Event(), asyncio.Event()

    async def health(self, _: Request) -> Response:
        self.entered.set()
        await self.free.wait()
        return answer({"status": "ok"})

    def app(self) -> RestApp:
        return RestApp({"/mindweave.usage_tracker.v1.UsageTrackerService/GetHealth": self.health})


def auth(migrations: Path | None = None, work: Work | None = None) -> Service:
    async def build(runtime: Runtime) -> Parts:
        servicers = [("mindweave.auth.v1.AuthService", Auth(runtime))]
        return Parts(servicers=servicers, tasks=[work] if work else [])

    return Service("auth", build, migrations)


def usage(app: RestApp, seen: Callable[[Runtime], Awaitable[None]] | None = None) -> Service:
    async def build(runtime: Runtime) -> Parts:
        if seen is not None:
            await seen(runtime)
        return Parts(app=app)

    return Service("usage_tracker", build, None)


@asynccontextmanager
async def running(services: Sequence[Service | Placed], settings: Settings) -> AsyncIterator[Host]:
    host = Host(services, settings, version="1.2.3")
    await host.start()
    try:
        yield host
    finally:
        await host.stop()


async def ready(address: str) -> tuple[int, dict[str, Any]]:
    return await page(address, "ready")


async def page(address: str, kind: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient() as http:
        response = await http.get(f"http://{address}/health/{kind}")
    return response.status_code, response.json()
