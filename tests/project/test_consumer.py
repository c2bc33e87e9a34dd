"""What projects do when they hear of events, over a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database
from common.events.bus import Bus, Outgoing
from common.events.consumer import EventConsumer
from common.events.envelope import Envelope, encode, envelope_for
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from mindweave.account.v1.events_pb2 import OrgDeleted, OrgUpdated
from services.project.actions import ProjectActions
from services.project.consumer import handlers
from tests.common.waiting import eventually
from tests.conftest import Published

pytestmark = pytest.mark.bus


@pytest.fixture
async def bus(valkey: Valkey, database: Database, projects: ProjectActions) -> AsyncIterator[Bus]:
    running = RedisStreamsBus(valkey.url, telemetry=silent_telemetry("project"))
    await running.start()
    await running.declare("platform.events", 1, ["project"])
    consumer = EventConsumer(bus=running, db=database, handlers=handlers(projects))
    await consumer.start()
    yield running
    await consumer.stop()
    await running.stop()


async def tell(bus: Bus, *envelopes: Envelope) -> None:
    for envelope in envelopes:
        key = str(envelope.metadata.org_id)
        await bus.publish("platform.events", [Outgoing(encode(envelope), key)])


async def left(projects: ProjectActions, org_id: UUID) -> int:
    return len(await projects.list_projects([org_id], only=None, after=None, limit=10))


async def test_when_an_organization_is_deleted_its_projects_go_once(
    bus: Bus, projects: ProjectActions, clock: ManualClock, published: Published
) -> None:
    gone, kept, last = uuid4(), uuid4(), uuid4()
    for org in (gone, gone, kept, last):
        await projects.create(org, "Search", None, lambda _change, project: project)
    deleted = envelope_for(OrgDeleted(org_id=str(gone)), "account", clock, org_id=gone)
    updated = envelope_for(OrgUpdated(org_id=str(kept)), "account", clock, org_id=kept)
    end = envelope_for(OrgDeleted(org_id=str(last)), "account", clock, org_id=last)
    await tell(bus, deleted, deleted, updated, end)

    async def is_done() -> bool:
        return await left(projects, last) == 0

    await eventually(is_done)
    assert (await left(projects, gone), await left(projects, kept)) == (0, 1)
    told = [e for e in await published() if e.type == "project.deleted"]
    assert [e.metadata.org_id for e in told] == [gone, gone, last]
