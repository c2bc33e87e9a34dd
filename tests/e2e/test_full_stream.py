"""A broker stream that is full gives 503 and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from fleet.process import Platform
from fleet.replay import Sender, client, wait_until_fresh
from tests.e2e.comparison import differences
from tests.e2e.oracle import Oracle
from tests.e2e.own import databases, own_platform
from tests.e2e.tenant import tenant

pytestmark = pytest.mark.e2e

LIMIT = 40


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    limit = {"MINDWEAVE_STREAM_MAX_RECORDS": str(LIMIT)}
    with own_platform(tmp_path / "data", limit) as platform:
        yield platform


def batch(size: int = 3) -> list[dict[str, object]]:
    return [
        {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "input_tokens": 7,
        }
        for _ in range(size)
    ]


async def test_a_full_stream_refuses_with_503_and_loses_nothing(platform: Platform):
    who = tenant(platform.address, projects=0)
    oracle = Oracle(who.org_id, who.key["id"])
    async with client(platform.address, who.key["key"]) as http:
        # The caches know the caller before the database stops.
        first = batch()
        assert (await http.post("/v1/events", json={"events": first})).status_code == 202
        oracle.acknowledge(first)

        stopped = databases(platform)
        assert stopped
        for process in stopped:
            process.suspend()
        try:
            refused = await fill(http, oracle)
        finally:
            for process in stopped:
                process.resume()
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1

        again = batch()
        outcome = await Sender(http).send([again])
        oracle.acknowledge(again)
        assert outcome.accepted_at is not None
        await wait_until_fresh(http, who.org_id, outcome.accepted_at)
    found = await asyncio.to_thread(differences, who.client, who.org_id, oracle)
    assert found == []


async def fill(http: httpx.AsyncClient, oracle: Oracle) -> httpx.Response:
    """Send until the first refusal; what was acknowledged is in the oracle's books."""
    for _ in range(40 * LIMIT):
        events = batch()
        answer = await http.post("/v1/events", json={"events": events})
        if answer.status_code != 202:
            return answer
        oracle.acknowledge(events)
    raise AssertionError("the stream took everything")
