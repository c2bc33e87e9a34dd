"""Clients of the chaos rounds: what they do where no answer comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx
import pytest

from tests.chaos.books import Books
from tests.chaos.load import NEWEST, OLDEST, Event, Source
from tests.chaos.sending import Gate, NoAnswer, Stream

pytestmark = pytest.mark.unit

ORG, KEY = "018f9d0e-0000-7000-8000-000000000001", "018f9d0e-0000-7000-8000-000000000002"
Answer = Callable[[list[Event]], httpx.Response]


@asynccontextmanager
async def stream(answer: Answer, books: Books, **options: Any) -> AsyncIterator[Stream]:
    def handle(request: httpx.Request) -> httpx.Response:
        return answer(json.loads(request.content)["events"])

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
        yield Stream(http, books, Source("sending", [KEY]), Random(4), **options)


def taken(sent: list[Event]) -> httpx.Response:
    """As the platform answers that judges by the times of events alone."""
    now = datetime.now(UTC)
    ages = [now - datetime.fromisoformat(event["timestamp"]) for event in sent]
    rejected = [
        {"index": index, "code": "too_old" if age > OLDEST else "in_future"}
        for index, age in enumerate(ages)
        if not -NEWEST <= age <= OLDEST
    ]
    return httpx.Response(202, json={"rejected": rejected, "accepted_at": now.isoformat()})


def events(count: int) -> list[Event]:
    now = datetime.now(UTC).isoformat()
    return [{**event, "timestamp": now} for event in Source("events", [KEY]).fresh(count)]


async def test_what_gets_no_answer_goes_again_until_it_does_also_in_other_batches() -> None:
    books, gate, batch = Books(ORG, KEY), Gate(), events(30)
    seen: list[list[str]] = []

    def answer(sent: list[Event]) -> httpx.Response:
        seen.append([event["event_id"] for event in sent])
        return taken(sent) if len(seen) > 4 else httpx.Response(503)

    async with stream(answer, books) as client:
        await client.deliver(batch, gate.hear)

    assert books.retries == 4
    assert books.acknowledged.keys() >= {event["event_id"] for event in batch}
    assert books.acknowledged.keys() | books.refused == {name for names in seen for name in names}
    assert books.rebatched > 0
    assert len({tuple(names) for names in seen}) > 1


async def test_a_platform_that_does_not_answer_in_time_is_told_of() -> None:
    books = Books(ORG, KEY)
    async with stream(lambda _: httpx.Response(503), books, patience=0.2) as client:
        with pytest.raises(NoAnswer):
            await client.deliver(events(3), Gate().hear)

    assert not books.acknowledged
    assert len(books.in_doubt) >= 3


async def test_a_gate_that_is_shut_waits_for_those_inside_and_keeps_others_out() -> None:
    gate, steps = Gate(), []
    begun, free = asyncio.Event(), asyncio.Event()

    async def passing(name: str) -> None:
        async with gate.passing():
            begun.set()
            await free.wait()
            steps.append(name)

    first = asyncio.create_task(passing("first"))
    await begun.wait()

    async def examine() -> None:
        async with gate.shut():
            steps.append("shut")
            late.append(asyncio.create_task(passing("late")))
            await asyncio.sleep(0)
            steps.append("open")

    late: list[asyncio.Task[None]] = []
    examining = asyncio.create_task(examine())
    await asyncio.sleep(0)
    assert steps == []
    free.set()
    await asyncio.gather(first, examining)
    await asyncio.gather(*late)

    assert steps == ["first", "shut", "open", "late"]
