"""From the 202 of one event to its being in ``GET /analytics/usage``, again and again."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import uuid4

from bench.load import HttpConnections, Latencies
from bench.tenant import Tenant

_LOOK_EVERY = 0.005
_PATIENCE = 60.0


class Probes:
    """Sends single events of a tenant; each project has one on its way at a time."""

    def __init__(self, http: HttpConnections, host: str, tenant: Tenant) -> None:
        self._http = http
        self._tenant = tenant
        self._common = f"Host: {host}\r\nAuthorization: Bearer {tenant.key}\r\n"
        query = urlencode({"org_id": tenant.org_id, "granularity": "all", "group_by": "project_id"})
        self._look = f"GET /analytics/usage?{query} HTTP/1.1\r\n{self._common}\r\n".encode()

    async def run(self, seconds: float, every: float) -> Latencies:
        """Milliseconds from the 202 until an answer that holds the event has come."""
        waiting: dict[str, tuple[int, float]] = {}
        counts = await self._counts()
        seen: list[float] = []
        sending = asyncio.create_task(self._send_for(seconds, every, waiting, counts))
        end = time.perf_counter() + seconds + _PATIENCE
        while not sending.done() or waiting:
            if time.perf_counter() > end:
                raise TimeoutError(f"{len(waiting)} probes are not visible")
            found = await self._counts()
            now = time.perf_counter()
            for project, (count, acknowledged) in list(waiting.items()):
                if found.get(project, 0) >= count:
                    counts[project] = count
                    del waiting[project]
                    seen.append((now - acknowledged) * 1000)
            await asyncio.sleep(_LOOK_EVERY)
        sending.result()
        return Latencies(seen)

    async def _send_for(
        self,
        seconds: float,
        every: float,
        waiting: dict[str, tuple[int, float]],
        counts: dict[str, int],
    ) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for project in self._tenant.projects:
                if project not in waiting:
                    await self._send(project)
                    waiting[project] = (counts.get(project, 0) + 1, time.perf_counter())
                await asyncio.sleep(every)

    async def _send(self, project: str) -> None:
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-sonnet-4-5",
            "project_id": project,
            "input_tokens": 1,
        }
        body = json.dumps({"events": [event]})
        answer = await self._http.exchange(
            (
                f"POST /v1/events HTTP/1.1\r\n{self._common}Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()
        )
        if answer.status != 202:
            raise ConnectionError(f"{answer.status}: {answer.body[:300].decode()}")

    async def _counts(self) -> dict[str, int]:
        rows = (await self._http.get(self._look))["rows"]
        return {row["project_id"]: row["events"] for row in rows}
