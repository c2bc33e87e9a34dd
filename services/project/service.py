"""Composition root of project."""

from __future__ import annotations

from pathlib import Path

from common.events.consumer import EventConsumer
from common.service import Parts, Runtime, Service
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from services.project.actions import KeyActions, ProjectActions
from services.project.consumer import handlers
from services.project.rpc import ProjectServicer


async def build(runtime: Runtime) -> Parts:
    database = await runtime.database()
    projects = ProjectActions(database, runtime.clock)
    keys = KeyActions(database, runtime.stub("auth", AuthServiceStub), projects)
    return Parts(
        servicers=[("mindweave.project.v1.ProjectService", ProjectServicer(projects, keys))],
        tasks=[EventConsumer(bus=runtime.bus, db=database, handlers=handlers(projects))],
    )


SERVICE = Service("project", build, Path(__file__).parent / "migrations")
