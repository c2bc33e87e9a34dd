from __future__ import annotations

from uuid import uuid4

import pytest

from common.errors import NotFound, PermissionDenied, Unauthenticated
from common.identity.call import (
    ANONYMOUS,
    Call,
    Principal,
    current_call,
    current_call_or_none,
    permitted,
    set_call,
)
from common.identity.permissions import PERSONAL, PROJECT_SCOPES, ROLES, SCOPES, SELF

pytestmark = pytest.mark.unit

ORG, OTHER_ORG, PROJECT = uuid4(), uuid4(), uuid4()
USER = Principal("user", user_id=uuid4(), session_id=uuid4())


def user_key(*scopes: str) -> Principal:
    return Principal("user_key", user_id=uuid4(), api_key_id=uuid4(), scopes=frozenset(scopes))


def project_key(*scopes: str) -> Principal:
    return Principal(
        "project_key",
        api_key_id=uuid4(),
        org_id=ORG,
        project_id=PROJECT,
        scopes=frozenset(scopes),
    )


def call(principal: Principal, permission: str, role: str | None = "member") -> Call:
    roles = {} if role is None else {ORG: role}
    return Call("operation", principal, permission=permission, roles=roles)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("owner", {"org:delete", "billing:write", "member:write"}, set()),
        ("admin", {"org:write", "member:write", "billing:read"}, {"org:delete", "billing:write"}),
        ("member", {"project:write", "events:write"}, {"member:write", "project:delete"}),
        ("viewer", {"analytics:read", "project:read"}, {"events:write", "api_key:read"}),
        ("billing", {"billing:write", "org:read"}, {"project:read", "org:write"}),
    ],
)
def test_a_role_permits_what_it_is_for(role: str, may: set[str], may_not: set[str]) -> None:
    assert may <= ROLES[role]
    assert not may_not & ROLES[role]


def test_a_role_that_nobody_knows_permits_nothing() -> None:
    assert not permitted(USER, "emperor", "org:read")


def test_roles_never_permit_what_belongs_to_the_person_alone_nor_do_keys() -> None:
    assert all(not (SELF & granted) for granted in ROLES.values())
    assert not SELF & SCOPES
    for permission in SELF:
        assert permitted(USER, None, permission)
        assert not permitted(user_key(permission), "owner", permission)
        assert not permitted(project_key(permission), "key", permission)


def test_a_users_key_may_what_both_its_role_and_its_scopes_allow() -> None:
    key = user_key("analytics:read", "org:delete")
    assert permitted(key, "member", "analytics:read")
    assert not permitted(key, "member", "org:delete")
    assert not permitted(key, "member", "project:read")


def test_a_projects_key_may_what_its_scopes_name_and_nothing_else() -> None:
    assert permitted(project_key("events:write"), "key", "events:write")
    assert not permitted(project_key("events:write"), "key", "analytics:read")


def test_without_an_organization_a_user_may_create_one() -> None:
    assert permitted(USER, None, "org:create")
    assert permitted(user_key("org:create"), None, "org:create")
    assert not permitted(user_key("events:write"), None, "org:create")
    assert not permitted(USER, None, "project:read")
    assert not permitted(ANONYMOUS, None, "self:read")


def test_a_service_may_what_services_may_and_works_where_it_has_a_role() -> None:
    service = Principal("service", service="alerts")
    assert permitted(service, None, "service")
    assert permitted(service, "service", "analytics:read")
    assert not permitted(service, None, "analytics:read")
    assert not permitted(USER, "owner", "service")


def test_a_projects_key_is_never_given_a_scope_that_reaches_beyond_its_project() -> None:
    assert PROJECT_SCOPES <= SCOPES | PERSONAL
    assert not {s for s in PROJECT_SCOPES if s.startswith(("org:", "member:", "billing:"))}


def test_a_stranger_does_not_learn_that_the_row_exists() -> None:
    with pytest.raises(NotFound):
        call(USER, "project:read").authorize(OTHER_ORG)


def test_a_member_without_the_permission_is_told_which_one_it_lacks() -> None:
    with pytest.raises(PermissionDenied, match="org:delete"):
        call(USER, "org:delete").authorize(ORG)


def test_a_projects_key_does_not_learn_of_other_projects_of_its_organization() -> None:
    served = call(project_key("project:read"), "project:read", "key")
    with pytest.raises(NotFound):
        served.authorize(ORG, uuid4())
    assert not served.authorized
    served.authorize(ORG, PROJECT)
    assert served.authorized


def test_organizations_are_those_with_a_role_and_permitted_ones_those_whose_role_allows() -> None:
    served = Call("o", USER, permission="project:write", roles={ORG: "member", OTHER_ORG: "viewer"})
    assert served.orgs == (ORG, OTHER_ORG)
    assert served.permitted_orgs == (ORG,)


def test_only_a_user_has_a_user_id() -> None:
    assert call(USER, "self:read").user_id == USER.user_id
    with pytest.raises(Unauthenticated):
        _ = call(project_key(), "self:read").user_id


def test_each_kind_of_caller_has_a_subject_of_its_own() -> None:
    key = user_key()
    assert USER.subject == f"user:{USER.user_id}"
    assert key.subject == f"user_key:{key.api_key_id}"
    assert Principal("service", service="team").subject == "service:team"
    assert ANONYMOUS.subject == "anonymous"


def test_a_principal_never_shows_its_token() -> None:
    assert "secret" not in repr(Principal("user", user_id=uuid4(), token="secret"))


def test_a_call_is_known_only_while_it_is_served() -> None:
    set_call(None)
    assert current_call_or_none() is None
    with pytest.raises(LookupError):
        current_call()
    served = call(USER, "org:read")
    set_call(served)
    assert current_call() is served
    set_call(None)
