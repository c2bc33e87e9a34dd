"""TeamService behind the kit's real gRPC server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from common.clock import SystemClock
from common.database import Database, Scope
from common.errors import (
    Conflict,
    Invalid,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from common.identity.call import ANONYMOUS, Principal
from common.identity.callers import SERVICES, may_call
from common.identity.permissions import ROLES
from common.rpc.client import Answer
from common.testing import Served, a_project_key, a_user, a_user_key, serve
from mindweave.team.v1 import team_pb2 as pb
from services.team.actions import MemberActions
from services.team.domain import Member
from services.team.rpc import TeamServicer
from services.team.store import MemberStore
from tests.conftest import Published
from tests.team.conftest import Auth

pytestmark = pytest.mark.rpc

SERVICE = "mindweave.team.v1.TeamService"


@pytest.fixture
async def served(database: Database, actions: MemberActions) -> AsyncIterator[Served]:
    async with serve([(SERVICE, TeamServicer(actions))], database=database) as running:
        yield running


class Org:
    """An open organization, its owner, and members in any role."""

    def __init__(self, served: Served, auth: Auth) -> None:
        self.served = served
        self.auth = auth
        self.id = uuid4()
        self.owner = a_user(auth.user())

    async def open(self) -> Org:
        await self.call(
            "OpenOrg",
            pb.OpenOrgRequest(org_id=str(self.id), owner_id=str(self.owner.user_id)),
            ANONYMOUS,
            caller="account",
        )
        self.served.access.grant(self.owner, self.id, "owner")
        return self

    async def call(self, method: str, request: Any, who: Principal, **more: Any) -> Answer:
        return await self.served.invoke(f"/{SERVICE}/{method}", request, who, **more)

    async def add(
        self, role: str, who: Principal | None = None, user_id: UUID | None = None, **more: Any
    ) -> tuple[Principal, Answer]:
        user = a_user(user_id or self.auth.user())
        answer = await self.call(
            "AddMember",
            pb.AddMemberRequest(org_id=str(self.id), user_id=str(user.user_id), role=role),
            who or self.owner,
            **more,
        )
        self.served.access.grant(user, self.id, role)
        return user, answer

    def update(self, member: Principal, role: str) -> pb.UpdateMemberRequest:
        return pb.UpdateMemberRequest(org_id=str(self.id), user_id=str(member.user_id), role=role)

    def remove(self, member: Principal) -> pb.RemoveMemberRequest:
        return pb.RemoveMemberRequest(org_id=str(self.id), user_id=str(member.user_id))

    async def roles(self) -> dict[str, str]:
        answer = await self.call(
            "ListMembers", pb.ListMembersRequest(org_id=str(self.id)), self.owner
        )
        return {member.user_id: member.role for member in answer.message.members}


@pytest.fixture
async def org(served: Served, auth: Auth) -> Org:
    return await Org(served, auth).open()


async def test_a_member_is_added_with_its_profile_and_listed(org: Org) -> None:
    bob, answer = await org.add("member")
    member = answer.message.member
    profile = org.auth.profiles[bob.user_id]
    assert (member.user_id, member.email, member.display_name, member.role, answer.etag) == (
        str(bob.user_id),
        profile.email,
        "Ada",
        "member",
        1,
    )
    assert await org.roles() == {
        str(org.owner.user_id): "owner",
        str(bob.user_id): "member",
    }


async def test_a_repeat_with_its_key_adds_nobody_twice(org: Org, published: Published) -> None:
    user_id = org.auth.user()
    _, first = await org.add("member", user_id=user_id, idempotency_key="k")
    _, again = await org.add("member", user_id=user_id, idempotency_key="k")
    assert (again.message, again.replayed) == (first.message, True)
    with pytest.raises(Conflict) as refused:
        await org.add("member", user_id=user_id)
    assert refused.value.code == "already_member"
    assert [event.type for event in await published()] == ["member.added", "audit.recorded"]


async def test_what_was_done_is_audited_with_whom_it_was_done_to(
    org: Org, published: Published
) -> None:
    bob, _ = await org.add("member")
    await org.call("UpdateMember", org.update(bob, "viewer"), org.owner)
    await org.call("RemoveMember", org.remove(bob), org.owner)
    audits = [event.data for event in await published() if event.type == "audit.recorded"]
    assert [audit["action"].rpartition("/")[2] for audit in audits] == [
        "AddMember",
        "UpdateMember",
        "RemoveMember",
    ]
    assert {(audit["org_id"], audit["resource_id"]) for audit in audits} == {
        (str(org.id), str(bob.user_id))
    }


async def test_errors_say_what_happened(org: Org) -> None:
    nobody = a_user()

    async def refused(method: str, request: Any) -> MindWeaveError:
        with pytest.raises(MindWeaveError) as error:
            await org.call(method, request, org.owner)
        return error.value

    unknown = pb.AddMemberRequest(org_id=str(org.id), user_id=str(uuid4()), role="member")
    found = await refused("AddMember", unknown)
    assert (type(found), found.code) == (NotFound, "user_not_found")
    found = await refused("UpdateMember", org.update(nobody, "viewer"))
    assert (type(found), found.code) == (NotFound, "member_not_found")
    found = await refused("RemoveMember", org.remove(nobody))
    assert (type(found), found.code) == (NotFound, "member_not_found")
    found = await refused("RemoveMember", org.remove(org.owner))
    assert (type(found), found.code) == (Conflict, "last_owner")
    found = await refused("UpdateMember", org.update(org.owner, "admin"))
    assert (type(found), found.code) == (Conflict, "last_owner")
    wrong = pb.AddMemberRequest(org_id=str(org.id), user_id="x", role="king")
    found = await refused("AddMember", wrong)
    assert type(found) is Invalid
    assert {field.pointer for field in found.fields} == {"/user_id", "/role"}


async def test_a_role_changes_with_the_right_version_only(org: Org) -> None:
    bob, _ = await org.add("member")
    changed = await org.call("UpdateMember", org.update(bob, "viewer"), org.owner, if_match=1)
    assert (changed.message.member.role, changed.etag) == ("viewer", 2)
    with pytest.raises(PreconditionFailed):
        await org.call("UpdateMember", org.update(bob, "admin"), org.owner, if_match=1)
    with pytest.raises(PreconditionFailed):
        await org.call("RemoveMember", org.remove(bob), org.owner, if_match=1)
    same = await org.call(
        "UpdateMember",
        pb.UpdateMemberRequest(
            org_id=str(org.id), user_id=str(bob.user_id), update_mask=FieldMask()
        ),
        org.owner,
    )
    assert (same.message.member.role, same.etag) == ("viewer", 2)
    await org.call("RemoveMember", org.remove(bob), org.owner, if_match=2)


async def test_without_auth_the_answer_is_that_it_is_not_available(org: Org) -> None:
    org.auth.down = True
    with pytest.raises(Unavailable):
        await org.roles()
    with pytest.raises(Unavailable):
        await org.add("member")


async def test_the_largest_page_asks_auth_for_no_more_profiles_than_it_gives(
    org: Org, database: Database
) -> None:
    async with database.change(Scope((org.id,))) as change:
        store, now = MemberStore(change.connection), SystemClock().now()
        for _ in range(500):
            await store.insert(Member(org.id, uuid4(), "viewer", 1, now, now))
    request = pb.ListMembersRequest(org_id=str(org.id), page_size=500)
    page = (await org.call("ListMembers", request, org.owner)).message
    assert len(page.members) == 500
    assert page.HasField("next_page_token")


async def test_pages_hold_every_member_once(org: Org) -> None:
    for _ in range(4):
        await org.add("viewer")
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListMembersRequest(org_id=str(org.id), page_size=2, page_token=token)
        page = (await org.call("ListMembers", request, org.owner)).message
        found += [member.user_id for member in page.members]
        if not page.HasField("next_page_token"):
            break
        token = page.next_page_token
    assert found[0] == str(org.owner.user_id)
    assert len(found) == len(set(found)) == 5


@pytest.mark.parametrize(
    "token", ["x", "WyJ4IiwgInkiXQ", "WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTk5IiwgIngiXQ"]
)
async def test_a_forged_page_token_is_refused(org: Org, token: str) -> None:
    request = pb.ListMembersRequest(org_id=str(org.id), page_token=token)
    with pytest.raises(Invalid) as refused:
        await org.call("ListMembers", request, org.owner)
    assert refused.value.fields[0].pointer == "/page_token"


METHODS = {
    "ListMembers": "member:read",
    "AddMember": "member:write",
    "UpdateMember": "member:write",
    "RemoveMember": "member:write",
}


def requests(org: Org, target: Principal) -> dict[str, Any]:
    return {
        "ListMembers": pb.ListMembersRequest(org_id=str(org.id)),
        "AddMember": pb.AddMemberRequest(
            org_id=str(org.id), user_id=str(org.auth.user()), role="viewer"
        ),
        "UpdateMember": org.update(target, "billing"),
        "RemoveMember": org.remove(target),
    }


@pytest.mark.parametrize("role", list(ROLES))
@pytest.mark.parametrize("method", list(METHODS))
async def test_each_role_may_what_the_table_says(org: Org, role: str, method: str) -> None:
    actor, _ = await org.add(role)
    target, _ = await org.add("viewer")
    request = requests(org, target)[method]
    if METHODS[method] in ROLES[role]:
        await org.call(method, request, actor)
    else:
        with pytest.raises(PermissionDenied):
            await org.call(method, request, actor)


@pytest.mark.parametrize("method", list(METHODS))
async def test_a_stranger_learns_nothing_of_an_organization(
    org: Org, method: str, served: Served, auth: Auth
) -> None:
    target, _ = await org.add("viewer")
    stranger = await Org(served, auth).open()
    nowhere = Org(served, auth)
    errors = []
    for there in (org, nowhere):
        with pytest.raises(NotFound) as refused:
            await org.call(method, requests(there, target)[method], stranger.owner)
        errors.append((refused.value.code, refused.value.detail))
    assert errors[0] == errors[1]
    assert len(await org.roles()) == 2


async def test_an_admin_may_not_touch_owners(org: Org) -> None:
    admin, _ = await org.add("admin")
    second, _ = await org.add("owner")
    for method, request in (
        (
            "AddMember",
            pb.AddMemberRequest(org_id=str(org.id), user_id=str(org.auth.user()), role="owner"),
        ),
        ("UpdateMember", org.update(admin, "owner")),
        ("UpdateMember", org.update(second, "viewer")),
        ("RemoveMember", org.remove(second)),
    ):
        with pytest.raises(PermissionDenied) as refused:
            await org.call(method, request, admin)
        assert refused.value.code == "only_owners"


@pytest.mark.parametrize("role", list(ROLES))
async def test_every_member_may_leave(org: Org, role: str) -> None:
    member, _ = await org.add(role)
    await org.call("RemoveMember", org.remove(member), member)
    assert await org.roles() == {str(org.owner.user_id): "owner"}


async def test_a_key_acts_within_its_scopes_and_its_users_role(org: Org) -> None:
    assert org.owner.user_id is not None
    writing = a_user_key(org.owner.user_id, ["member:write"])
    reading = a_user_key(org.owner.user_id, ["member:read"])
    project_key = a_project_key(org.id, uuid4(), ["events:write"])
    for key in (writing, reading):
        org.served.access.grant(key, org.id, "owner")
    await org.add("viewer", who=writing)
    for key in (reading, project_key):
        with pytest.raises(PermissionDenied):
            await org.add("viewer", who=key)
    with pytest.raises(PermissionDenied):
        await org.call("ListMembers", pb.ListMembersRequest(org_id=str(org.id)), project_key)


async def access(org: Org, who: Principal, *asked: UUID, caller: str = "analytics") -> Any:
    request = pb.ResolveAccessRequest(org_ids=[str(org_id) for org_id in asked])
    answer = await org.call("ResolveAccess", request, who, caller=caller)
    return [(found.org_id, found.role) for found in answer.message.access]


async def test_the_membership_question_is_answered_for_every_kind_of_caller(org: Org) -> None:
    bob, _ = await org.add("billing")
    assert bob.user_id is not None
    own = str(org.id)
    assert await access(org, bob) == [(own, "billing")]
    assert await access(org, a_user_key(bob.user_id, [])) == [(own, "billing")]
    assert await access(org, a_project_key(org.id, uuid4(), [])) == [(own, "key")]
    assert await access(org, ANONYMOUS, org.id, uuid4()) == [(own, "service")]
    assert await access(org, a_user(), org.id) == []


async def test_the_membership_question_asks_nobody_for_roles(org: Org) -> None:
    org.served.access.down = True
    assert await access(org, org.owner) == [(str(org.id), "owner")]


@pytest.mark.parametrize("caller", [s for s in SERVICES if s != "account"])
async def test_only_account_opens_and_closes_organizations(org: Org, caller: str) -> None:
    opening = pb.OpenOrgRequest(org_id=str(uuid4()), owner_id=str(org.owner.user_id))
    closing = pb.CloseOrgRequest(org_id=str(org.id))
    assert may_call(caller, "team")
    for method, request in (("OpenOrg", opening), ("CloseOrg", closing)):
        with pytest.raises(PermissionDenied):
            await org.call(method, request, org.owner, caller=caller)
    assert await access(org, org.owner) == [(str(org.id), "owner")]


async def test_closing_ends_every_role_and_opening_again_is_refused(org: Org) -> None:
    closing = pb.CloseOrgRequest(org_id=str(org.id))
    for _ in range(2):
        await org.call("CloseOrg", closing, org.owner, caller="account")
    assert await access(org, org.owner) == []
    with pytest.raises(Conflict) as refused:
        await org.open()
    assert refused.value.code == "org_closed"


async def test_without_a_credential_nothing_is_done(org: Org) -> None:
    for method, request in requests(org, org.owner).items():
        with pytest.raises(Unauthenticated):
            await org.call(method, request, ANONYMOUS)
