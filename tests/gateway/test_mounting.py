"""Services' own handlers under the edge, and what the edge does for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from common.errors import Invalid
from common.http.app import RestApp, answer
from common.http.body import read_body
from common.http.problems import problem
from common.identity.api_keys import new_secret
from common.identity.call import Call, current_call, current_call_or_none
from common.testing import a_project_key
from tests.common.logs import capture_logs
from tests.gateway.conftest import Platform, running

pytestmark = pytest.mark.rpc

SERVICE = "/mindweave.usage_tracker.v1.UsageTrackerService"
EVENTS = f"{SERVICE}/SendEvents"
HEALTH = f"{SERVICE}/GetHealth"
JSON = {"Content-Type": "application/json"}


async def test_a_handler_of_a_service_learns_who_calls_and_what_for() -> None:
    calls: list[Call] = []

    async def send_events(request: Request) -> Response:
        calls.append(current_call())
        body = await read_body(request, limit=10_000_000)
        return answer({"bytes": len(body)}, 202)

    async with running(apps=[RestApp({EVENTS: send_events})]) as platform:
        key, org, project = new_secret("project"), uuid4(), uuid4()
        platform.api_keys[key] = a_project_key(org, project, ["events:write"])
        sent = await platform.http.post(
            "/v1/events",
            content=b" " * 2_000_000,
            headers={"X-API-Key": key, "Idempotency-Key": "k1", "X-Correlation-Id": "c1"} | JSON,
        )
        assert (sent.status_code, sent.json()) == (202, {"bytes": 2_000_000})
        assert sent.headers["ratelimit"]
        [call] = calls
        assert call.operation == EVENTS[1:]
        assert call.permission == "events:write"
        assert (call.principal.org_id, call.principal.project_id) == (org, project)
        assert (call.idempotency_key, call.correlation_id, call.ip) == ("k1", "c1", "127.0.0.1")
        assert call.deadline is not None
        unknown = await platform.http.post("/v1/events", content=b"{}", headers=JSON)
        assert unknown.status_code == 401
        assert len(calls) == 1


async def test_a_route_that_no_service_of_the_process_answers_is_a_404(platform: Platform) -> None:
    assert (await platform.http.post("/v1/events")).status_code == 404


async def test_a_public_handler_is_called_by_anybody() -> None:
    async def health(_: Request) -> Response:
        return answer({"status": current_call().principal.kind})

    async def page(_: Request) -> Response:
        return answer({"call": current_call_or_none()})

    app = RestApp({HEALTH: health}, pages={"/about": page})
    async with running(apps=[app]) as platform:
        assert (await platform.http.get("/v1/health")).json() == {"status": "anonymous"}
        assert (await platform.http.get("/about")).json() == {"call": None}


async def test_a_handler_may_answer_with_a_problem_of_more_members() -> None:
    async def send_events(request: Request) -> Response:
        return problem(
            Invalid("No event was accepted."),
            instance=request.url.path,
            correlation_id=current_call().correlation_id,
            extra={"rejected": [{"index": 0}]},
        )

    async with running(apps=[RestApp({EVENTS: send_events})]) as platform:
        refused = await platform.http.post("/v1/events", headers=platform.auth)
        assert refused.status_code == 422
        assert refused.json()["rejected"] == [{"index": 0}]
        assert refused.json()["correlation_id"] == refused.headers["x-correlation-id"]


async def test_an_error_that_nobody_expected_is_logged_and_told_by_its_id_alone() -> None:
    async def send_events(_: Request) -> Response:
        raise RuntimeError("a secret of the inside")

    async with running(apps=[RestApp({EVENTS: send_events})]) as platform:
        with capture_logs() as logs:
            failed = await platform.http.post("/v1/events", headers=platform.auth)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert failed.json()["correlation_id"] == failed.headers["x-correlation-id"]
        assert [log["event"] for log in logs if log["level"] == "error"] == ["request failed"]


async def test_an_answer_that_breaks_half_way_cuts_the_connection() -> None:
    async def halves() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError

    async def send_events(_: Request) -> Response:
        return StreamingResponse(halves())

    async with running(apps=[RestApp({EVENTS: send_events})]) as platform:
        with pytest.raises(httpx.RemoteProtocolError):
            await platform.http.post("/v1/events", headers=platform.auth)


async def test_an_answer_that_takes_too_long_half_way_cuts_the_connection() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.Event().wait()

    async def send_events(_: Request) -> Response:
        return StreamingResponse(stuck())

    async with running(apps=[RestApp({EVENTS: send_events})], seconds=0.3) as platform:
        with pytest.raises(httpx.RemoteProtocolError):
            await platform.http.post("/v1/events", headers=platform.auth)


async def test_a_client_that_leaves_while_it_sends_is_no_error() -> None:
    left = asyncio.Event()

    async def send_events(request: Request) -> Response:
        try:
            return Response(await read_body(request))
        finally:
            left.set()

    async with running(apps=[RestApp({EVENTS: send_events})]) as platform:
        host, _, port = platform.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = (
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: 100\r\nAuthorization: {platform.auth['Authorization']}\r\n\r\n"
        )
        writer.write(head.encode() + b"{")
        await asyncio.sleep(0.1)
        with capture_logs() as logs:
            writer.close()
            await asyncio.wait_for(left.wait(), 10)
        assert not [log for log in logs if log["level"] == "error"]
        assert (await platform.http.get("/health/live")).status_code == 200


async def test_an_app_can_only_answer_what_the_contract_routes() -> None:
    async def handler(_: Request) -> Response:
        return Response()

    async def start(name: str) -> Any:
        async with running(apps=[RestApp({name: handler})]):
            pass

    with pytest.raises(ValueError, match="has no REST route"):
        await start("/mindweave.auth.v1.AuthService/CheckSession")
    with pytest.raises(KeyError):
        await start(f"{SERVICE}/Nothing")
    with pytest.raises(ValueError, match="routed twice"):
        await start("/mindweave.auth.v1.AuthService/GetMe")


async def test_every_request_is_counted_by_route_and_status(platform: Platform) -> None:
    await platform.http.get(f"/orgs/{uuid4()}", headers=platform.auth)
    await platform.http.get("/orgs", headers=platform.auth)
    await platform.http.get(f"/{uuid4()}")
    shown = platform.telemetry.metrics.exposition().decode()
    counted = "mindweave_http_server_duration_seconds_count"
    for method, route, status in (
        ("GET", "/orgs/{id}", "404"),
        ("GET", "/orgs", "200"),
        ("other", "unknown", "404"),
    ):
        labels = f'method="{method}",route="{route}",service="gateway",status="{status}"'
        assert f"{counted}{{{labels}}}" in shown
