"""One trace from the REST call over gRPC and the bus to the consumer, as a collector sees it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from fleet.process import Platform
from tests.common.otlp import ReceivedSpan, Receiver, otlp_receiver
from tests.e2e.own import own_platform
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

SERVER, CONSUMER = 2, 5


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def platform(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    export = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with own_platform(tmp_path_factory.mktemp("traced"), export) as platform:
        yield platform


@pytest.fixture(scope="module")
def who(platform: Platform) -> Tenant:
    return tenant(platform.address)


def trace_of(
    receiver: Receiver, trace: str, complete: Callable[[list[ReceivedSpan]], bool]
) -> list[ReceivedSpan]:
    """The spans of the trace, once they are complete or ten seconds have passed."""
    deadline = time.monotonic() + 10
    while True:
        spans = [span for span in receiver.spans if span.trace == trace]
        if complete(spans) or time.monotonic() > deadline:
            return spans
        time.sleep(0.1)


def parents_are_known(spans: list[ReceivedSpan], root: str) -> bool:
    known = {span.id for span in spans} | {root}
    return all(span.parent in known for span in spans)


def kinds(spans: list[ReceivedSpan]) -> set[tuple[str, int]]:
    return {(span.service, span.kind) for span in spans}


def test_a_deletion_is_one_trace_from_the_gateway_to_the_consumer(platform, receiver, who):
    trace, root = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{root}-01", "X-Correlation-Id": f"test-{trace}"}
    answer = who.owner.client.delete(f"/projects/{who.projects[0]}", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["x-correlation-id"] == f"test-{trace}"

    wanted = {("gateway", SERVER), ("project", SERVER), ("auth", CONSUMER)}
    spans = trace_of(receiver, trace, lambda found: wanted <= kinds(found))
    assert wanted <= kinds(spans)
    assert parents_are_known(spans, root)


def test_an_event_is_one_trace_from_ingest_to_the_worker(platform, receiver, who):
    trace, root = secrets.token_hex(16), secrets.token_hex(8)
    event = {
        "event_id": str(uuid4()),
        "timestamp": datetime.now(UTC).isoformat(),
        "event_type": "api_call",
        "model": "claude-haiku-4-5",
    }
    answer = who.client.post(
        "/v1/events", json={"events": [event]}, headers={"traceparent": f"00-{trace}-{root}-01"}
    )
    assert answer.status_code == 202

    spans = trace_of(receiver, trace, lambda found: ("usage_tracker", CONSUMER) in kinds(found))
    assert ("usage_tracker", CONSUMER) in kinds(spans), kinds(spans)
    assert parents_are_known(spans, root)
