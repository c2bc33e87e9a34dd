"""What auth follows from events of other services."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from common.database import Change
from common.events.consumer import EventHandler
from common.events.envelope import Envelope
from mindweave.account.v1.events_pb2 import OrgDeleted
from mindweave.project.v1.events_pb2 import ProjectDeleted
from services.auth.actions.api_keys import ApiKeyActions


def handlers(keys: ApiKeyActions) -> Mapping[str, EventHandler]:
    """What to do on which type of event."""

    async def org_deleted(change: Change, message: OrgDeleted, envelope: Envelope) -> None:
        await keys.revoke_all(change, UUID(message.org_id))

    async def project_deleted(change: Change, message: ProjectDeleted, envelope: Envelope) -> None:
        await keys.revoke_all(change, UUID(message.org_id), UUID(message.project_id))

    return {"org.deleted": org_deleted, "project.deleted": project_deleted}
