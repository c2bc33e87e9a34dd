from __future__ import annotations

import pytest

from common.identity.callers import CALLEES, SERVICES, may_call

pytestmark = pytest.mark.unit

# Section 3 of product.md, written down a second time; every service may call auth and team.
MAY_CALL = {
    "gateway": set(SERVICES) - {"gateway"},
    "auth": set(),
    "account": {"project", "usage_tracker"},
    "team": {"account", "project"},
    "project": {"account", "governance", "mcp_registry"},
    "usage_tracker": {"project", "governance", "mcp_registry"},
    "analytics": {"account", "project", "usage_tracker"},
    "mcp_registry": {"project", "governance"},
    "governance": {"account", "project", "usage_tracker", "mcp_registry"},
    "alerts": {"account", "project", "governance", "analytics"},
    "export": set(SERVICES) - {"gateway"},
    "scheduler": set(SERVICES) - {"gateway"},
    "audit": set(),
}


@pytest.mark.parametrize("callee", SERVICES)
@pytest.mark.parametrize("caller", SERVICES)
def test_every_pair_of_services_is_decided_as_the_table_says(caller: str, callee: str) -> None:
    listed = callee in MAY_CALL[caller] | {"auth", "team"}
    assert may_call(caller, callee) == (listed or caller == callee)


def test_nobody_calls_the_edge_and_strangers_call_nobody() -> None:
    assert not any("gateway" in callees for callees in CALLEES.values())
    assert not any(may_call("stranger", callee) for callee in SERVICES)


def test_the_table_names_every_service_and_no_other() -> None:
    assert set(CALLEES) == set(SERVICES)
    assert frozenset().union(*CALLEES.values()) <= set(SERVICES)
