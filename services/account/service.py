"""Composition root of account."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from common.periodic import Periodic
from common.service import Parts, Runtime, Service
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from services.account.actions import OrgActions, Sweeper
from services.account.rpc import AccountServicer

SWEEP_EVERY = timedelta(seconds=15)


async def build(runtime: Runtime) -> Parts:
    database = await runtime.database()
    actions = OrgActions(database, runtime.stub("team", TeamServiceStub), runtime.clock)
    servicer = AccountServicer(actions, runtime.access)
    return Parts(
        servicers=[("mindweave.account.v1.AccountService", servicer)],
        tasks=[Periodic("sweeper", Sweeper(actions).sweep, every=SWEEP_EVERY)],
    )


SERVICE = Service("account", build, Path(__file__).parent / "migrations")
