"""Credentials, limits, methods, origins and health at the edge."""

from __future__ import annotations

from uuid import uuid4

import pytest

from common.errors import (
    NotFound,
    RateLimited,
    Unavailable,
)
from common.http.health import PartHealth, ServiceHealth
from common.identity.api_keys import new_secret
from common.identity.call import Principal
from common.rpc.contract import operations
from common.testing import a_user, a_user_key
from mindweave.auth.v1.auth_pb2 import LoginResponse
from tests.gateway.conftest import Platform, running

pytestmark = pytest.mark.rpc

ORG = "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11"
WHOLE = {"email": "user@example.com", "password": "p" * 20, "display_name": "A User"}


def path_of(template: str) -> str:
    return "/".join(str(uuid4()) if part[:1] == "{" else part for part in template.split("/"))


PUBLIC = {
    "POST /auth/register",
    "POST /auth/login",
    "POST /auth/refresh",
    "GET /.well-known/jwks.json",
    "GET /v1/health",
}


async def test_these_routes_alone_need_no_credential(platform: Platform) -> None:
    routed = [o for o in operations().values() if o.route is not None]
    assert {f"{o.route.verb} {o.route.template}" for o in routed if o.public and o.route} == PUBLIC
    for operation in routed:
        if operation.route is None or operation.raw:
            continue
        answer = await platform.http.request(
            operation.route.verb, path_of(operation.route.template)
        )
        assert (answer.status_code == 401) == (not operation.public), operation.name


async def test_a_public_route_does_not_judge_a_credential(platform: Platform) -> None:
    platform.services["auth"].replies["Login"] = LoginResponse(token_type="Bearer")
    answer = await platform.http.post(
        "/auth/login",
        json={"email": "a@example.com", "password": "p"},
        headers={"Authorization": "Bearer expired"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Basic dTpw")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer x.y.z")],
        [("Authorization", "Bearer mwu_short")],
        [("Authorization", "Bearer mwu_unknownunknownunknown")],
        [("X-API-Key", "mwp_unknownunknownunknown")],
        [("X-API-Key", new_secret("user"))],
        [("X-API-Key", "x")],
        [("X-API-Key", "")],
    ],
)
async def test_a_credential_that_is_not_valid_is_a_401(
    platform: Platform, headers: list[tuple[str, str]]
) -> None:
    answer = await platform.http.get("/auth/me", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["ratelimit"]


async def test_two_credentials_are_a_401(platform: Platform) -> None:
    fields = [*platform.auth.items(), ("X-API-Key", "mwu_" + "a" * 20)]
    assert (await platform.http.get("/auth/me", headers=fields)).status_code == 401
    twice = [*platform.auth.items(), *platform.auth.items()]
    assert (await platform.http.get("/auth/me", headers=twice)).status_code == 401


async def test_a_session_that_has_ended_is_a_401(platform: Platform) -> None:
    platform.services["auth"].replies["CheckSession"] = NotFound()
    token = platform.token(a_user())
    answer = await platform.http.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert answer.json()["code"] == "session_ended"


async def test_a_session_that_was_just_logged_out_is_not_remembered(platform: Platform) -> None:
    headers = {"Authorization": f"Bearer {platform.token(a_user())}"}
    assert (await platform.http.get("/auth/me", headers=headers)).status_code == 200
    assert (await platform.http.post("/auth/logout", headers=headers)).status_code == 204
    platform.services["auth"].replies["CheckSession"] = NotFound()
    assert (await platform.http.get("/auth/me", headers=headers)).status_code == 401


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
async def test_an_api_key_is_taken_in_both_fields(platform: Platform, header: str) -> None:
    key = new_secret("user")
    platform.api_keys[key] = a_user_key(uuid4(), ["org:read"])
    value = key if header == "X-API-Key" else f"bearer  {key}"
    answer = await platform.http.get("/orgs", headers={header: value})
    assert answer.status_code == 200, answer.text
    call = platform.services["account"].asked[-1][2]
    assert call.principal.kind == "user_key"
    assert call.principal.api_key_id == platform.api_keys[key].api_key_id


async def test_a_token_that_is_no_access_token_of_a_user_is_a_401(platform: Platform) -> None:
    for principal in (Principal("service", service="account"), a_user_key(uuid4(), ["org:read"])):
        token = platform.token(principal)
        answer = await platform.http.get("/orgs", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/orgs", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/orgs", "GET, HEAD, OPTIONS, POST"),
        ("POST", f"/orgs/{ORG}", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/auth/login", "OPTIONS, POST"),
        ("POST", "/docs", "GET, HEAD, OPTIONS"),
        ("TRACE", "/auth/login", "OPTIONS, POST"),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_a_405_with_allow(
    platform: Platform, method: str, path: str, allow: str
) -> None:
    answer = await platform.http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert answer.json()["code"] == "method_not_allowed"
    asked = await platform.http.options(path)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allow, b"")


async def test_head_is_get_without_the_body(platform: Platform) -> None:
    get = await platform.http.get("/orgs", headers=platform.auth)
    head = await platform.http.head("/orgs", headers=platform.auth)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert (await platform.http.head("/orgs")).status_code == 401


async def test_browsers_of_other_origins_are_not_let_in(platform: Platform) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    for answer in (
        await platform.http.options("/orgs", headers=headers),
        await platform.http.get("/orgs", headers=platform.auth | headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_an_origin_that_the_settings_name_is_let_in() -> None:
    async with running(cors_origins=["https://app.example"]) as platform:
        headers = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization, if-match",
        }
        preflight = await platform.http.options("/auth/me", headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        answer = await platform.http.get(
            "/orgs", headers=platform.auth | {"Origin": "https://app.example"}
        )
        assert "ETag" in answer.headers["access-control-expose-headers"]
        other = await platform.http.get("/orgs", headers={"Origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_every_answer_of_a_limited_route_tells_the_limit(platform: Platform) -> None:
    for answer in (
        await platform.http.get("/orgs", headers=platform.auth),
        await platform.http.get("/orgs?x=1", headers=platform.auth),
        await platform.http.get("/orgs"),
        await platform.http.get("/openapi.json"),
    ):
        assert answer.headers["ratelimit-policy"] == '"requests";q=2000;w=1'
        assert answer.headers["ratelimit"].startswith('"requests";r=')
        assert answer.headers["x-ratelimit-limit"] == "2000"
        assert int(answer.headers["x-ratelimit-remaining"]) < 2000
        assert answer.headers["x-ratelimit-reset"] == "1"
    assert "ratelimit" not in (await platform.http.get("/health/live")).headers


async def test_too_many_requests_of_a_credential_are_a_429_with_retry_after() -> None:
    async with running(limits={"requests_per_second": 3}) as platform:
        answers = [await platform.http.get("/orgs", headers=platform.auth) for _ in range(12)]
        limited = [a for a in answers if a.status_code == 429]
        assert limited
        assert limited[0].headers["retry-after"] == "1"
        assert limited[0].headers["x-ratelimit-remaining"] == "0"
        assert limited[0].json()["code"] == "rate_limited"
        other = {"Authorization": f"Bearer {platform.token(a_user())}"}
        assert (await platform.http.get("/orgs", headers=other)).status_code == 200


async def test_an_address_that_shows_unknown_keys_is_refused_before_auth_is_asked() -> None:
    async with running(limits={"failed_credentials_per_minute": 3}) as platform:

        async def shown(key: str) -> int:
            answer = await platform.http.get("/orgs", headers={"X-API-Key": key})
            return answer.status_code

        def asked() -> int:
            return sum(m == "ExchangeApiKey" for m, *_ in platform.services["auth"].asked)

        assert (await platform.http.get("/orgs", headers=platform.auth)).status_code == 200
        repeated = new_secret("user")
        assert [await shown(repeated) for _ in range(10)] == [401] * 10
        assert [await shown(f"mwu_{n:038}") for n in range(10)] == [401] * 10
        assert asked() == 1
        assert [await shown(new_secret("user")) for _ in range(5)] == [401] * 2 + [429] * 3
        assert asked() == 3
        limited = await platform.http.get("/orgs", headers={"X-API-Key": new_secret("user")})
        assert limited.headers["ratelimit-policy"] == '"failed-credentials";q=3;w=60'
        assert 0 < int(limited.headers["retry-after"]) <= 60
        # Who is known from before is served on.
        assert (await platform.http.get("/orgs", headers=platform.auth)).status_code == 200


async def test_registrations_are_limited_by_address_and_shape_faults_do_not_count() -> None:
    async with running(limits={"registrations_per_minute": 2}) as platform:
        for _ in range(5):
            answer = await platform.http.post("/auth/register", json={"email": 5})
            assert answer.status_code == 422
        answers = [await platform.http.post("/auth/register", json=WHOLE) for _ in range(3)]
        assert [a.status_code for a in answers] == [201, 201, 429]
        assert answers[0].headers["ratelimit-policy"] == '"registrations";q=2;w=60'
        assert [a.headers["x-ratelimit-remaining"] for a in answers] == ["1", "0", "0"]
        assert 0 < int(answers[2].headers["retry-after"]) <= 60
        assert (await platform.http.get("/auth/me", headers=platform.auth)).status_code == 200


async def test_a_registration_that_auth_itself_limits_is_told_as_such(platform: Platform) -> None:
    platform.services["auth"].replies["Register"] = RateLimited(retry_after=40)
    answer = await platform.http.post("/auth/register", json=WHOLE)
    assert answer.status_code == 429
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers["x-ratelimit-reset"] == answer.headers["retry-after"] == "40"


async def test_health_tells_what_is_missing(platform: Platform) -> None:
    live = await platform.http.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    ready = await platform.http.get("/health/ready")
    assert ready.status_code == 200
    platform.health.append(
        ServiceHealth("team", False, "1.0", [PartHealth("database", False, "refused", 3)])
    )
    unready = await platform.http.get("/health/ready")
    platform.health.pop()
    assert unready.status_code == 503
    assert unready.headers["retry-after"] == "1"
    assert unready.json() == {
        "status": "unavailable",
        "services": [
            ready.json()["services"][0],
            {
                "name": "team",
                "ready": False,
                "version": "1.0",
                "parts": [{"name": "database", "ready": False, "detail": "refused", "lag": 3}],
            },
        ],
    }


async def test_a_service_that_is_down_is_a_503(platform: Platform) -> None:
    platform.services["auth"].replies["CheckSession"] = Unavailable()
    token = platform.token(a_user())
    answer = await platform.http.get("/orgs", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
