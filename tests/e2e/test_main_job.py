"""A real hour of usage in, its exact cost out: every measure by every dimension."""

from __future__ import annotations

import asyncio
import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path
from uuid import uuid4

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fleet.replay import Outcome, Sender, client, wait_until_fresh
from fleet.workload import Event, Workload, read_trace
from tests.e2e.comparison import GROUPINGS, differences
from tests.e2e.oracle import NANO, PRICES, Oracle, cost_of
from tests.e2e.paging import listed
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

TRACE = Path(os.environ.get("MINDWEAVE_TRACE", "../shared/data/azure-llm-2023-conv.csv"))
DAY = timedelta(days=1)


@dataclass
class Replayed:
    """The trace, sent twice in other batches, and the oracle's books of it."""

    tenant: Tenant
    first: Outcome
    second: Outcome
    oracle: Oracle
    conflicts: int


def send(tenant: Tenant, batches: list[list[Event]]) -> Outcome:
    """Send the batches and wait until analytics shows them."""

    async def run() -> Outcome:
        async with client(tenant.owner.address, tenant.key["key"]) as http:
            outcome = await Sender(http).send(batches)
            assert outcome.accepted_at is not None
            await wait_until_fresh(http, tenant.org_id, outcome.accepted_at)
            return outcome

    return asyncio.run(run())


@pytest.fixture(scope="module")
def replayed(address: str) -> Replayed:
    assert TRACE.is_file(), f"the real trace is not at {TRACE}; set MINDWEAVE_TRACE"
    who = tenant(address)
    workload = Workload(read_trace(TRACE), who.projects, datetime.now(UTC), seed=11)
    oracle = Oracle(who.org_id, who.key["id"])
    before = conflicts(who)
    first = send(who, workload.batches(250))
    oracle.acknowledge(first.acknowledged)
    second = send(who, workload.batches(1000))
    oracle.acknowledge(second.acknowledged)
    return Replayed(who, first, second, oracle, conflicts(who) - before)


def test_every_event_of_the_trace_is_accepted_both_times(replayed: Replayed):
    for outcome in (replayed.first, replayed.second):
        assert outcome.rejected == []
        assert outcome.accepted == len(outcome.acknowledged)
        assert outcome.accepted > 20_000


def test_no_measure_by_any_dimension_differs_from_the_oracle(replayed: Replayed):
    assert replayed.oracle.total().cost_usd > 0
    assert replayed.oracle.total().unpriced_events > 0
    found = differences(replayed.tenant.client, replayed.tenant.org_id, replayed.oracle)
    assert found == []


def test_costs_raw_events_sessions_and_the_export_of_the_trace_are_one_number(
    replayed: Replayed, data_folder: Path, tmp_path: Path
):
    who, total = replayed.tenant, replayed.oracle.total()
    now = datetime.now(UTC)
    start, end = (f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in (now - DAY, now + timedelta(minutes=5)))
    period = {"org_id": who.org_id, "start": start, "end": end}
    costs = who.client.get("/analytics/costs", params={**period, "granularity": "all"}).json()
    events = list(listed(who.client, "/v1/events", "events", **period))
    sessions = list(listed(who.client, "/v1/sessions", "sessions", **period))
    file = tmp_path / "trace.parquet"
    told = export_raw(data_folder, who.org_id, start, end, file)
    exported = pq.read_table(file)

    assert {
        "costs": Decimal(costs["totals"]["cost_usd"]),
        "events": sum(Decimal(event["cost_usd"] or 0) for event in events),
        "sessions": sum(Decimal(session["cost_usd"]) for session in sessions),
        "models": sum(Decimal(m["cost_usd"]) for session in sessions for m in session["models"]),
        "export": sum(cost for cost in exported["cost_usd"].to_pylist() if cost is not None),
        "nanos": pc.sum(exported["cost_nano"]).as_py() * NANO,
    } == dict.fromkeys(("costs", "events", "sessions", "models", "export", "nanos"), total.cost_usd)
    ids = sorted(event["event_id"] for event in events)
    assert ids == sorted(exported["event_id"].to_pylist()) == sorted(replayed.oracle.events)
    assert sum(session["events"] for session in sessions) == len(ids)
    unpriced = [event["unpriced"] for event in events].count(True)
    assert unpriced == total.unpriced_events == pc.sum(exported["unpriced"]).as_py()
    assert f"{len(ids):,} events, {unpriced:,} of them unpriced, {total.cost_usd:.9f} USD" in told


def export_raw(data: Path, org_id: str, start: str, end: str, out: Path) -> str:
    """Run the command; returns its last line."""
    command = [sys.executable, "-m", "fleet", "export-raw", "--data", str(data), "--org", org_id]
    times = ["--from", start.rstrip("Z"), "--to", end.rstrip("Z")]
    done = subprocess.run(
        [*command, *times, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_every_repeat_with_another_body_is_a_counted_conflict(replayed: Replayed):
    assert replayed.oracle.conflicts > 0
    assert replayed.conflicts == replayed.oracle.conflicts


def test_the_comparison_notices_halves_that_are_rounded_up(
    replayed: Replayed, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tests.e2e.oracle.ROUND_HALF_EVEN", ROUND_HALF_UP)
    books = Oracle(replayed.tenant.org_id, replayed.tenant.key["id"])
    books.events = replayed.oracle.events
    assert differences(replayed.tenant.client, replayed.tenant.org_id, books, GROUPINGS[:1])


def test_the_comparison_notices_one_lost_event(replayed: Replayed):
    books = copy.copy(replayed.oracle)
    lost = next(iter(books.events))
    books.events = {k: v for k, v in books.events.items() if k != lost}
    assert differences(replayed.tenant.client, replayed.tenant.org_id, books, GROUPINGS[:1])


def test_the_comparison_notices_one_changed_price(replayed: Replayed):
    # A tenth of a cent per million input tokens on one model.
    changed = {**PRICES, "gpt-5-mini": ("0.251", *PRICES["gpt-5-mini"][1:])}
    cost = partial(cost_of, prices=changed)
    books = Oracle(replayed.tenant.org_id, replayed.tenant.key["id"], cost)
    books.events = replayed.oracle.events
    assert differences(replayed.tenant.client, replayed.tenant.org_id, books, GROUPINGS[:1])


def test_a_repeat_with_another_body_is_a_counted_conflict(address: str):
    who = tenant(address)
    event = {
        "event_id": str(uuid4()),
        "timestamp": datetime.now(UTC).isoformat(),
        "event_type": "api_call",
        "model": "claude-haiku-4-5",
        "input_tokens": 1000,
    }
    before = conflicts(who)
    send(who, [[event]])
    send(who, [[event, {**event, "input_tokens": 2000}], [{**event, "user_id": "else"}]])
    assert conflicts(who) == before + 2
    totals = who.client.get("/analytics/usage", params={"granularity": "all"}).json()["totals"]
    assert (totals["events"], totals["input_tokens"]) == (1, 1000)
    assert totals["cost_usd"] == "0.001000000"


def conflicts(who: Tenant) -> int:
    """The platform's count of conflicts."""
    scopes = {"name": "metrics", "scopes": ["metrics:read"]}
    key = who.owner.client.post("/auth/api-keys", json=scopes).json()["key"]
    answer = who.client.get("/v1/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    (line,) = [
        line
        for line in answer.text.splitlines()
        if line.startswith("mindweave_ledger_repeats{") and 'kind="conflict"' in line
    ]
    return int(float(line.rsplit(" ", 1)[1]))
