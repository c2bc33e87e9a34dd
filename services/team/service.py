"""Composition root of team."""

from __future__ import annotations

from pathlib import Path

from common.service import Parts, Runtime, Service
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from services.team.actions import MemberActions
from services.team.rpc import TeamServicer


async def build(runtime: Runtime) -> Parts:
    database = await runtime.database()
    actions = MemberActions(database, runtime.stub("auth", AuthServiceStub), runtime.clock)
    return Parts(servicers=[("mindweave.team.v1.TeamService", TeamServicer(actions))])


SERVICE = Service("team", build, Path(__file__).parent / "migrations")
