"""Which processes there are, and where each listens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from common.background import BOTH, Role
from common.settings import SettingsError
from fleet.ports import HOST
from fleet.services import SERVICES, UnknownRole, parse_name

Kind = tuple[str, Role | None]

# Services whose work grows apart from their answers: how many processes of each role.
_SPLIT: Mapping[str, Mapping[Role, int]] = {"usage_tracker": {Role.SERVE: 2, Role.WORK: 2}}

# How many processes of each service and role; without a role they have both.
DEFAULT: Mapping[Kind, int] = {
    (name, role): count for name in SERVICES for role, count in _SPLIT.get(name, {None: 1}).items()
}


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a service; its ports are of the loopback interface.

    ``role`` is None where it has both; ``http`` is None where it answers no REST.
    """

    name: str
    service: str
    role: Role | None
    rpc: int
    metrics: int
    http: int | None

    @property
    def argument(self) -> str:
        """What ``mindweave`` runs it by."""
        return self.service if self.role is None else f"{self.service}:{self.role}"

    @property
    def serves(self) -> bool:
        return self.role is not Role.WORK

    @property
    def rpc_address(self) -> str:
        return f"{HOST}:{self.rpc}"

    @property
    def metrics_address(self) -> str:
        return f"{HOST}:{self.metrics}"

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        return {
            "name": self.name,
            "service": self.service,
            "role": self.role or "",
            "rpc": self.rpc_address,
            "http": "" if self.http is None else f"{HOST}:{self.http}",
            "metrics": self.metrics_address,
        }


def scaled(options: Sequence[str]) -> dict[Kind, int]:
    """The default counts, changed by NAME[:ROLE]=N.

    A count for a service alone replaces all that the default says of it.

    Raises:
        SettingsError: an option is not of that shape, or part of a service would run nowhere.
    """
    counts = dict(DEFAULT)
    for option in options:
        name, role, count = _read(option)
        if role is None:
            counts = {kind: n for kind, n in counts.items() if kind[0] != name}
        counts[name, role] = count
    for name in SERVICES:
        running: set[Role] = set()
        for (service, role), count in counts.items():
            if service == name and count:
                running |= BOTH if role is None else {role}
        if running != BOTH:
            lacking = ", ".join(sorted(BOTH - running))
            raise SettingsError(f"--scale: no process of {name} would {lacking}")
    return counts


def _read(option: str) -> tuple[str, Role | None, int]:
    text, _, count = option.partition("=")
    try:
        name, roles = parse_name(text)
    except UnknownRole as error:
        raise SettingsError(f"--scale: {error}") from None
    if name not in SERVICES or not count.isdecimal():
        raise SettingsError(f"--scale: {option} is not NAME[:ROLE]=N")
    return name, next(iter(roles)) if len(roles) == 1 else None, int(count)


def placed(counts: Mapping[Kind, int], fronts: Set[str], ports: Iterator[int]) -> list[Process]:
    """A process for each that is counted.

    Args:
        counts: how many of each kind.
        fronts: the services that answer REST themselves.
        ports: free ones.
    """
    found = []
    for (service, role), count in counts.items():
        for number in range(1, count + 1):
            name = f"{service}-{number}" if role is None else f"{service}-{role}-{number}"
            http = service in fronts and role is not Role.WORK
            found.append(
                Process(
                    name,
                    service,
                    role,
                    rpc=next(ports),
                    metrics=next(ports),
                    http=next(ports) if http else None,
                )
            )
    return found


def rpc_addresses(processes: Sequence[Process]) -> dict[str, str]:
    """Where each service is called, as the setting ``addresses`` says it."""
    found: dict[str, list[str]] = {}
    for process in processes:
        if process.serves:
            found.setdefault(process.service, []).append(process.rpc_address)
    return {service: ",".join(addresses) for service, addresses in found.items()}
