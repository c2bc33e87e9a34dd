"""Requests at a steady rate, whatever becomes of the answers; none is ever sent again."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bench.load import HttpConnections
from common.settings import parse_address
from tests.e2e.tenant import Tenant

# Until an answer that does not come is a failure.
ANSWER_SECONDS = 15.0


@dataclass(frozen=True)
class Request:
    """One kind of request; ``body`` makes a new one each time, and there is none without it."""

    verb: str
    path: str
    credential: str
    body: Callable[[], Mapping[str, Any]] | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"

    def encoded(self, host: str) -> bytes:
        content = b"" if self.body is None else json.dumps(self.body()).encode()
        head = [
            f"{self.verb} {self.path} HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {self.credential}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        return "\r\n".join([*head, "", ""]).encode() + content


@dataclass
class Calls:
    """What was sent so far, how often each request succeeded, and each thing went wrong."""

    sent: int = 0
    succeeded_of: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def succeeded(self) -> int:
        return self.succeeded_of.total()


def reads_and_writes(who: Tenant) -> list[Request]:
    """Four reads and two writes of each project."""
    session, key = who.owner.tokens["access_token"], who.key["key"]

    def renamed() -> dict[str, str]:
        return {"name": f"Name {uuid4()}"}

    def events() -> dict[str, Any]:
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "project_id": who.projects[0],
        }
        return {"events": [event]}

    def reads(project: str, other: str) -> list[Request]:
        return [
            Request("GET", f"/projects/{project}", session),
            Request("GET", other, session),
        ]

    return [
        request
        for project in who.projects
        for request in (
            *reads(project, f"/orgs/{who.org_id}"),
            Request("PATCH", f"/projects/{project}", session, renamed),
            *reads(project, f"/projects?org_id={who.org_id}"),
            Request("POST", "/v1/events", key, events),
        )
    ]


@asynccontextmanager
async def steadily(address: str, rate: float, requests: Sequence[Request]) -> AsyncIterator[Calls]:
    """Send the requests in turn while the block runs; at its end all answers are in.

    Args:
        address: "host:port".
        rate: requests a second, due at even times whatever the answers take.
        requests: sent in turn.
    """
    calls, http = Calls(), HttpConnections(*parse_address(address))

    async def one(request: Request) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await http.exchange(request.encoded(address))
        except (OSError, EOFError, TimeoutError) as error:
            calls.failed[f"{request}: {type(error).__name__}: {error}"] += 1
            return
        if answer.status in (200, 201, 202):
            calls.succeeded_of[str(request)] += 1
        else:
            calls.failed[f"{request}: {answer.status} {answer.body[:200].decode()}"] += 1

    async def send(group: asyncio.TaskGroup) -> None:
        begun = time.perf_counter()
        while True:
            await asyncio.sleep(max(0.0, begun + calls.sent / rate - time.perf_counter()))
            group.create_task(one(requests[calls.sent % len(requests)]))
            calls.sent += 1

    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send(group))
            yield calls
            sending.cancel()
    finally:
        await http.close()
