"""The stages of ingest alone, one after the other in one thread: microseconds of CPU an event.

``uv run python -m bench.stages [--events N] [--batch M]`` needs no server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec
import numpy as np

from bench.traffic import Traffic
from common.events.envelope import Envelope, pack, unpack
from services.usage_tracker.domain.blocks import packed
from services.usage_tracker.domain.columns import Batch
from services.usage_tracker.domain.events import read_fields
from services.usage_tracker.domain.identities import Identities
from services.usage_tracker.domain.judged import judge_fields
from services.usage_tracker.domain.judging import Judge, Project, Tenancy, microseconds
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.records import EVENTS_TOPIC, UsageEvents, events_partition
from services.usage_tracker.domain.sessions import session_deltas_of
from services.usage_tracker.domain.settling import Settled, priced, settle
from services.usage_tracker.domain.windows import deltas_of
from services.usage_tracker.store.rows import event_rows, id_rows

ROUNDS = 7
PARTITIONS = 4
IDENTITY_US = 8 * 86_400_000_000
T = TypeVar("T")


class Stages:
    """Runs stages and keeps what each took."""

    def __init__(self, events: int) -> None:
        self._events = events
        self.micros: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], T]) -> T:
        """The median of some runs, by CPU time of this process."""
        found, taken = work(), []
        for _ in range(ROUNDS):
            begun = time.process_time()
            found = work()
            taken.append((time.process_time() - begun) / self._events * 1e6)
        self.micros[name] = round(statistics.median(taken), 3)
        print(f"{self.micros[name]:8.3f} µs  {name}", flush=True)
        return found


def measure(events: int, batch: int) -> dict[str, float]:
    org = uuid4()
    projects = [uuid4() for _ in range(20)]
    traffic = Traffic([str(p) for p in projects], 1)
    bodies = [traffic.body(batch)[0] for _ in range(events // batch)]
    judge = _judge(org, projects)
    stages = Stages(events)

    fields = stages.run("decode JSON", lambda: [read_fields(body) for body in bodies])
    judged = stages.run(
        "judge, digest", lambda: [one for f in fields if f and (one := judge_fields(judge, f)[0])]
    )
    parts = stages.run(
        "partition",
        lambda: [j.partitions(lambda o, e: events_partition(o, e, PARTITIONS)) for j in judged],
    )
    columns = stages.run(
        "columns by partition",
        lambda: [
            (part, one.columns(chosen))
            for one, some in zip(judged, parts, strict=True)
            for part, chosen in some.items()
        ],
    )
    values = stages.run("pack records", lambda: [(p, _packed(org, c, judge)) for p, c in columns])
    mine = [value for part, value in values if part == 0]
    in_part = sum(c.count for part, c in columns if part == 0)

    worker = Stages(in_part)
    data = worker.run("unpack records", lambda: [unpack(v, UsageEvents)[1] for v in mine])
    whole = worker.run(
        "merge into a batch",
        lambda: Batch.of([(d.received_at, d.api_key_id, d.columns) for d in data]),
    )
    seen = _full()
    worker.run("hash identities", lambda: _hashes(whole))
    worker.run("filter of identities", lambda: seen.may_hold(whole.hashes, 0))
    book = PriceBook.bundled()
    costs = worker.run("price", lambda: priced(whole, book))
    worker.run("deltas", lambda: deltas_of(whole, costs))
    worker.run("deltas of sessions", lambda: session_deltas_of(whole, costs))
    settled = worker.run(
        "settle (price and deltas in it)", lambda: settle(whole, {}, book, IDENTITY_US)
    )
    worker.run("rows of identities", lambda: id_rows(0, settled.accepted))
    worker.run("rows of events", lambda: event_rows(0, settled))
    worker.run("pack deltas", lambda: packed(settled.deltas))
    print(f"{len(settled.deltas) / in_part:.2f} deltas an event in a batch of {in_part}")
    print(f"filter: {seen.size / seen.count:.2f} bytes an identity")
    return stages.micros | worker.micros


def records_of(events: int, batch: int) -> list[tuple[int, bytes]]:
    """Events as ingest publishes them, with their partitions, in the order of the requests."""
    org, projects = uuid4(), [uuid4() for _ in range(20)]
    traffic, judge = Traffic([str(p) for p in projects], 1), _judge(org, projects)
    found = []
    for _ in range(events // batch):
        judged, _ = judge_fields(judge, read_fields(traffic.body(batch)[0]) or {})
        if judged is None:
            raise ValueError("no event was taken")
        places = judged.partitions(lambda o, e: events_partition(o, e, PARTITIONS))
        found += [(p, _packed(org, judged.columns(some), judge)) for p, some in places.items()]
    return found


def settled_of(events: int, batch: int = 1000) -> Settled:
    """Events as the worker stores them, all as if of one partition."""
    data = [unpack(value, UsageEvents)[1] for _, value in records_of(events, batch)]
    whole = Batch.of([(d.received_at, d.api_key_id, d.columns) for d in data])
    return settle(whole, {}, PriceBook.bundled(), IDENTITY_US)


def _judge(org: UUID, projects: list[UUID]) -> Judge:
    tenancy = Tenancy({org: True}, {p: Project(p, org, None) for p in projects})
    return Judge(tenancy, datetime.now(UTC), timedelta(days=7))


def _packed(org: UUID, columns: object, judge: Judge) -> bytes:
    data = {"received_at": microseconds(judge.now), "api_key_id": org.bytes, "columns": columns}
    return pack(
        Envelope(
            id=uuid4(),
            type=EVENTS_TOPIC,
            source="bench",
            timestamp=judge.now,
            data=msgspec.msgpack.encode(data),
        )
    )


def _full() -> Identities:
    """A part's share of 20 million identities, over eight days."""
    seen, random = Identities(), np.random.default_rng(1)
    for day in range(8):
        hashes = random.integers(0, 2**64, 20_000_000 // PARTITIONS // 8, np.uint64)
        seen.add(hashes, np.full(len(hashes), day * 86_400_000_000))
    return seen


def _hashes(batch: Batch) -> object:
    return batch.take(np.arange(batch.count)).hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=64_000)
    parser.add_argument("--batch", type=int, default=1000)
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()}")
    print(json.dumps(measure(wanted.events, wanted.batch)))


if __name__ == "__main__":
    main()
