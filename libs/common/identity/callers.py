"""Which service may call which: calls, mesh policies and tests are made from this table."""

from __future__ import annotations

SERVICES = (
    "gateway",
    "auth",
    "account",
    "team",
    "project",
    "usage_tracker",
    "analytics",
    "mcp_registry",
    "governance",
    "alerts",
    "export",
    "scheduler",
    "audit",
)

# Every service may ask auth (credentials, profiles) and team (the caller's membership).
_EVERY = frozenset({"auth", "team"})

CALLEES: dict[str, frozenset[str]] = {
    "gateway": frozenset(SERVICES) - {"gateway"},
    "auth": _EVERY,
    "account": _EVERY | {"project", "usage_tracker"},
    "team": _EVERY | {"account", "project"},
    "project": _EVERY | {"account", "governance", "mcp_registry"},
    "usage_tracker": _EVERY | {"project", "governance", "mcp_registry"},
    "analytics": _EVERY | {"account", "project", "usage_tracker"},
    "mcp_registry": _EVERY | {"project", "governance"},
    "governance": _EVERY | {"account", "project", "usage_tracker", "mcp_registry"},
    "alerts": _EVERY | {"account", "project", "governance", "analytics"},
    # These two also call the service whose job they run.
    "export": frozenset(SERVICES) - {"gateway"},
    "scheduler": frozenset(SERVICES) - {"gateway"},
    "audit": _EVERY,
}


def may_call(caller: str, callee: str) -> bool:
    """Whether ``caller`` may call ``callee``; a service may always call itself."""
    return caller == callee or callee in CALLEES.get(caller, frozenset())
