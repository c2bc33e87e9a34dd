from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import Message

from buf.validate import validate_pb2
from common.errors import (
    Conflict,
    Invalid,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from common.identity.call import Principal, current_call
from common.rpc.client import acting_for
from common.rpc.contract import operations
from common.rpc.exchange import Exchange
from common.rpc.interceptors.permission import Permission
from common.testing import FakeAccess, a_project_key, a_user, a_user_key
from mindweave.account.v1.account_pb2 import (
    CreateOrgRequest,
    GetOrgRequest,
    GetOrgResponse,
    ListOrgsRequest,
    ListOrgsResponse,
)
from mindweave.auth.v1.auth_pb2 import GetJwksRequest, GetMeRequest
from mindweave.project.v1.project_pb2 import (
    DeleteProjectRequest,
    DeleteProjectResponse,
    GetProjectRequest,
    GetProjectResponse,
    ListProjectsRequest,
    ListProjectsResponse,
)
from mindweave.team.v1.team_pb2 import AddMemberRequest, ResolveAccessRequest
from tests.common.serving import ACCOUNT, AUTH, PROJECT, TEAM, Fleet, as_call, fleet, on_behalf_of

pytestmark = pytest.mark.rpc

SESSION = "mindweave.usage_tracker.v1.SessionService"
ORG, OTHER_ORG, PROJECT_ID = uuid4(), uuid4(), uuid4()


@pytest.fixture
async def served() -> AsyncIterator[Fleet]:
    async with fleet(ACCOUNT, AUTH, PROJECT, TEAM, SESSION) as running:
        yield running


async def call(
    served: Fleet, name: str, request: Message, principal: Principal, caller: str = "gateway"
) -> Any:
    signed = principal
    if principal.kind != "service":
        signed = served.signer.signed(principal)
    method = served.method(name, caller)
    return await as_call(on_behalf_of(signed), lambda: method(request))


def member(served: Fleet, role: str = "member", org_id: UUID = ORG) -> Principal:
    user = a_user()
    served.access.grant(user, org_id, role)
    return user


async def test_a_stranger_to_the_organization_is_told_that_it_does_not_exist(
    served: Fleet,
) -> None:
    with pytest.raises(NotFound):
        await call(served, f"{ACCOUNT}/GetOrg", GetOrgRequest(id=str(ORG)), a_user())
    with pytest.raises(NotFound):
        await call(
            served,
            f"{ACCOUNT}/GetOrg",
            GetOrgRequest(id=str(ORG)),
            member(served, org_id=OTHER_ORG),
        )
    assert served.handlers[ACCOUNT].seen == []


async def test_a_member_whose_role_does_not_allow_it_is_told_so(served: Fleet) -> None:
    request = AddMemberRequest(org_id=str(ORG), user_id=str(uuid4()), role="member")
    with pytest.raises(PermissionDenied, match="member:write"):
        await call(served, f"{TEAM}/AddMember", request, member(served, "viewer"))
    assert served.handlers[TEAM].seen == []


async def test_a_member_whose_role_allows_it_reaches_the_handler_with_its_roles(
    served: Fleet,
) -> None:
    seen = []

    async def get_org(request: Any, context: Any) -> GetOrgResponse:
        seen.append(current_call())
        return GetOrgResponse()

    served.handlers[ACCOUNT].on("GetOrg", get_org)
    user = member(served, "viewer")
    await call(served, f"{ACCOUNT}/GetOrg", GetOrgRequest(id=str(ORG)), user)
    assert seen[0].orgs == (ORG,)
    assert seen[0].permitted_orgs == (ORG,)
    assert seen[0].operation == f"{ACCOUNT}/GetOrg"
    assert seen[0].caller == "gateway"


async def test_the_shape_of_a_request_is_judged_before_whether_its_organization_exists(
    served: Fleet,
) -> None:
    request = AddMemberRequest(org_id=str(ORG), user_id=str(uuid4()), role="emperor")
    with pytest.raises(Invalid):
        await call(served, f"{TEAM}/AddMember", request, a_user())


async def test_what_a_handler_refuses_comes_after_permission(served: Fleet) -> None:
    async def conflict(request: Any, context: Any) -> Any:
        raise Conflict("The last owner stays.", code="last_owner")

    served.handlers[TEAM].on("AddMember", conflict)
    request = AddMemberRequest(org_id=str(ORG), user_id=str(uuid4()), role="member")
    with pytest.raises(PermissionDenied):
        await call(served, f"{TEAM}/AddMember", request, member(served, "member"))
    with pytest.raises(Conflict):
        await call(served, f"{TEAM}/AddMember", request, member(served, "owner"))


async def test_a_key_may_no_more_than_its_scopes(served: Fleet) -> None:
    user = member(served, "owner")
    assert user.user_id is not None
    for scopes, allowed in ((["org:read"], True), (["events:write"], False)):
        key = a_user_key(user.user_id, scopes)
        served.access.grant(key, ORG, "owner")
        asked = call(served, f"{ACCOUNT}/GetOrg", GetOrgRequest(id=str(ORG)), key)
        if allowed:
            await asked
        else:
            with pytest.raises(PermissionDenied):
                await asked


async def test_what_is_the_persons_own_is_closed_to_keys_and_services(served: Fleet) -> None:
    await call(served, f"{AUTH}/GetMe", GetMeRequest(), a_user())
    for principal, caller in (
        (a_user_key(uuid4(), ["self:read"]), "gateway"),
        (a_project_key(ORG, PROJECT_ID, ["self:read"]), "gateway"),
        (Principal("service", service="alerts"), "alerts"),
    ):
        with pytest.raises(PermissionDenied):
            await call(served, f"{AUTH}/GetMe", GetMeRequest(), principal, caller)


async def test_what_is_the_persons_own_works_while_team_is_down(served: Fleet) -> None:
    served.access.down = True
    await call(served, f"{AUTH}/GetMe", GetMeRequest(), a_user())
    await call(served, f"{AUTH}/GetJwks", GetJwksRequest(), a_user())
    await call(served, f"{ACCOUNT}/CreateOrg", CreateOrgRequest(name="a"), a_user())
    with pytest.raises(Unavailable):
        await call(served, f"{ACCOUNT}/GetOrg", GetOrgRequest(id=str(ORG)), a_user())


async def test_a_list_of_organizations_is_made_from_roles_asked_for_anew(served: Fleet) -> None:
    seen = []

    async def list_orgs(request: Any, context: Any) -> ListOrgsResponse:
        seen.append(current_call().orgs)
        return ListOrgsResponse()

    served.handlers[ACCOUNT].on("ListOrgs", list_orgs)
    await call(served, f"{ACCOUNT}/ListOrgs", ListOrgsRequest(), a_user())
    await call(served, f"{ACCOUNT}/ListOrgs", ListOrgsRequest(), member(served))
    assert seen == [(), (ORG,)]


async def test_where_no_organization_is_named_the_handler_takes_those_that_permit_it(
    served: Fleet,
) -> None:
    seen = []

    async def list_projects(request: Any, context: Any) -> ListProjectsResponse:
        seen.append(current_call().permitted_orgs)
        return ListProjectsResponse()

    served.handlers[PROJECT].on("ListProjects", list_projects)
    name, everything = f"{PROJECT}/ListProjects", ListProjectsRequest()
    user = member(served, "viewer")
    served.access.grant(user, OTHER_ORG, "billing")
    await call(served, name, everything, user)
    await call(served, name, everything, a_user())
    assert seen == [(ORG,), ()]
    with pytest.raises(PermissionDenied):
        await call(served, name, everything, member(served, "billing"))
    with pytest.raises(PermissionDenied):
        await call(served, name, everything, a_project_key(ORG, PROJECT_ID, ["events:write"]))


async def test_a_handler_of_a_resource_authorizes_what_it_found(served: Fleet) -> None:
    async def get_project(request: Any, context: Any) -> GetProjectResponse:
        current_call().authorize(ORG, PROJECT_ID)
        return GetProjectResponse()

    served.handlers[PROJECT].on("GetProject", get_project)
    name, request = f"{PROJECT}/GetProject", GetProjectRequest(id=str(PROJECT_ID))
    await call(served, name, request, member(served, "viewer"))
    await call(served, name, request, a_project_key(ORG, PROJECT_ID, ["project:read"]))
    with pytest.raises(NotFound):
        await call(served, name, request, a_user())
    with pytest.raises(NotFound):
        await call(served, name, request, a_project_key(ORG, uuid4(), ["project:read"]))
    with pytest.raises(PermissionDenied):
        await call(served, name, request, member(served, "billing"))


async def test_a_key_without_the_scope_does_not_even_reach_the_handler_of_a_resource(
    served: Fleet,
) -> None:
    with pytest.raises(PermissionDenied):
        await call(
            served,
            f"{PROJECT}/GetProject",
            GetProjectRequest(id=str(PROJECT_ID)),
            a_project_key(ORG, PROJECT_ID, ["events:write"]),
        )
    assert served.handlers[PROJECT].seen == []


async def test_the_answer_of_a_handler_that_forgot_to_authorize_stays_here(
    served: Fleet,
) -> None:
    async def delete_project(request: Any, context: Any) -> DeleteProjectResponse:
        return DeleteProjectResponse()

    served.handlers[PROJECT].on("DeleteProject", delete_project)
    with pytest.raises(MindWeaveError) as failed:
        await call(
            served,
            f"{PROJECT}/DeleteProject",
            DeleteProjectRequest(id=str(PROJECT_ID)),
            member(served, "owner"),
        )
    assert failed.value.status == 500
    assert "authorize" not in failed.value.detail


async def test_who_has_just_joined_finds_what_is_there(served: Fleet) -> None:
    user = a_user()
    lookups = []

    async def get_project(request: Any, context: Any) -> GetProjectResponse:
        lookups.append(current_call().orgs)
        if not current_call().orgs:
            served.access.grant(user, ORG, "member")
        current_call().authorize(ORG)
        return GetProjectResponse()

    served.handlers[PROJECT].on("GetProject", get_project)
    await call(served, f"{PROJECT}/GetProject", GetProjectRequest(id=str(PROJECT_ID)), user)
    assert lookups == [(), (ORG,)]


async def test_a_service_works_only_on_the_organizations_that_it_names(served: Fleet) -> None:
    async def get_project(request: Any, context: Any) -> GetProjectResponse:
        current_call().authorize(ORG)
        return GetProjectResponse()

    served.handlers[PROJECT].on("GetProject", get_project)
    get = served.method(f"{PROJECT}/GetProject", "alerts")
    request = GetProjectRequest(id=str(PROJECT_ID))
    with acting_for([ORG]):
        await get(request)
    with acting_for([OTHER_ORG]), pytest.raises(NotFound):
        await get(request)
    with pytest.raises(NotFound):
        await get(request)


async def test_what_only_services_call_is_open_to_them_on_behalf_of_anybody(
    served: Fleet,
) -> None:
    name = f"{TEAM}/ResolveAccess"
    await call(served, name, ResolveAccessRequest(), a_user(), "account")
    await call(served, name, ResolveAccessRequest(), Principal("service", service="audit"), "audit")
    assert served.handlers[TEAM].seen == ["ResolveAccess"] * 2


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, operation in operations().items()
        if operation.tenant == "resource" and not operation.raw
    ],
)
async def test_no_resource_is_handed_out_unauthorized(served: Fleet, name: str) -> None:
    operation = operations()[name]
    rules = {
        f.name: f.GetOptions().Extensions[validate_pb2.field] for f in operation.request.fields
    }
    fields = {name: str(PROJECT_ID) for name, rule in rules.items() if rule.string.uuid}
    fields |= {name: "a" for name, rule in rules.items() if rule.string.min_len}
    with pytest.raises(MindWeaveError) as failed:
        await call(served, name[1:], operation.request_class(**fields), member(served, "owner"))
    assert failed.value.status == 500
    assert served.handlers[operation.grpc_service].seen == [operation.method]


async def test_what_only_services_call_is_closed_where_no_service_is_known_to_call() -> None:
    operation = operations()[f"/{TEAM}/ResolveAccess"]
    context = SimpleNamespace(invocation_metadata=lambda: ())
    exchange = Exchange(b"", cast(Any, context), on_behalf_of(a_user()))
    check = Permission(FakeAccess()).check(operation)
    with pytest.raises(Unauthenticated):
        check(exchange)
    assert not exchange.call.authorized
    with pytest.raises(LookupError, match="not been parsed"):
        _ = exchange.request
