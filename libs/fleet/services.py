"""Every service of the fleet, by name; a service's code is imported only when it is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common.background import BOTH, Role

if TYPE_CHECKING:
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


class UnknownRole(Exception):
    """What stands behind a service's name is no role."""


def parse_name(text: str) -> tuple[str, frozenset[Role]]:
    """The service and the roles of NAME[:ROLE]; both roles without one.

    Raises:
        UnknownRole: the role is neither ``serve`` nor ``work``.
    """
    name, colon, role = text.partition(":")
    if not colon:
        return name, BOTH
    try:
        return name, frozenset({Role(role)})
    except ValueError:
        raise UnknownRole(f"{text}: a role is {' or '.join(Role)}") from None


class UnknownService(LookupError):
    """There is no service of this name."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A service that owns a database, by its migrations; its code is not imported."""

    name: str
    migrations: Path


def owners() -> list[Owner]:
    """Every service with a database of its own."""
    found = []
    for name, module in SERVICES.items():
        spec = find_spec(module.rpartition(".")[0])
        for place in (spec and spec.submodule_search_locations) or ():
            migrations = Path(place) / "migrations"
            if migrations.is_dir():
                found.append(Owner(name, migrations))
    return found


def load(names: Iterable[str] = tuple(SERVICES)) -> list[Service]:
    """The named services, imported.

    Raises:
        UnknownService: there is no such service.
    """
    found = []
    for name in names:
        if name not in SERVICES:
            raise UnknownService(f"there is no service {name}; there are {', '.join(SERVICES)}")
        service: Service = import_module(SERVICES[name]).SERVICE
        found.append(service)
    return found
