"""AccountService behind the kit's real gRPC server, with team's real servicer beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from common.clock import SystemClock
from common.database import Database
from common.errors import (
    Invalid,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from common.identity.call import ANONYMOUS, Principal
from common.identity.permissions import ROLES
from common.rpc.client import Answer
from common.testing import FakeAccess, Served, a_project_key, a_user, a_user_key, serve
from mindweave.account.v1 import account_pb2 as pb
from mindweave.team.v1.team_pb2 import ResolveAccessRequest
from mindweave.team.v1.team_pb2_grpc import TeamServiceStub
from services.account.actions import OrgActions
from services.account.rpc import AccountServicer
from services.team.actions import MemberActions
from services.team.rpc import TeamServicer
from tests.conftest import Published

pytestmark = pytest.mark.rpc

SERVICE = "/mindweave.account.v1.AccountService/"


class Later:
    """A stub that is known once the server runs; ``down`` stands for a team that is away."""

    target: Any = None
    down = False

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any) -> Any:
            if self.down:
                raise Unavailable("team is down")
            return await getattr(self.target, name)(request)

        return call


@pytest.fixture(scope="module")
async def team_database(service_database: Callable[..., Awaitable[Any]]) -> Database:
    made: Database = await service_database("team")
    return made


@pytest.fixture
def away() -> Later:
    return Later()


@pytest.fixture
async def served(database: Database, team_database: Database, away: Later) -> AsyncIterator[Served]:
    access = FakeAccess()
    clock = SystemClock()
    actions = OrgActions(database, away, clock)
    members = MemberActions(team_database, Later(), clock)
    servicers = [
        ("mindweave.account.v1.AccountService", AccountServicer(actions, access)),
        ("mindweave.team.v1.TeamService", TeamServicer(members)),
    ]
    async with serve(servicers, database=database, access=access) as running:
        away.target = TeamServiceStub(running.channel("team", "account"))
        yield running


async def call(served: Served, method: str, request: Any, who: Principal, **more: Any) -> Answer:
    return await served.invoke(SERVICE + method, request, who, **more)


async def created(served: Served, who: Principal, name: str = "Acme", **more: Any) -> pb.Org:
    answer = await call(served, "CreateOrg", pb.CreateOrgRequest(name=name), who, **more)
    org: pb.Org = answer.message.org
    served.access.grant(who, UUID(org.id), "owner")
    return org


async def access(served: Served, who: Principal) -> dict[str, str]:
    answer = await served.invoke(
        "/mindweave.team.v1.TeamService/ResolveAccess", ResolveAccessRequest(), who
    )
    return {found.org_id: found.role for found in answer.message.access}


async def test_the_creator_is_the_owner_and_reads_what_was_made(served: Served) -> None:
    ada = a_user()
    answer = await call(served, "CreateOrg", pb.CreateOrgRequest(name="  Acme "), ada)
    org = answer.message.org
    assert (org.name, org.slug.startswith("acme"), answer.etag) == ("Acme", True, 1)
    assert org.HasField("created_at")
    assert org.HasField("updated_at")
    assert await access(served, ada) == {org.id: "owner"}
    assert (ada.user_id, None) in served.access.evicted
    served.access.grant(ada, UUID(org.id), "owner")
    read = await call(served, "GetOrg", pb.GetOrgRequest(id=org.id), ada)
    assert (read.message.org, read.etag) == (org, 1)
    listed = await call(served, "ListOrgs", pb.ListOrgsRequest(), ada)
    assert list(listed.message.orgs) == [org]
    assert not listed.message.HasField("next_page_token")


async def test_a_user_in_no_organization_lists_none(served: Served) -> None:
    await created(served, a_user())
    listed = await call(served, "ListOrgs", pb.ListOrgsRequest(), a_user())
    assert list(listed.message.orgs) == []


async def test_a_repeat_with_its_key_is_answered_alike_and_with_another_body_refused(
    served: Served, published: Published
) -> None:
    ada = a_user()
    first = await call(
        served, "CreateOrg", pb.CreateOrgRequest(name="Acme"), ada, idempotency_key="k"
    )
    again = await call(
        served, "CreateOrg", pb.CreateOrgRequest(name="Acme"), ada, idempotency_key="k"
    )
    assert (again.message, again.etag, again.replayed) == (first.message, first.etag, True)
    assert not first.replayed
    with pytest.raises(Invalid) as refused:
        await call(served, "CreateOrg", pb.CreateOrgRequest(name="Other"), ada, idempotency_key="k")
    assert refused.value.code == "idempotency_key_reused"
    assert len(await access(served, ada)) == 1
    assert [event.type for event in await published()] == ["org.created", "audit.recorded"]


async def test_a_creation_that_team_cut_short_is_resumed_with_its_key_only(
    served: Served, away: Later, published: Published
) -> None:
    ada = a_user()
    away.down = True
    with pytest.raises(Unavailable):
        await created(served, ada, idempotency_key="k")
    away.down = False
    with pytest.raises(Invalid):
        await created(served, ada, "Other", idempotency_key="k")
    org = await created(served, ada, idempotency_key="k")
    assert await access(served, ada) == {org.id: "owner"}
    assert [event.type for event in await published()] == ["org.created", "audit.recorded"]


async def test_what_was_done_is_audited_with_its_organization(
    served: Served, published: Published
) -> None:
    ada = a_user()
    org = await created(served, ada)
    await call(served, "DeleteOrg", pb.DeleteOrgRequest(id=org.id), ada)
    audits = [event.data for event in await published() if event.type == "audit.recorded"]
    assert [(a["action"].rpartition("/")[2], a["org_id"], a["resource_id"]) for a in audits] == [
        ("CreateOrg", org.id, org.id),
        ("DeleteOrg", org.id, org.id),
    ]
    assert {a["actor_id"] for a in audits} == {str(ada.user_id)}


async def test_a_deleted_organization_is_closed_in_team(served: Served) -> None:
    ada = a_user()
    org = await created(served, ada)
    await call(served, "DeleteOrg", pb.DeleteOrgRequest(id=org.id), ada)
    assert await access(served, ada) == {}
    with pytest.raises(NotFound):
        await call(served, "GetOrg", pb.GetOrgRequest(id=org.id), ada)


async def test_while_team_is_down_an_organization_is_not_deleted(
    served: Served, away: Later
) -> None:
    ada = a_user()
    org = await created(served, ada)
    away.down = True
    with pytest.raises(Unavailable):
        await call(served, "DeleteOrg", pb.DeleteOrgRequest(id=org.id), ada)
    away.down = False
    await call(served, "DeleteOrg", pb.DeleteOrgRequest(id=org.id), ada)
    assert await access(served, ada) == {}


async def test_a_stale_if_match_changes_nothing(served: Served) -> None:
    ada = a_user()
    org = await created(served, ada)
    renamed = await call(
        served, "UpdateOrg", pb.UpdateOrgRequest(id=org.id, name="Newer"), ada, if_match=1
    )
    assert (renamed.message.org.name, renamed.message.org.slug) == ("Newer", org.slug)
    assert renamed.etag == 2
    for method, request in (
        ("UpdateOrg", pb.UpdateOrgRequest(id=org.id, name="Older")),
        ("DeleteOrg", pb.DeleteOrgRequest(id=org.id)),
    ):
        with pytest.raises(PreconditionFailed):
            await call(served, method, request, ada, if_match=1)
    read = await call(served, "GetOrg", pb.GetOrgRequest(id=org.id), ada)
    assert read.message.org.name == "Newer"


async def test_a_patch_without_fields_changes_nothing(served: Served) -> None:
    ada = a_user()
    org = await created(served, ada)
    answer = await call(
        served, "UpdateOrg", pb.UpdateOrgRequest(id=org.id, update_mask=FieldMask()), ada
    )
    assert (answer.message.org, answer.etag) == (org, 1)


@pytest.mark.parametrize("name", ["", "   ", "a\x00b", "x" * 201])
async def test_a_name_must_be_one(served: Served, name: str) -> None:
    ada = a_user()
    org = await created(served, ada)
    for method, request in (
        ("CreateOrg", pb.CreateOrgRequest(name=name)),
        ("UpdateOrg", pb.UpdateOrgRequest(id=org.id, name=name)),
    ):
        with pytest.raises(Invalid) as refused:
            await call(served, method, request, ada)
        assert [field.pointer for field in refused.value.fields] == ["/name"]


async def test_a_forged_page_token_is_refused(served: Served) -> None:
    for token in ("x", "WyJub3QtYS11dWlkIl0"):
        with pytest.raises(Invalid) as refused:
            await call(served, "ListOrgs", pb.ListOrgsRequest(page_token=token), a_user())
        assert refused.value.fields[0].pointer == "/page_token"


async def test_pages_hold_every_organization_once(served: Served) -> None:
    ada = a_user()
    made = [(await created(served, ada, f"Org {n}")).id for n in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = (
            await call(served, "ListOrgs", pb.ListOrgsRequest(page_size=2, page_token=token), ada)
        ).message
        found += [org.id for org in page.orgs]
        if not page.HasField("next_page_token"):
            break
        token = page.next_page_token
    assert found == sorted(made)


def requests(org_id: str) -> dict[str, Any]:
    return {
        "GetOrg": pb.GetOrgRequest(id=org_id),
        "UpdateOrg": pb.UpdateOrgRequest(id=org_id, name="Mine"),
        "DeleteOrg": pb.DeleteOrgRequest(id=org_id),
    }


NEEDS = {"GetOrg": "org:read", "UpdateOrg": "org:write", "DeleteOrg": "org:delete"}


@pytest.mark.parametrize("role", list(ROLES))
@pytest.mark.parametrize("method", list(NEEDS))
async def test_each_role_may_what_the_table_says(served: Served, role: str, method: str) -> None:
    org = await created(served, a_user())
    bob = a_user()
    served.access.grant(bob, UUID(org.id), role)
    request = requests(org.id)[method]
    if NEEDS[method] in ROLES[role]:
        await call(served, method, request, bob)
    else:
        with pytest.raises(PermissionDenied):
            await call(served, method, request, bob)


@pytest.mark.parametrize("method", list(NEEDS))
async def test_a_stranger_learns_nothing_of_an_organization(served: Served, method: str) -> None:
    org = await created(served, a_user())
    stranger = a_user()
    await created(served, stranger)

    async def refusal(org_id: str) -> MindWeaveError:
        with pytest.raises(NotFound) as refused:
            await call(served, method, requests(org_id)[method], stranger)
        return refused.value

    there, nowhere = await refusal(org.id), await refusal(str(uuid4()))
    assert (there.code, there.detail) == (nowhere.code, nowhere.detail)


async def test_keys_reach_what_their_scopes_name(served: Served) -> None:
    ada = a_user()
    org = await created(served, ada)
    assert ada.user_id is not None
    narrow = a_user_key(ada.user_id, ["analytics:read"])
    reading = a_user_key(ada.user_id, ["org:read", "org:create"])
    for key in (narrow, reading):
        served.access.grant(key, UUID(org.id), "owner")
    with pytest.raises(PermissionDenied):
        await created(served, narrow)
    with pytest.raises(PermissionDenied):
        await call(served, "ListOrgs", pb.ListOrgsRequest(), narrow)
    listed = await call(served, "ListOrgs", pb.ListOrgsRequest(), reading)
    assert [one.id for one in listed.message.orgs] == [org.id]
    with pytest.raises(PermissionDenied):
        await call(served, "DeleteOrg", pb.DeleteOrgRequest(id=org.id), reading)
    second = await created(served, reading, "Second")
    assert (await access(served, ada))[second.id] == "owner"
    project_key = a_project_key(UUID(org.id), uuid4(), ["events:write"])
    with pytest.raises(PermissionDenied):
        await created(served, project_key)


async def test_without_a_credential_nothing_is_done(served: Served) -> None:
    for method, request in (
        ("CreateOrg", pb.CreateOrgRequest(name="Acme")),
        ("ListOrgs", pb.ListOrgsRequest()),
        *requests(str(uuid4())).items(),
    ):
        with pytest.raises(Unauthenticated):
            await call(served, method, request, ANONYMOUS)
