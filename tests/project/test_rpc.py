"""ProjectService behind the kit's real gRPC server."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from common.database import Database, Scope
from common.errors import (
    Conflict,
    Invalid,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unauthenticated,
)
from common.identity.call import ANONYMOUS, Principal
from common.identity.permissions import ROLES
from common.testing import FakeAccess, Served, a_project_key, a_user, serve
from mindweave.project.v1 import project_pb2 as pb
from services.project.actions import KeyActions, ProjectActions
from services.project.rpc import ProjectServicer
from tests.conftest import Published
from tests.project.conftest import SERVICE, Auth, call, created, requests, with_key

pytestmark = pytest.mark.rpc


async def listed(served: Served, who: Principal, **fields: Any) -> list[str]:
    answer = await call(served, "ListProjects", pb.ListProjectsRequest(**fields), who)
    return [project.id for project in answer.message.projects]


async def test_a_project_is_made_read_changed_and_deleted(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    team = str(uuid4())
    request = pb.CreateProjectRequest(org_id=str(org_id), name=" Search ", team_id=team)
    answer = await call(served, "CreateProject", request, owner)
    project = answer.message.project
    assert (project.name, project.org_id, project.team_id) == ("Search", str(org_id), team)
    assert answer.etag == 1
    read = await call(served, "GetProject", pb.GetProjectRequest(id=project.id), owner)
    assert (read.message.project, read.etag) == (project, 1)
    cleared = await call(
        served,
        "UpdateProject",
        pb.UpdateProjectRequest(id=project.id, update_mask=FieldMask(paths=["team_id"])),
        owner,
        if_match=1,
    )
    assert not cleared.message.project.HasField("team_id")
    assert (cleared.message.project.name, cleared.etag) == ("Search", 2)
    await call(served, "DeleteProject", pb.DeleteProjectRequest(id=project.id), owner)
    with pytest.raises(NotFound):
        await call(served, "GetProject", pb.GetProjectRequest(id=project.id), owner)


async def test_two_projects_may_have_the_same_name(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    first, second = [await created(served, owner, org_id) for _ in range(2)]
    assert first.id != second.id


async def test_a_repeat_with_its_key_makes_no_second_project(
    served: Served, owner: Principal, org_id: UUID, published: Published
) -> None:
    first = await created(served, owner, org_id, idempotency_key="k")
    assert await created(served, owner, org_id, idempotency_key="k") == first
    with pytest.raises(Invalid):
        await created(served, owner, org_id, "Other", idempotency_key="k")
    assert [event.type for event in await published()] == ["project.created", "audit.recorded"]


async def test_what_was_done_is_audited(
    served: Served, owner: Principal, org_id: UUID, published: Published
) -> None:
    project = await created(served, owner, org_id)
    request = pb.CreateApiKeyRequest(project_id=project.id, name="CI")
    key = (await call(served, "CreateApiKey", request, owner)).message.api_key
    await call(
        served,
        "DeleteApiKey",
        pb.DeleteApiKeyRequest(project_id=project.id, key_id=key.id),
        owner,
    )
    await call(served, "DeleteProject", pb.DeleteProjectRequest(id=project.id), owner)
    audits = [event.data for event in await published() if event.type == "audit.recorded"]
    assert [(audit["action"].rpartition("/")[2], audit["resource_id"]) for audit in audits] == [
        ("CreateProject", project.id),
        ("CreateApiKey", key.id),
        ("DeleteApiKey", key.id),
        ("DeleteProject", project.id),
    ]
    assert {audit["org_id"] for audit in audits} == {str(org_id)}


async def test_a_stale_if_match_changes_nothing(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    project = await created(served, owner, org_id)
    rename = pb.UpdateProjectRequest(id=project.id, name="Newer")
    assert (await call(served, "UpdateProject", rename, owner, if_match=1)).etag == 2
    for method, request in (
        ("UpdateProject", pb.UpdateProjectRequest(id=project.id, name="Older")),
        ("DeleteProject", pb.DeleteProjectRequest(id=project.id)),
    ):
        with pytest.raises(PreconditionFailed):
            await call(served, method, request, owner, if_match=1)


async def test_projects_are_listed_by_organization_or_over_all_that_the_caller_may_read(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    second, foreign = uuid4(), uuid4()
    served.access.grant(owner, second, "viewer")
    other = a_user()
    for org in (second, foreign):
        served.access.grant(other, org, "owner")
    mine = (await created(served, owner, org_id)).id
    shared = (await created(served, other, second)).id
    await created(served, other, foreign)
    assert await listed(served, owner) == sorted([mine, shared])
    assert await listed(served, owner, org_id=str(org_id)) == [mine]
    with pytest.raises(NotFound):
        await listed(served, owner, org_id=str(foreign))
    assert await listed(served, a_user()) == []


async def test_a_list_leaves_out_organizations_where_the_role_permits_no_projects(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    billed = uuid4()
    served.access.grant(owner, billed, "billing")
    other = a_user()
    served.access.grant(other, billed, "owner")
    await created(served, other, billed)
    mine = await created(served, owner, org_id)
    assert await listed(served, owner) == [mine.id]
    with pytest.raises(PermissionDenied):
        await listed(served, owner, org_id=str(billed))


async def test_pages_hold_every_project_once(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    made = [(await created(served, owner, org_id)).id for _ in range(5)]
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListProjectsRequest(page_size=2, page_token=token)
        page = (await call(served, "ListProjects", request, owner)).message
        found += [project.id for project in page.projects]
        if not page.HasField("next_page_token"):
            break
        token = page.next_page_token
    assert found == made


async def test_a_project_of_a_deleted_organization_cannot_be_made(
    served: Served,
    owner: Principal,
    org_id: UUID,
    database: Database,
    projects: ProjectActions,
) -> None:
    await created(served, owner, org_id)
    async with database.change(Scope((org_id,)), call=None) as change:
        await projects.remove_org(change, org_id)
    with pytest.raises(Conflict):
        await created(served, owner, org_id)
    assert await listed(served, owner) == []


NEEDS = {
    "CreateProject": "project:write",
    "ListProjects": "project:read",
    "GetProject": "project:read",
    "UpdateProject": "project:write",
    "DeleteProject": "project:delete",
    "CreateApiKey": "api_key:write",
    "ListApiKeys": "api_key:read",
    "DeleteApiKey": "api_key:write",
}


@pytest.mark.parametrize("role", list(ROLES))
@pytest.mark.parametrize("method", list(NEEDS))
async def test_each_role_may_what_the_table_says(
    served: Served, owner: Principal, org_id: UUID, role: str, method: str
) -> None:
    project_id, key_id = await with_key(served, owner, org_id)
    actor = a_user()
    served.access.grant(actor, org_id, role)
    request = requests(org_id, project_id, key_id)[method]
    if NEEDS[method] in ROLES[role]:
        await call(served, method, request, actor)
    else:
        with pytest.raises(PermissionDenied):
            await call(served, method, request, actor)


@pytest.mark.parametrize("method", list(NEEDS))
async def test_a_stranger_learns_nothing_of_a_project(
    served: Served, owner: Principal, org_id: UUID, method: str
) -> None:
    project_id, key_id = await with_key(served, owner, org_id)
    stranger = a_user()
    served.access.grant(stranger, uuid4(), "owner")
    errors = []
    for request in (
        requests(org_id, project_id, key_id)[method],
        requests(uuid4(), str(uuid4()), str(uuid4()))[method],
    ):
        with pytest.raises(NotFound) as refused:
            await call(served, method, request, stranger)
        errors.append((refused.value.code, refused.value.detail))
    assert errors[0] == errors[1]


class Forgetful(FakeAccess):
    """Knows of a caller's roles only when it asks anew."""

    asked = 0

    async def resolve(self, *args: Any, anew: bool = False, **more: Any) -> Any:
        self.asked += anew
        return await super().resolve(*args, anew=anew, **more) if anew else {}


async def test_who_has_just_joined_finds_the_projects_and_who_has_not_does_not(
    database: Database, projects: ProjectActions, auth: Auth, org_id: UUID
) -> None:
    access = Forgetful()
    servicer = ProjectServicer(projects, KeyActions(database, auth, projects))
    project = await projects.create(org_id, "Search", None, lambda _change, made: made)
    joined, stranger = a_user(), a_user()
    access.grant(joined, org_id, "member")
    async with serve([(SERVICE, servicer)], database=database, access=access) as late:
        request = pb.UpdateProjectRequest(id=str(project.id), name="Found")
        answer = await call(late, "UpdateProject", request, joined)
        assert answer.message.project.name == "Found"
        with pytest.raises(NotFound):
            await call(late, "UpdateProject", request, stranger)
    assert access.asked == 2


async def test_a_projects_key_sees_its_own_project_and_changes_nothing(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    own, other = [(await created(served, owner, org_id)).id for _ in range(2)]
    key = a_project_key(org_id, UUID(own), ["project:read", "events:write"])
    assert await listed(served, key) == [own]
    assert await listed(served, key, org_id=str(org_id)) == [own]
    await call(served, "GetProject", pb.GetProjectRequest(id=own), key)
    with pytest.raises(NotFound):
        await call(served, "GetProject", pb.GetProjectRequest(id=other), key)
    for method, request in requests(org_id, own, str(uuid4())).items():
        if NEEDS[method] != "project:read":
            with pytest.raises(PermissionDenied):
                await call(served, method, request, key)


async def test_services_resolve_projects_of_everyone(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    project = await created(served, owner, org_id)
    request = pb.ResolveProjectsRequest(ids=[project.id, str(uuid4())])
    for who in (ANONYMOUS, a_user()):
        answer = await call(served, "ResolveProjects", request, who, caller="usage_tracker")
        (found,) = answer.message.projects
        assert (found.id, found.org_id, found.HasField("team_id")) == (
            project.id,
            str(org_id),
            False,
        )


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "x" * 201])
async def test_a_name_must_be_one(
    served: Served, owner: Principal, org_id: UUID, name: str
) -> None:
    project = await created(served, owner, org_id)
    for method, request in (
        ("CreateProject", pb.CreateProjectRequest(org_id=str(org_id), name=name)),
        ("UpdateProject", pb.UpdateProjectRequest(id=project.id, name=name)),
        ("CreateApiKey", pb.CreateApiKeyRequest(project_id=project.id, name=name)),
    ):
        with pytest.raises(Invalid) as refused:
            await call(served, method, request, owner)
        assert [field.pointer for field in refused.value.fields] == ["/name"]


async def test_without_a_credential_nothing_is_done(served: Served, org_id: UUID) -> None:
    for method, request in requests(org_id, str(uuid4()), str(uuid4())).items():
        with pytest.raises(Unauthenticated):
            await call(served, method, request, ANONYMOUS)
