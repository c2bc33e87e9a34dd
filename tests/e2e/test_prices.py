"""Prices that an organization states: what had none gets one, and every sum says so."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from fleet.process import Platform
from fleet.workload import Event, Shares, Workload, generate
from tests.common.waiting import eventually
from tests.e2e.checker import Checker
from tests.e2e.comparison import Grouping, differences
from tests.e2e.oracle import NANO, CostOf, Oracle, cost_of
from tests.e2e.own import own_platform
from tests.e2e.raw_rows import connect, raw_rows, row_differences, window_differences
from tests.e2e.tenant import Tenant, created, register, tenant

pytestmark = pytest.mark.e2e

EVENTS = 20_000
# Nobody lists a price for it; a share of every workload is of it.
HOUSE = "acme-support-13b"
GROUPINGS: tuple[Grouping, ...] = (
    ("all", ("model", "provider")),
    ("minute", ()),
    ("day", ("project_id", "user_id")),
)
# USD per million tokens as the oracle reads them: of HOUSE before a time, for short prompts and for
# those of more than 1,000 tokens, and after it; of gpt-5-mini with one eighth off.
Row = tuple[str | None, ...]
SHORT: Row = ("0.40", "1.60", "0.04", None, None)
LONG: Row = ("0.80", "2.0000001", "0.08", None, None)
LATER: Row = ("0.333333333", "1.25", "0.031", None, None)
LESS: Row = ("0.21875", "1.75", "0.021875", None, None)


def as_stated(split: datetime, discounted: datetime) -> CostOf:
    """What an event costs once everything is stated."""

    def cost(event: Mapping[str, Any]) -> list[Decimal] | None:
        at, model = datetime.fromisoformat(event["timestamp"]), event["model"]
        if model == "gpt-5-mini" and at >= discounted:
            return cost_of(event, {model: LESS})
        if model != HOUSE:
            return cost_of(event)
        prompt = event["input_tokens"] + event.get("cache_read_tokens", 0)
        before = LONG if prompt > 1000 else SHORT
        return cost_of(event, {HOUSE: LATER if at >= split else before})

    return cost


def half_stated(split: datetime) -> CostOf:
    """As long as HOUSE has a price only from a time on."""
    later = as_stated(split, datetime.max.replace(tzinfo=UTC))

    def cost(event: Mapping[str, Any]) -> list[Decimal] | None:
        at = datetime.fromisoformat(event["timestamp"])
        return None if event["model"] == HOUSE and at < split else later(event)

    return cost


@dataclass
class Customer:
    """An organization whose owner states prices, and the books of what it sent."""

    who: Tenant
    checker: Checker

    @property
    def owner(self) -> httpx.Client:
        return self.who.owner.client

    def books(self, cost: CostOf) -> Oracle:
        """Of the same events at other prices."""
        books = Oracle(self.who.org_id, self.who.key["id"], cost)
        books.events = self.checker.oracle.events
        return books

    def state(self, model: str, since: datetime, **fields: Any) -> dict[str, Any]:
        body = {"org_id": self.who.org_id, "model": model, "effective_from": since.isoformat()}
        return created(self.owner, "/v1/prices", body | fields)

    def listed(self, path: str, name: str, **params: str) -> list[dict[str, Any]]:
        answer = self.owner.get(path, params={"org_id": self.who.org_id, **params})
        assert answer.status_code == 200, answer.text
        assert answer.json()["next_page_token"] is None
        found: list[dict[str, Any]] = answer.json()[name]
        return found

    def unpriced(self) -> list[dict[str, Any]]:
        return self.listed("/v1/unpriced", "unpriced")

    async def send(self, seed: int, end: datetime) -> None:
        shares = Shares(client_cost=0.2)
        requests = generate(seed=seed, count=1500)
        for batch in Workload(requests, self.who.projects, end, seed, shares=shares).batches(500):
            assert await self.checker.send(batch)
        await self.checker.finish()

    async def comes_to(self, books: Oracle) -> None:
        """Wait until analytics shows the cost of these books; then nothing differs from them."""
        total = books.total()
        query = {"granularity": "all", "start": "2026-01-01T00:00:00Z"}

        def shown() -> bool:
            totals = self.who.client.get("/analytics/usage", params=query).json()["totals"]
            return (Decimal(totals["cost_usd"]), totals["unpriced_events"]) == (
                total.cost_usd,
                total.unpriced_events,
            )

        await eventually(shown)
        assert differences(self.who.client, self.who.org_id, books, GROUPINGS) == []


def unit_prices(row: Row, long: Row | None = None) -> dict[str, Any]:
    """A row of the oracle's as the API takes it, and another one for more than 1,000 tokens."""
    made: dict[str, Any] = {}
    for kind, usd, more in zip(("input", "output", "cache_read"), row, long or row, strict=False):
        steps = [{"prompt_over": 1000, "usd_per_million": more}] if long else []
        made[kind] = {"usd_per_million": usd, "steps": steps}
    return made


def times_of(customer: Customer, model: str) -> list[datetime]:
    events = customer.checker.oracle.events.values()
    return sorted(
        datetime.fromisoformat(event["timestamp"])
        for event in events
        if event.get("model") == model
    )


def reconciled(books: Oracle, cost: CostOf) -> dict[tuple[str, str], list[Any]]:
    """By model and provider: events, those that differ, their cost, ours, those with ours alone."""
    found: defaultdict[tuple[str, str], list[Any]] = defaultdict(
        lambda: [0, 0, Decimal(0), Decimal(0), 0]
    )
    for event in books.events.values():
        if "model" not in event:
            continue
        row = found[event["model"], event["provider"]]
        costs = cost(event)
        assert costs is not None
        if "cost_usd" not in event:
            row[4] += 1
            continue
        theirs, ours = Decimal(event["cost_usd"]), sum(costs, Decimal(0))
        row[0] += 1
        row[1] += theirs != ours
        row[2] += theirs
        row[3] += ours
    return dict(found)


def customer_of(address: str) -> Customer:
    who = tenant(address)
    return Customer(who, Checker(address, who))


@pytest.fixture
def customer(address: str) -> Customer:
    return customer_of(address)


async def test_what_has_no_price_is_listed_gets_one_and_every_sum_follows(customer: Customer):
    now = datetime.now(UTC)
    split, discounted = now - timedelta(hours=2.5), now - timedelta(hours=1.5)
    await customer.send(1, now - timedelta(hours=2))
    await customer.comes_to(customer.checker.oracle)
    times = times_of(customer, HOUSE)
    early = [at for at in times if at < split]
    assert 0 < len(early) < len(times)

    (row,) = customer.unpriced()
    assert (row["model"], row["provider"], row["events"]) == (HOUSE, "acme", len(times))
    shown = [datetime.fromisoformat(row[name]) for name in ("first_at", "last_at")]
    assert shown == [times[0], times[-1]]

    later = customer.state(HOUSE, split, unit_prices=unit_prices(LATER))
    await eventually(lambda: [row["events"] for row in customer.unpriced()] == [len(early)])
    await customer.comes_to(customer.books(half_stated(split)))

    earlier = customer.state(
        HOUSE,
        now - timedelta(days=8),
        effective_until=split.isoformat(),
        unit_prices=unit_prices(SHORT, LONG),
    )
    await eventually(lambda: customer.unpriced() == [])
    await customer.comes_to(customer.books(as_stated(split, now)))

    # From here on the events have their prices at once.
    less = customer.state("gpt-5-mini", discounted, discount_bp=1250)
    await customer.send(2, datetime.now(UTC))
    final = as_stated(split, discounted)
    await customer.comes_to(customer.books(final))
    assert customer.unpriced() == []
    assert customer.listed("/v1/prices", "prices") == [less, earlier, later]
    assert customer.listed("/v1/prices", "prices", model=HOUSE) == [earlier, later]

    given = customer.listed(
        "/v1/reconciliation", "models", start=(now - timedelta(days=8)).isoformat()
    )
    names = ("events", "differing_events", "client_cost_usd", "cost_usd", "without_client_cost")
    kinds = (int, int, Decimal, Decimal, int)
    assert {
        (row["model"], row["provider"]): [
            kind(row[name]) for name, kind in zip(names, kinds, strict=True)
        ]
        for row in given
    } == reconciled(customer.checker.oracle, final)
    for row in given:
        beside = Decimal(row["client_cost_usd"]) - Decimal(row["cost_usd"])
        assert Decimal(row["difference_usd"]) == beside
        assert row["unpriced_events"] == 0


def test_only_who_runs_the_organization_sees_or_states_its_prices(own_tenant: Tenant):
    member = register(own_tenant.owner.address)
    added = {"user_id": member.id, "role": "member"}
    created(own_tenant.owner.client, f"/orgs/{own_tenant.org_id}/members", added)
    body = {
        "org_id": own_tenant.org_id,
        "model": HOUSE,
        "effective_from": "2026-01-01T00:00:00Z",
        "discount_bp": 1,
    }

    for client in (member.client, own_tenant.client):
        assert client.post("/v1/prices", json=body).status_code == 403
        for path in ("/v1/prices", "/v1/unpriced", "/v1/reconciliation"):
            answer = client.get(path, params={"org_id": own_tenant.org_id})
            assert answer.status_code == 403, answer.text
    assert own_tenant.owner.client.post("/v1/prices", json=body).status_code == 201


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with own_platform(tmp_path_factory.mktemp("prices") / "data") as platform:
        yield platform


async def connected(platform: Platform) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(platform.run()["database_url"])
    yield connection
    await connection.close()


database = pytest.fixture(connected, name="database")
holder = pytest.fixture(connected, name="holder")


def calls(projects: Sequence[str], count: int) -> list[Event]:
    """Calls of HOUSE over an hour."""
    rng, now = Random(count), datetime.now(UTC)
    return [
        {
            "event_id": str(UUID(int=rng.getrandbits(128), version=4)),
            "timestamp": (now - timedelta(seconds=rng.uniform(0, 3600))).isoformat(),
            "event_type": "api_call",
            "model": HOUSE,
            "provider": "acme",
            "project_id": rng.choice(projects),
            "input_tokens": rng.randrange(4000),
            "output_tokens": rng.randrange(1000),
        }
        for _ in range(count)
    ]


async def adjusted(database: asyncpg.Connection, org_id: UUID) -> int:
    """Adjustments of an organization."""
    found: int = await database.fetchval(
        "SELECT count(*) FROM adjustments WHERE org_id = $1", org_id
    )
    return found


async def is_in_a_step(database: asyncpg.Connection, holder: asyncpg.Connection) -> bool:
    """Whether a transaction waits for the holder's that has added adjustments already."""
    found: bool = await database.fetchval(
        """
        SELECT EXISTS (
            SELECT FROM pg_locks AS waits JOIN pg_locks AS has USING (pid)
            WHERE NOT waits.granted AND $1 = ANY (pg_blocking_pids(waits.pid))
                AND has.relation = 'adjustments'::regclass AND has.mode = 'RowExclusiveLock'
        )
        """,
        holder.get_server_pid(),
    )
    return found


async def test_kills_in_the_middle_of_a_re_rating_leave_every_sum_exact(
    platform: Platform, database: asyncpg.Connection, holder: asyncpg.Connection
):
    customer = customer_of(platform.address)
    org_id = UUID(customer.who.org_id)
    events = calls(customer.who.projects, EVENTS)
    for start in range(0, EVENTS, 2000):
        assert await customer.checker.send(events[start : start + 2000])
    await customer.checker.finish()
    found = await database.fetch("SELECT part FROM unpriced WHERE org_id = $1", org_id)
    parts = sorted(row["part"] for row in found)
    assert len(parts) > 2

    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    done = 0
    for held in (parts[:2], parts[:1]):
        async with holder.transaction():
            # A step of these parts comes as far as to count down what has no price.
            await holder.execute(
                "SELECT FROM unpriced WHERE org_id = $1 AND part = ANY ($2) FOR UPDATE",
                org_id,
                held,
            )
            if done:
                platform.start()
                platform.wait_until_ready()
            else:
                customer.state(HOUSE, long_ago, unit_prices=unit_prices(LATER))

            async def hits(before: int = done) -> bool:
                more = await adjusted(database, org_id) > before
                return more and await is_in_a_step(database, holder)

            await eventually(hits)
            platform.kill()
        before, done = done, await adjusted(database, org_id)
        assert before < done < EVENTS
    platform.start()
    platform.wait_until_ready()

    books = customer.books(lambda event: cost_of(event, {HOUSE: LATER}))
    await eventually(lambda: customer.unpriced() == [])
    await customer.comes_to(books)
    assert await window_differences(database, customer.who.org_id, books) == []
    # The rows stay as they came; beside each one is what it costs.
    rows = await raw_rows(database, customer.who.org_id)
    assert row_differences(rows, customer.checker.oracle) == []
    beside = await database.fetch(
        "SELECT event_id::text, cost_nano, unpriced FROM adjustments WHERE org_id = $1", org_id
    )
    assert sorted(tuple(row) for row in beside) == sorted(
        (name, nano(cost_of(event, {HOUSE: LATER})), -1) for name, event in books.events.items()
    )


def nano(costs: list[Decimal] | None) -> int:
    assert costs is not None
    return int(sum(costs, Decimal(0)) / NANO)


def reprice(platform: Platform, org_id: str, since: datetime, until: datetime) -> str:
    """What the command says last."""
    times = [f"{at:%Y-%m-%dT%H:%M:%S}" for at in (since, until)]
    command = [sys.executable, "-m", "fleet", "reprice", "--data", str(platform.data)]
    command += ["--org", org_id, "--from", times[0], "--to", times[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


async def test_a_period_is_priced_anew_by_a_command_which_changes_nothing_the_second_time(
    platform: Platform,
):
    customer, now = customer_of(platform.address), datetime.now(UTC).replace(microsecond=0)
    period = now - timedelta(minutes=30), now + timedelta(minutes=1)
    await customer.send(3, now)
    customer.state("gpt-5-mini", now - timedelta(days=8), discount_bp=1250)
    await customer.comes_to(customer.checker.oracle)

    told = reprice(platform, customer.who.org_id, *period)

    discounted = as_stated(period[0], period[0])
    books = customer.books(lambda e: None if e["model"] == HOUSE else discounted(e))
    count = len([at for at in times_of(customer, "gpt-5-mini") if at >= period[0]])
    less = customer.checker.oracle.total().cost_usd - books.total().cost_usd
    assert count > 0
    assert told == f"{count:,} events cost otherwise; together -{less:.9f} USD more"
    await customer.comes_to(books)
    again = reprice(platform, customer.who.org_id, *period)
    assert again == "0 events cost otherwise; together 0.000000000 USD more"
    await customer.comes_to(books)
