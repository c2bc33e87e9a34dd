"""Unary calls a second: bare grpc.aio, and the same call through the kit's interceptors."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc

from bench.load import rate_of
from common.identity.call import current_call
from common.testing import FakeAccess, a_user, serve
from mindweave.project.v1 import project_pb2 as pb
from mindweave.project.v1 import project_pb2_grpc as pb_grpc

SECONDS = 3.0
CONCURRENCY = 16
ORG = uuid4()


class Projects(pb_grpc.ProjectServiceServicer):
    """Answers one read out of hand; behind the interceptors it checks the permission."""

    def __init__(self, *, guarded: bool) -> None:
        self._guarded = guarded

    async def GetProject(
        self, request: pb.GetProjectRequest, context: Any
    ) -> pb.GetProjectResponse:
        if self._guarded:
            current_call().authorize(ORG)
        return pb.GetProjectResponse(project=pb.Project(id=request.id, name="Bench"))


async def bare_rate() -> float:
    """Client and server of grpc.aio with nothing around them."""
    server = grpc.aio.server()
    pb_grpc.add_ProjectServiceServicer_to_server(Projects(guarded=False), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.ProjectServiceStub(channel)
        request = pb.GetProjectRequest(id=str(uuid4()))

        async def call() -> None:
            await stub.GetProject(request)

        rate = await rate_of(call, SECONDS, CONCURRENCY)
    await server.stop(None)
    return rate


async def kit_rate() -> float:
    """The kit's client and server: tokens, validation, permission, deadline, metrics, traces."""
    principal = a_user()
    access = FakeAccess({principal.subject: {ORG: "owner"}})
    servicer = Projects(guarded=True)
    async with serve([("mindweave.project.v1.ProjectService", servicer)], access=access) as served:
        stub = served.stub(pb_grpc.ProjectServiceStub, served.signer.signed(principal))
        request = pb.GetProjectRequest(id=str(uuid4()))

        async def call() -> None:
            await stub.GetProject(request)

        return await rate_of(call, SECONDS, CONCURRENCY)
