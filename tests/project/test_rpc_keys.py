"""The API keys of projects behind the kit's real gRPC server."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from common.clock import SystemClock
from common.errors import (
    Invalid,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from common.identity.call import Principal
from common.rpc.fields import timestamp
from common.testing import Served, a_user_key
from mindweave.project.v1 import project_pb2 as pb
from tests.project.conftest import Auth, call, created, requests, with_key

pytestmark = pytest.mark.rpc


async def test_a_key_is_shown_once_and_has_the_default_scope(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    project = await created(served, owner, org_id)
    request = pb.CreateApiKeyRequest(project_id=project.id, name=" CI ")
    answer = await call(served, "CreateApiKey", request, owner, idempotency_key="k")
    made = answer.message.api_key
    assert (made.name, made.key, list(made.scopes)) == ("CI", "mwp_secret", ["events:write"])
    assert not made.HasField("expires_at")
    again = await call(served, "CreateApiKey", request, owner, idempotency_key="k")
    assert (again.message, again.replayed) == (answer.message, True)
    page = await call(served, "ListApiKeys", pb.ListApiKeysRequest(project_id=project.id), owner)
    assert [key.id for key in page.message.api_keys] == [made.id]
    assert not page.message.HasField("next_page_token")


async def test_a_key_takes_scopes_and_an_end_and_pages_are_auths(
    served: Served, owner: Principal, org_id: UUID
) -> None:
    project = await created(served, owner, org_id)
    end = timestamp(SystemClock().now() + timedelta(days=1))
    request = pb.CreateApiKeyRequest(
        project_id=project.id, name="CI", scopes=["analytics:read"], expires_at=end
    )
    made = (await call(served, "CreateApiKey", request, owner)).message.api_key
    assert (list(made.scopes), made.expires_at) == (["analytics:read"], end)
    await call(served, "CreateApiKey", request, owner)
    page = await call(
        served,
        "ListApiKeys",
        pb.ListApiKeysRequest(project_id=project.id, page_size=1),
        owner,
    )
    assert (len(page.message.api_keys), page.message.next_page_token) == (1, "next")


async def test_a_key_gets_no_scope_beyond_its_project_or_its_creator(
    served: Served, owner: Principal, org_id: UUID, auth: Auth
) -> None:
    project = await created(served, owner, org_id)
    wide = pb.CreateApiKeyRequest(
        project_id=project.id, name="CI", scopes=["events:write", "org:delete", "nonsense"]
    )
    with pytest.raises(Invalid) as refused:
        await call(served, "CreateApiKey", wide, owner)
    assert [field.pointer for field in refused.value.fields] == ["/scopes/1", "/scopes/2"]
    assert owner.user_id is not None
    narrow = a_user_key(owner.user_id, ["api_key:write"])
    served.access.grant(narrow, org_id, "owner")
    with pytest.raises(PermissionDenied) as denied:
        await call(
            served,
            "CreateApiKey",
            pb.CreateApiKeyRequest(project_id=project.id, name="CI"),
            narrow,
        )
    assert denied.value.code == "scope_beyond_caller"
    assert auth.keys == {}


async def test_a_key_of_another_project_is_not_revoked(
    served: Served, owner: Principal, org_id: UUID, auth: Auth
) -> None:
    _, key_id = await with_key(served, owner, org_id)
    other = await created(served, owner, org_id)
    with pytest.raises(NotFound):
        await call(
            served,
            "DeleteApiKey",
            pb.DeleteApiKeyRequest(project_id=other.id, key_id=key_id),
            owner,
        )
    assert key_id in auth.keys


async def test_without_auth_keys_are_not_available(
    served: Served, owner: Principal, org_id: UUID, auth: Auth
) -> None:
    project_id, key_id = await with_key(served, owner, org_id)
    auth.down = True
    for method in ("CreateApiKey", "ListApiKeys", "DeleteApiKey"):
        with pytest.raises(Unavailable):
            await call(served, method, requests(org_id, project_id, key_id)[method], owner)
