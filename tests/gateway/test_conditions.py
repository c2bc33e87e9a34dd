"""ETag, If-Match and Idempotency-Key at the gateway."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from common.errors import PreconditionFailed
from common.identity.call import current_call
from mindweave.account.v1.account_pb2 import (
    GetOrgResponse,
    Org,
    UpdateOrgResponse,
)
from tests.gateway.conftest import Platform

pytestmark = pytest.mark.rpc

ORG = "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11"


async def test_an_etag_comes_with_what_has_a_version(platform: Platform) -> None:
    platform.served.access.grant(platform.user, UUID(ORG), "owner")
    account = platform.services["account"]
    account.replies["GetOrg"] = GetOrgResponse(org=Org(id=ORG))
    account.etags["GetOrg"] = 3
    answer = await platform.http.get(f"/orgs/{ORG}", headers=platform.auth)
    assert answer.headers["etag"] == '"3"'
    assert "etag" not in (await platform.http.get("/orgs", headers=platform.auth)).headers


async def patched(platform: Platform, if_match: str) -> tuple[httpx.Response, list[int | None]]:
    """A PATCH of an organization whose version is 3, and the versions that were asked for."""
    tried: list[int | None] = []

    def update(_: Any) -> UpdateOrgResponse:
        wanted = current_call().if_match
        tried.append(wanted)
        if wanted not in (None, 3):
            raise PreconditionFailed
        return UpdateOrgResponse(org=Org(id=ORG))

    platform.served.access.grant(platform.user, UUID(ORG), "owner")
    platform.services["account"].replies["UpdateOrg"] = update
    answer = await platform.http.patch(
        f"/orgs/{ORG}", json={"name": "New"}, headers=platform.auth | {"If-Match": if_match}
    )
    return answer, tried


@pytest.mark.parametrize(
    ("if_match", "status", "tried"),
    [
        ('"3"', 200, [3]),
        ("*", 200, [None]),
        ('"2"', 412, [2]),
        ('W/"3"', 412, [0]),
        ('"abc"', 412, [0]),
        ('"2", "3"', 200, [3]),
        ('"3", "4", W/"5"', 200, [4, 3]),
        ('"1", "2"', 412, [2, 1]),
        ("3", 422, []),
        ("", 422, []),
    ],
)
async def test_if_match_is_heeded_in_all_its_forms(
    platform: Platform, if_match: str, status: int, tried: list[int | None]
) -> None:
    answer, versions = await patched(platform, if_match)
    assert (answer.status_code, versions) == (status, tried)


async def test_what_has_no_etag_meets_no_condition(platform: Platform) -> None:
    url = f"/auth/api-keys/{uuid4()}"
    answer = await platform.http.delete(url, headers=platform.auth | {"If-Match": '"1"'})
    assert answer.status_code == 412
    answer = await platform.http.delete(url, headers=platform.auth | {"If-Match": "*"})
    assert answer.status_code == 204


async def test_an_idempotency_key_reaches_the_service_that_owns_the_row(
    platform: Platform,
) -> None:
    headers = platform.auth | {"Idempotency-Key": "order-7"}
    await platform.http.post("/orgs", json={"name": "A"}, headers=headers)
    await platform.http.post("/orgs", json={"name": "A"}, headers=platform.auth)
    keys = [told["idempotency-key"] for told in platform.services["account"].told]
    assert keys[0] == "order-7"
    assert keys[1] not in ("", "order-7")


async def test_an_answer_that_was_given_before_says_so(platform: Platform) -> None:
    platform.services["account"].replayed.add("CreateOrg")
    headers = platform.auth | {"Idempotency-Key": "order-8"}
    answer = await platform.http.post("/orgs", json={"name": "A"}, headers=headers)
    assert answer.headers["idempotent-replayed"] == "true"
