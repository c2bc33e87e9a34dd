"""What a caller of the gateway sees."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import (
    Conflict,
    DeadlineExceeded,
    FieldError,
    Invalid,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from common.testing import a_user
from mindweave.account.v1.account_pb2 import (
    CreateOrgResponse,
    Org,
)
from mindweave.analytics.v1.analytics_pb2 import GetUsageResponse, UsageTotals
from mindweave.auth.v1.auth_pb2 import RegisterResponse
from mindweave.project.v1.project_pb2 import Project, UpdateProjectResponse
from tests.gateway.conftest import Platform

pytestmark = pytest.mark.rpc

ORG = "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11"
PROJECT = "0199a3f4-0b52-7a19-8c33-51d2f6e9a004"
WHOLE = {"email": "user@example.com", "password": "p" * 20, "display_name": "A User"}


def asked(platform: Platform, service: str, method: str) -> list[Any]:
    return [request for name, request, _ in platform.services[service].asked if name == method]


async def test_a_created_organization_is_answered_with_201_and_every_field(
    platform: Platform,
) -> None:
    org = Org(id=ORG, name="Research", slug="research")
    org.created_at.FromJsonString("2026-03-01T09:30:00.25Z")
    platform.services["account"].replies["CreateOrg"] = CreateOrgResponse(org=org)
    answer = await platform.http.post("/orgs", json={"name": "Research"}, headers=platform.auth)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": ORG,
        "name": "Research",
        "slug": "research",
        "created_at": "2026-03-01T09:30:00.250Z",
        "updated_at": None,
    }


async def test_a_deletion_is_answered_with_204_and_no_body(platform: Platform) -> None:
    platform.served.access.grant(platform.user, UUID(ORG), "owner")
    answer = await platform.http.delete(f"/orgs/{ORG}", headers=platform.auth)
    assert (answer.status_code, answer.content) == (204, b"")
    assert asked(platform, "account", "DeleteOrg")[0].id == ORG


async def test_money_is_a_string_and_counts_are_numbers(platform: Platform) -> None:
    platform.served.access.grant(platform.user, UUID(ORG), "owner")
    platform.services["analytics"].replies["GetUsage"] = GetUsageResponse(
        granularity="all", totals=UsageTotals(events=2**53, cost_usd="0.001234500")
    )
    answer = await platform.http.get(
        f"/analytics/usage?org_id={ORG}&group_by=model,tool&granularity=all", headers=platform.auth
    )
    assert answer.status_code == 200
    assert '"events":9007199254740992' in answer.text
    assert answer.json()["totals"]["cost_usd"] == "0.001234500"
    assert answer.json()["rows"] == []
    assert answer.json()["fresh_until"] is None
    assert list(asked(platform, "analytics", "GetUsage")[0].group_by) == ["model", "tool"]


async def test_a_sum_beyond_what_json_numbers_hold_is_a_clear_error(platform: Platform) -> None:
    platform.services["analytics"].replies["GetUsage"] = GetUsageResponse(
        totals=UsageTotals(input_tokens=2**53 + 1)
    )
    answer = await platform.http.get("/analytics/usage", headers=platform.auth)
    assert answer.status_code == 422
    assert answer.json()["code"] == "number_too_large"
    assert "input_tokens" in answer.json()["detail"]


async def test_the_keys_of_a_patch_become_its_update_mask(platform: Platform) -> None:
    platform.services["project"].replies["UpdateProject"] = UpdateProjectResponse(
        project=Project(id=PROJECT)
    )
    for body, paths in (
        ({"name": "New", "team_id": None}, ["name", "team_id"]),
        ({"team_id": PROJECT}, ["team_id"]),
        ({}, []),
    ):
        answer = await platform.http.patch(f"/projects/{PROJECT}", json=body, headers=platform.auth)
        assert answer.status_code == 200, answer.text
        request = asked(platform, "project", "UpdateProject")[-1]
        assert list(request.update_mask.paths) == paths
        assert request.HasField("update_mask")
        assert request.HasField("team_id") == (body.get("team_id") is not None)


async def test_a_patch_cannot_clear_what_the_resource_always_has(platform: Platform) -> None:
    answer = await platform.http.patch(
        f"/projects/{PROJECT}", json={"name": None}, headers=platform.auth
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/name"


async def test_a_merge_patch_may_say_what_it_is(platform: Platform) -> None:
    for kind, status in (
        ("application/merge-patch+json", 200),
        ("application/json-patch+json", 415),
    ):
        answer = await platform.http.patch(
            "/auth/me",
            content=b'{"display_name": "A"}',
            headers=platform.auth | {"Content-Type": kind},
        )
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Unauthenticated(code="bad_password"), 401, None),
        (PermissionDenied(code="forbidden_here"), 403, None),
        (NotFound(code="org_not_found"), 404, None),
        (Conflict("The last owner stays.", code="last_owner"), 409, None),
        (PreconditionFailed(), 412, None),
        (Invalid(fields=[FieldError("/name", "blank", "must not be blank")]), 422, None),
        (RateLimited(retry_after=7.2), 429, "8"),
        (Unavailable(), 503, "1"),
        (Unavailable(code="bus_full", retry_after=3), 503, "3"),
        (DeadlineExceeded(), 504, None),
    ],
)
async def test_an_error_of_a_service_is_told_as_it_was_raised(
    platform: Platform, error: MindWeaveError, status: int, retry_after: str | None
) -> None:
    platform.services["account"].replies["ListOrgs"] = error
    answer = await platform.http.get(
        "/orgs", headers=platform.auth | {"X-Correlation-Id": "of-a-test"}
    )
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("retry-after") == retry_after
    assert answer.status_code == status
    assert answer.json() == {
        "type": f"urn:mindweave:problem:{error.code}",
        "title": error.title,
        "status": status,
        "detail": error.detail,
        "instance": "/orgs",
        "code": error.code,
        "errors": [
            {"pointer": f.pointer, "code": f.code, "message": f.message} for f in error.fields
        ],
        "correlation_id": "of-a-test",
    }


async def test_a_failure_inside_tells_nothing_but_the_correlation_id(platform: Platform) -> None:
    platform.services["account"].replies["ListOrgs"] = RuntimeError("password of the database")
    answer = await platform.http.get("/orgs", headers=platform.auth)
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "password" not in answer.text
    assert answer.json()["correlation_id"] == answer.headers["x-correlation-id"]


async def test_a_stranger_gets_the_same_404_as_for_what_does_not_exist(platform: Platform) -> None:
    stranger = {"Authorization": f"Bearer {platform.token(a_user())}"}
    answers = [await platform.http.get(f"/orgs/{org}", headers=stranger) for org in (ORG, uuid4())]
    assert [a.status_code for a in answers] == [404, 404]
    first, second = (
        {k: v for k, v in a.json().items() if k not in ("instance", "correlation_id")}
        for a in answers
    )
    assert first == second


async def test_requests_are_judged_in_the_order_of_the_contract(platform: Platform) -> None:
    """Each request has every fault that comes after the one it is refused for."""
    stranger = {"Authorization": f"Bearer {platform.token(a_user())}"}
    url = f"/orgs/{ORG}/members?x=1"
    bad = {"Content-Type": "text/plain", "If-Match": '"9"'}
    first = await platform.http.post(url, content=b"{", headers=bad)
    second = await platform.http.post(url, content=b"{", headers=bad | stranger)
    good = stranger | {"Content-Type": "application/json", "If-Match": '"9"'}
    third = await platform.http.post(url, content=b'{"x": 1}', headers=good)
    whole = json.dumps({"user_id": ORG, "role": "nobody"})
    fourth = await platform.http.post(
        f"/orgs/{ORG}/members",
        content=whole,
        headers=stranger | {"Content-Type": "application/json"},
    )
    fifth = await platform.http.post(
        f"/orgs/{ORG}/members", json={"user_id": ORG, "role": "owner"}, headers=stranger
    )
    statuses = [a.status_code for a in (first, second, third, fourth, fifth)]
    assert statuses == [401, 415, 422, 422, 404]
    assert platform.services["team"].asked == []


async def test_the_answer_carries_correlation_and_trace(platform: Platform) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await platform.http.get(
        "/orgs",
        headers=platform.auth
        | {"X-Correlation-Id": "order-7", "traceparent": f"00-{trace}-b7ad6b7169203331-01"},
    )
    assert answer.headers["x-correlation-id"] == "order-7"
    assert answer.headers["traceparent"].split("-")[1] == trace
    assert platform.services["account"].asked[-1][2].correlation_id == "order-7"
    fresh = await platform.http.get("/orgs", headers=platform.auth)
    assert UUID(fresh.headers["x-correlation-id"])


async def test_the_service_learns_the_address_and_the_program_of_the_caller(
    platform: Platform,
) -> None:
    platform.services["auth"].replies["Register"] = RegisterResponse()
    agent = (b"User-Agent", "tester/1 \xe9\x85".encode("latin-1"))
    answer = await platform.http.post("/auth/register", json=WHOLE, headers=[agent])
    assert answer.status_code == 201
    call = platform.services["auth"].asked[-1][2]
    assert (call.ip, call.user_agent) == ("127.0.0.1", "tester/1 ??")


async def test_answers_are_not_kept_or_guessed_at_by_browsers(platform: Platform) -> None:
    answer = await platform.http.get("/orgs", headers=platform.auth)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert "server" not in answer.headers
