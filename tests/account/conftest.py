"""The database of account and a team that keeps its word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Change, Database
from common.errors import Conflict, Unavailable
from mindweave.team.v1.team_pb2 import (
    CloseOrgRequest,
    CloseOrgResponse,
    OpenOrgRequest,
    OpenOrgResponse,
)
from services.account.actions import OrgActions, Sweeper
from services.account.domain import Org
from tests.conftest import Published

START = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Team:
    """Opens and closes organizations as the proto promises; ``interrupt`` may fail a step."""

    def __init__(self) -> None:
        self.owners: dict[UUID, UUID] = {}
        self.closed: set[UUID] = set()
        self.down = False
        self.interrupt: Callable[[str], None] = lambda _moment: None

    async def open_org(self, request: OpenOrgRequest) -> OpenOrgResponse:
        self._enter("before open")
        org_id = UUID(request.org_id)
        if org_id in self.closed:
            raise Conflict(code="org_closed")
        self.owners.setdefault(org_id, UUID(request.owner_id))
        self.interrupt("after open")
        return OpenOrgResponse()

    async def close_org(self, request: CloseOrgRequest) -> CloseOrgResponse:
        self._enter("before close")
        self.owners.pop(UUID(request.org_id), None)
        self.closed.add(UUID(request.org_id))
        self.interrupt("after close")
        return CloseOrgResponse()

    OpenOrg, CloseOrg = open_org, close_org

    def _enter(self, moment: str) -> None:
        self.interrupt(moment)
        if self.down:
            raise Unavailable("team is down")


@pytest.fixture
def team() -> Team:
    return Team()


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]], clock: ManualClock) -> Database:
    made: Database = await service_database("account", clock=clock)
    return made


async def types(published: Published) -> list[str]:
    return [envelope.type for envelope in await published()]


async def delete(actions: OrgActions, org_id: UUID, version: int | None = None) -> None:
    await actions.delete(org_id, version=version, answer=lambda _change: None)


@dataclass
class Creator:
    """A user with an idempotency key."""

    actions: OrgActions
    user_id: UUID = field(default_factory=uuid4)
    key: str = "key"

    async def create(
        self,
        name: str = "Acme",
        *,
        body: bytes = b"hash",
        answer: Callable[[Change, Org], Org] = lambda _change, org: org,
    ) -> Org:
        return await self.actions.create(
            name, user_id=self.user_id, key=self.key, request_hash=body, answer=answer
        )


@pytest.fixture
def actions(database: Database, team: Team, clock: ManualClock) -> OrgActions:
    return OrgActions(database, team, clock)


@pytest.fixture
def creator(actions: OrgActions) -> Creator:
    return Creator(actions)


@pytest.fixture
def sweeper(actions: OrgActions) -> Sweeper:
    return Sweeper(actions)
