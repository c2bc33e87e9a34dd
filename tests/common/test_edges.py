"""Which calls are told from spans, and which of them nothing allows."""

from __future__ import annotations

import pytest

from common.identity.callers import CALLEES
from tests.common.otlp import ReceivedSpan
from tests.e2e.edges import CLIENT, edges, forbidden, told

pytestmark = pytest.mark.unit

SERVER = 2


def span(service, called, kind=CLIENT):
    attributes = {"rpc.service": f"mindweave.{called}.v1.Service"}
    return ReceivedSpan(service, {}, "name", kind, "trace", "id", "", False, attributes)


def test_calls_are_told_by_the_spans_of_their_callers():
    database = ReceivedSpan("team", {}, "SELECT", CLIENT, "trace", "id", "", False, {})
    seen = edges([span("gateway", "team"), span("team", "team", SERVER), database])
    assert seen == {("gateway", "team")}
    assert told(seen) == "gateway → team"


def test_a_call_that_the_table_lacks_is_found():
    assert forbidden({("team", "analytics"), ("team", "auth")}) == {("team", "analytics")}


def test_every_call_of_the_table_is_allowed():
    assert not forbidden((caller, callee) for caller in CALLEES for callee in CALLEES[caller])
