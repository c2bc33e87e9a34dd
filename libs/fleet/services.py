"""Every service of the fleet, by name; a service's code is imported only when it is run."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from common.service import Service

# In the order in which they are listed; a new service is one more line here.
SERVICES = {
    "auth": "services.auth.service",
    "account": "services.account.service",
    "team": "services.team.service",
    "project": "services.project.service",
    "usage_tracker": "services.usage_tracker.service",
    "analytics": "services.analytics.service",
    "gateway": "services.gateway.service",
}


def load(names: Iterable[str] = tuple(SERVICES)) -> list[Service]:
    """The named services, imported.

    Raises:
        LookupError: there is no such service.
    """
    found = []
    for name in names:
        if name not in SERVICES:
            raise LookupError(f"there is no service {name}; there are {', '.join(SERVICES)}")
        service: Service = import_module(SERVICES[name]).SERVICE
        found.append(service)
    return found
