"""What a caller of the gateway sees."""

from __future__ import annotations

import pytest

from mindweave.account.v1.account_pb2 import CreateOrgResponse, Org
from tests.gateway.conftest import Platform

pytestmark = pytest.mark.rpc


async def test_a_created_organization_is_answered_with_201_and_every_field(
    platform: Platform,
) -> None:
    org = Org(id="0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11", name="Research", slug="research")
    org.created_at.FromJsonString("2026-03-01T09:30:00.25Z")
    platform.services["account"].replies["CreateOrg"] = CreateOrgResponse(org=org)
    answer = await platform.http.post("/orgs", json={"name": "Research"}, headers=platform.auth)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {
        "id": "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11",
        "name": "Research",
        "slug": "research",
        "created_at": "2026-03-01T09:30:00.250Z",
        "updated_at": None,
    }
