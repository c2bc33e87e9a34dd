"""Every panel and every rule against a real Prometheus that scrapes the platform: none is empty."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from common.events.bus import BACKUPS, LEDGER_TOPIC
from common.events.drivers import bus_for
from common.testing import silent_telemetry
from fleet.access import ledger_settings
from fleet.embedded.folder import read_run
from tests.deploy.prometheus import Prometheus, prometheus
from tests.deploy.written import panels, rules
from tests.e2e.tenant import Tenant, created

pytestmark = pytest.mark.e2e

PATIENCE = 120.0
# What Grafana puts in: a rate over four scrapes at least, and what the page shows.
CHOSEN = {"$__rate_interval": "30s", "$__range": "5m", "$service": ".*"}


@pytest.fixture(scope="module")
def server(address: str, data_folder: Path, tmp_path_factory) -> Iterator[Prometheus]:
    run = read_run(data_folder)
    assert run is not None
    targets = [process["metrics"] for process in run["processes"]]
    with (
        held_for_a_backup(data_folder),
        prometheus(targets, tmp_path_factory.mktemp("prometheus")) as found,
    ):
        yield found


@contextmanager
def held_for_a_backup(data_folder: Path) -> Iterator[None]:
    """As if one had been made: the broker keeps what comes."""

    async def change(*, hold: bool) -> None:
        bus = bus_for(ledger_settings(data_folder), telemetry=silent_telemetry())
        if hold:
            await bus.declare(LEDGER_TOPIC, await bus.partitions(LEDGER_TOPIC), [BACKUPS])
        else:
            await bus.forget(LEDGER_TOPIC, BACKUPS)
        await bus.stop()

    asyncio.run(change(hold=True))
    try:
        yield
    finally:
        asyncio.run(change(hold=False))


def event(model: str, **fields: object) -> dict[str, object]:
    return {
        "event_id": str(uuid4()),
        "timestamp": datetime.now(UTC).isoformat(),
        "event_type": "api_call",
        "model": model,
        "input_tokens": 1200,
        "output_tokens": 350,
        **fields,
    }


def use(who: Tenant) -> None:
    """What people do in a moment: usage, good and bad, and questions."""
    again = event("claude-sonnet-4-5")
    batch = [
        *(again, again, event("claude-haiku-4-5"), event("house-7b")),
        event("claude-sonnet-4-5", timestamp="2020-01-01T00:00:00Z"),
    ]
    sent = who.client.post("/v1/events", json={"events": batch})
    assert sent.status_code == httpx.codes.ACCEPTED, sent.text
    assert who.client.get("/analytics/costs").status_code == httpx.codes.OK
    assert who.owner.client.get(f"/projects/{who.projects[0]}").status_code == httpx.codes.OK
    assert who.owner.client.get(f"/projects/{uuid4()}").status_code == httpx.codes.NOT_FOUND


def while_used(who: Tenant, missing: Callable[[], list[str]]) -> list[str]:
    """What is missing still after a while in which the platform was used."""
    ends = time.monotonic() + PATIENCE
    while True:
        use(who)
        found = missing()
        if not found or time.monotonic() > ends:
            return found
        time.sleep(0.5)


def asked(expression: str) -> str:
    for variable, value in CHOSEN.items():
        expression = expression.replace(variable, value)
    return expression


def test_no_panel_is_empty_and_no_rule_fails(server: Prometheus, own_tenant: Tenant) -> None:
    queries = {
        f"{panel.dashboard}, {panel.title}: {expression}": asked(expression)
        for panel in panels()
        for expression in panel.expressions
    }
    queries |= {rule.name: rule.name for rule in rules() if not rule.alert}

    def missing() -> list[str]:
        if not server.ready():
            return ["Prometheus"]
        for name in [name for name, query in queries.items() if server.values(query)]:
            del queries[name]
        return sorted(queries)

    assert while_used(own_tenant, missing) == []
    assert {target["health"] for target in server.targets()} == {"up"}
    found = server.rules()
    assert [rule for rule in found if rule["health"] != "ok"] == []
    assert len(found) == len(rules())
    # Not even pending: every service is seen under the name that the rule gives it.
    (down,) = (rule for rule in found if rule["name"] == "ServiceDown")
    assert down["alerts"] == []


def test_what_is_sent_is_what_the_business_sees(server: Prometheus, own_tenant: Tenant) -> None:
    model = f"own-{uuid4().hex}"
    price = {
        "org_id": own_tenant.org_id,
        "model": model,
        "effective_from": "2026-01-01T00:00:00Z",
        "unit_prices": {
            "input": {"usd_per_million": "0.50"},
            "output": {"usd_per_million": "1.25"},
        },
    }
    created(own_tenant.owner.client, "/v1/prices", price)
    batch = [event(model) for _ in range(100)]
    sent = own_tenant.client.post("/v1/events", json={"events": batch})
    assert sent.json()["accepted"] == len(batch)

    def shown(metric: str) -> float:
        return sum(server.values(f'sum({metric}{{model="{model}"}})'))

    ends = time.monotonic() + PATIENCE
    while shown("mindweave_tokens_total") < 155_000 and time.monotonic() < ends:
        time.sleep(0.2)
    assert shown("mindweave_tokens_total") == 155_000
    assert shown("mindweave_cost_usd_total") == pytest.approx(100 * (0.0006 + 0.0004375))
