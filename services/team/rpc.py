"""TeamService: messages to members and back, and the membership question of every service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from common.database import Change
from common.errors import PermissionDenied
from common.identity.call import current_call
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import changed_fields, timestamp
from mindweave.auth.v1.auth_pb2 import Profile
from mindweave.team.v1.team_pb2 import (
    Access,
    AddMemberRequest,
    AddMemberResponse,
    CloseOrgRequest,
    CloseOrgResponse,
    ListMembersRequest,
    ListMembersResponse,
    OpenOrgRequest,
    OpenOrgResponse,
    RemoveMemberRequest,
    RemoveMemberResponse,
    ResolveAccessRequest,
    ResolveAccessResponse,
    UpdateMemberRequest,
    UpdateMemberResponse,
)
from mindweave.team.v1.team_pb2 import Member as MemberMessage
from mindweave.team.v1.team_pb2_grpc import TeamServiceServicer
from services.team.actions import MemberActions, may_leave
from services.team.domain import Member

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class TeamServicer(TeamServiceServicer):
    def __init__(self, actions: MemberActions) -> None:
        self._actions = actions

    async def ListMembers(self, request: ListMembersRequest, context: Any) -> ListMembersResponse:
        size = page_size(request.page_size)
        after = decode_key(request.page_token, _moment, UUID)
        page, more = await self._actions.list_members(
            UUID(request.org_id), (after[0], after[1]) if after else None, size
        )
        return ListMembersResponse(
            members=[_message(member, profile) for member, profile in page],
            next_page_token=_token(page[-1][0]) if more else None,
        )

    async def AddMember(self, request: AddMemberRequest, context: Any) -> AddMemberResponse:
        def answer(change: Change, member: Member, profile: Profile) -> AddMemberResponse:
            message = AddMemberResponse(member=_message(member, profile))
            return change.answer(message, etag=member.version, resource_id=member.user_id)

        return await self._actions.add(
            current_call().principal,
            UUID(request.org_id),
            UUID(request.user_id),
            request.role,
            answer,
        )

    async def UpdateMember(
        self, request: UpdateMemberRequest, context: Any
    ) -> UpdateMemberResponse:
        call = current_call()
        changed = changed_fields(request, request.update_mask, required={"role"})

        def answer(change: Change, member: Member, profile: Profile) -> UpdateMemberResponse:
            message = UpdateMemberResponse(member=_message(member, profile))
            return change.answer(message, etag=member.version, resource_id=member.user_id)

        return await self._actions.change_role(
            call.principal,
            UUID(request.org_id),
            UUID(request.user_id),
            request.role if "role" in changed else None,
            version=call.if_match,
            answer=answer,
        )

    async def RemoveMember(
        self, request: RemoveMemberRequest, context: Any
    ) -> RemoveMemberResponse:
        call = current_call()
        org_id, user_id = UUID(request.org_id), UUID(request.user_id)
        if may_leave(call.principal, user_id) and org_id in call.roles:
            call.authorized, call.org_id = True, org_id
        else:
            call.authorize(org_id)

        def answer(change: Change) -> RemoveMemberResponse:
            return change.answer(RemoveMemberResponse(), resource_id=user_id)

        return await self._actions.remove(
            call.principal, org_id, user_id, version=call.if_match, answer=answer
        )

    async def ResolveAccess(
        self, request: ResolveAccessRequest, context: Any
    ) -> ResolveAccessResponse:
        access = await self._actions.resolve(
            current_call().principal, [UUID(org_id) for org_id in request.org_ids]
        )
        return ResolveAccessResponse(
            access=[Access(org_id=str(org_id), role=role) for org_id, role in access]
        )

    async def OpenOrg(self, request: OpenOrgRequest, context: Any) -> OpenOrgResponse:
        _only_account()
        await self._actions.open_org(UUID(request.org_id), UUID(request.owner_id))
        return OpenOrgResponse()

    async def CloseOrg(self, request: CloseOrgRequest, context: Any) -> CloseOrgResponse:
        _only_account()
        await self._actions.close_org(UUID(request.org_id))
        return CloseOrgResponse()


def _only_account() -> None:
    if current_call().caller != "account":
        raise PermissionDenied("Only the service account opens and closes organizations.")


def _message(member: Member, profile: Profile) -> MemberMessage:
    return MemberMessage(
        user_id=str(member.user_id),
        email=profile.email,
        display_name=profile.display_name,
        role=member.role,
        created_at=timestamp(member.created_at),
    )


def _token(member: Member) -> str:
    return encode_token(str((member.created_at - _EPOCH) // _MICROSECOND), str(member.user_id))


def _moment(microseconds: str) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=int(microseconds))
    except OverflowError as error:
        raise ValueError(microseconds) from error
