"""What projects follow from events of other services."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from common.database import Change
from common.events.consumer import EventHandler
from common.events.envelope import Envelope
from mindweave.account.v1.events_pb2 import OrgDeleted
from services.project.actions import ProjectActions


def handlers(projects: ProjectActions) -> Mapping[str, EventHandler]:
    """What to do on which type of event."""

    async def org_deleted(change: Change, message: OrgDeleted, envelope: Envelope) -> None:
        await projects.remove_org(change, UUID(message.org_id))

    return {"org.deleted": org_deleted}
