from __future__ import annotations

import re
from dataclasses import replace

import pytest

from buf.validate import validate_pb2
from common.identity.callers import SERVICES
from common.identity.permissions import PERSONAL, ROLES, SELF
from common.rpc.contract import (
    Operation,
    contract_comments,
    operations,
    operations_of,
    tenant_reader,
)
from mindweave.team.v1 import team_pb2

pytestmark = pytest.mark.unit

ALL = tuple(operations().values())

# Nobody has to sign in for these; the edge serves more without a credential, but no rpc.
PUBLIC = {
    "AuthService/Register",
    "AuthService/Login",
    "AuthService/Refresh",
    "AuthService/GetJwks",
    "AuthService/IssueServiceToken",
    "UsageTrackerService/GetHealth",
}

# No organization is asked about: they concern the caller alone, or only services call them.
TENANT_NONE = PUBLIC | {
    "AccountService/CreateOrg",
    "AccountService/ListOrgs",
    "AuthService/ChangePassword",
    "AuthService/CheckSession",
    "AuthService/CreateApiKey",
    "AuthService/CreateProjectApiKey",
    "AuthService/DeleteApiKey",
    "AuthService/DeleteOtherSessions",
    "AuthService/DeleteProjectApiKey",
    "AuthService/DeleteSession",
    "AuthService/ExchangeApiKey",
    "AuthService/GetMe",
    "AuthService/ListApiKeys",
    "AuthService/ListProfiles",
    "AuthService/ListProjectApiKeys",
    "AuthService/ListSessions",
    "AuthService/Logout",
    "AuthService/UpdateMe",
    "ProjectService/ResolveProjects",
    "TeamService/CloseOrg",
    "TeamService/OpenOrg",
    "TeamService/ResolveAccess",
    "UsageTrackerService/GetMetrics",
}

# They change something and leave no audit record: a new pair of tokens for an open session.
UNAUDITED = {"AuthService/Refresh"}

PERMISSIONS = SELF | PERSONAL | {"service"} | frozenset().union(*ROLES.values())


def each() -> list[pytest.ParameterSet]:
    return [pytest.param(operation, id=operation.label) for operation in ALL]


every = pytest.mark.parametrize("operation", each())


def routed() -> list[Operation]:
    return [operation for operation in ALL if operation.route is not None]


@every
def test_every_rpc_declares_a_permission_or_is_public(operation: Operation) -> None:
    assert operation.public != bool(operation.permission)
    assert operation.public or operation.permission in PERMISSIONS


@every
def test_every_rpc_says_where_its_permission_is_checked(operation: Operation) -> None:
    if operation.tenant not in ("none", "resource"):
        assert tenant_reader(operation)(operation.request_class()) == ""
    assert operation.tenant


@every
def test_an_organization_is_named_by_a_field_that_must_be_a_uuid(operation: Operation) -> None:
    descriptor = operation.request
    for name in operation.tenant_path:
        field = descriptor.fields_by_name[name]
        rules = field.GetOptions().Extensions[validate_pb2.field]
        descriptor = field.message_type
    if operation.tenant_path:
        assert rules.string.uuid


def test_the_operations_without_a_tenant_are_these() -> None:
    assert {o.label for o in ALL if o.tenant == "none"} == TENANT_NONE


def test_the_public_operations_are_these() -> None:
    assert {o.label for o in ALL if o.public} == PUBLIC


@every
def test_an_rpc_has_a_route_or_only_services_call_it(operation: Operation) -> None:
    assert (operation.route is None) == operation.internal
    assert not operation.internal or operation.public or operation.permission == "service"
    assert operation.permission != "service" or operation.internal


def test_every_route_is_unique() -> None:
    seen = [(o.route.verb, re.sub(r"{[^}]*}", "{}", o.route.template)) for o in routed() if o.route]
    assert len(seen) == len(set(seen))


@every
def test_a_route_names_fields_of_its_messages(operation: Operation) -> None:
    route = operation.route
    if route is None:
        return
    for name in re.findall(r"{([^}]*)}", route.template):
        assert name in operation.request.fields_by_name
    assert route.body in ("", "*") or route.body in operation.request.fields_by_name
    assert not route.response_body or route.response_body in operation.response.fields_by_name
    assert (route.verb in ("POST", "PATCH", "PUT")) or not route.body


@every
def test_what_only_reads_is_a_get_and_may_be_repeated(operation: Operation) -> None:
    if operation.route is not None:
        assert (operation.route.verb == "GET") == (
            operation.reads or operation.label in ("AuthService/GetJwks",) or _is_health(operation)
        )
    assert operation.idempotent or not operation.reads


@every
def test_a_delete_answers_204_and_a_patch_says_what_it_changes(operation: Operation) -> None:
    route = operation.route
    if route is not None and route.verb == "DELETE":
        assert operation.success_status == 204
        assert operation.response.fields == []
    if route is not None and route.verb == "PATCH":
        assert "update_mask" in operation.request.fields_by_name


@every
def test_what_changes_something_for_a_person_is_audited(operation: Operation) -> None:
    changes = operation.route is not None and operation.route.verb != "GET" and not operation.raw
    assert operation.audited == (changes and operation.label not in UNAUDITED)


@every
def test_no_rpc_is_a_stream_because_no_interceptor_guards_one(operation: Operation) -> None:
    assert not operation.streaming


@every
def test_every_rpc_is_explained_and_served_by_a_known_service(operation: Operation) -> None:
    assert operation.summary.endswith(".")
    assert operation.service in SERVICES


def test_operations_are_found_by_their_grpc_path() -> None:
    added = operations()["/mindweave.team.v1.TeamService/AddMember"]
    assert added.name == "mindweave.team.v1.TeamService/AddMember"
    assert added.label == "TeamService/AddMember"
    assert (added.service, added.method) == ("team", "AddMember")
    assert added.grpc_service == "mindweave.team.v1.TeamService"
    assert added.request_class is team_pb2.AddMemberRequest
    assert added.response_class is team_pb2.AddMemberResponse
    assert (added.success_status, added.audited, added.idempotent) == (201, True, False)
    assert added.route is not None
    assert (added.route.verb, added.route.template) == ("POST", "/orgs/{org_id}/members")
    assert (added.route.body, added.route.response_body) == ("*", "member")
    assert added.summary == "Add a user to an organization, by the user's id."


def test_the_organization_is_read_from_the_field_that_the_contract_names() -> None:
    read = tenant_reader(operations()["/mindweave.team.v1.TeamService/AddMember"])
    assert read(team_pb2.AddMemberRequest(org_id="an id", user_id="another")) == "an id"


@pytest.mark.parametrize("tenant", ["resource", "none", "missing", "org_id.inner", "role"])
def test_a_path_that_leads_to_no_id_is_refused(tenant: str) -> None:
    operation = operations()["/mindweave.team.v1.TeamService/AddMember"]
    if tenant == "role":
        operation = operations()["/mindweave.team.v1.TeamService/UpdateMember"]
        tenant = "update_mask"
    with pytest.raises(LookupError):
        tenant_reader(replace(operation, tenant=tenant))


def test_comments_of_the_protos_are_found_by_full_name() -> None:
    said = contract_comments()
    assert said["mindweave.team.v1.TeamService"].startswith("Who belongs")
    assert said["mindweave.team.v1.Access.role"].startswith("owner, admin")
    assert said["mindweave.auth.v1.RegisteredUser"].startswith("What register answers")


def test_an_unknown_service_is_named() -> None:
    assert len(operations_of("mindweave.account.v1.AccountService")) == 5
    with pytest.raises(LookupError, match=r"no proto has the service mindweave\.nothing"):
        operations_of("mindweave.nothing.v1.Nothing")


def _is_health(operation: Operation) -> bool:
    return operation.label == "UsageTrackerService/GetHealth"
