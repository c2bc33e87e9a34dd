"""AccountService: messages to organizations and back."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from common.database import Change
from common.identity.access import AccessResolver
from common.identity.call import current_call
from common.names import clean_name
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import changed_fields, timestamp
from mindweave.account.v1.account_pb2 import (
    CreateOrgRequest,
    CreateOrgResponse,
    DeleteOrgRequest,
    DeleteOrgResponse,
    GetOrgRequest,
    GetOrgResponse,
    ListOrgsRequest,
    ListOrgsResponse,
    UpdateOrgRequest,
    UpdateOrgResponse,
)
from mindweave.account.v1.account_pb2 import Org as OrgMessage
from mindweave.account.v1.account_pb2_grpc import AccountServiceServicer
from services.account.actions import OrgActions
from services.account.domain import Org


class AccountServicer(AccountServiceServicer):
    def __init__(self, actions: OrgActions, access: AccessResolver) -> None:
        self._actions = actions
        self._access = access

    async def CreateOrg(self, request: CreateOrgRequest, context: Any) -> CreateOrgResponse:
        call = current_call()

        def answer(change: Change, org: Org) -> CreateOrgResponse:
            return change.answer(CreateOrgResponse(org=_message(org)), etag=org.version)

        created = await self._actions.create(
            clean_name(request.name),
            user_id=call.user_id,
            key=call.idempotency_key or str(uuid4()),
            request_hash=call.request_hash,
            answer=answer,
        )
        self._access.evict(user_id=call.user_id)
        return created

    async def ListOrgs(self, request: ListOrgsRequest, context: Any) -> ListOrgsResponse:
        after = decode_key(request.page_token, UUID)
        size = page_size(request.page_size)
        orgs = await self._actions.list_active(
            current_call().permitted_orgs, after[0] if after else None, size + 1
        )
        return ListOrgsResponse(
            orgs=[_message(org) for org in orgs[:size]],
            next_page_token=encode_token(str(orgs[size - 1].id)) if len(orgs) > size else None,
        )

    async def GetOrg(self, request: GetOrgRequest, context: Any) -> GetOrgResponse:
        org = await self._actions.get(UUID(request.id))
        current_call().etag = org.version
        return GetOrgResponse(org=_message(org))

    async def UpdateOrg(self, request: UpdateOrgRequest, context: Any) -> UpdateOrgResponse:
        changed = changed_fields(request, request.update_mask, required={"name"})

        def answer(change: Change, org: Org) -> UpdateOrgResponse:
            return change.answer(UpdateOrgResponse(org=_message(org)), etag=org.version)

        return await self._actions.rename(
            UUID(request.id),
            clean_name(request.name) if "name" in changed else None,
            version=current_call().if_match,
            answer=answer,
        )

    async def DeleteOrg(self, request: DeleteOrgRequest, context: Any) -> DeleteOrgResponse:
        org_id = UUID(request.id)

        def answer(change: Change) -> DeleteOrgResponse:
            return change.answer(DeleteOrgResponse(), resource_id=org_id)

        return await self._actions.delete(org_id, version=current_call().if_match, answer=answer)


def _message(org: Org) -> OrgMessage:
    return OrgMessage(
        id=str(org.id),
        name=org.name,
        slug=org.slug,
        created_at=timestamp(org.created_at),
        updated_at=timestamp(org.updated_at),
    )
