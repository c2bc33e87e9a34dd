"""``mindweave NAME…``: the named services in this process; all else is where settings say."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import uvloop

from common.background import Role
from common.lifecycle import Host
from common.service import Placed
from common.settings import Settings, load_settings
from common.telemetry import configure_logs
from fleet.running import until_asked_to_end
from fleet.services import load, parse_name


def placed(names: Sequence[str]) -> list[Placed]:
    """The services of NAME[:ROLE]…, imported; one that is named twice has the roles of both.

    Raises:
        UnknownService: there is no such service.
        UnknownRole: there is no such role.
    """
    roles: dict[str, frozenset[Role]] = {}
    for text in names:
        name, found = parse_name(text)
        roles[name] = roles.get(name, frozenset()) | found
    return [Placed(service, roles[service.name]) for service in load(roles)]


def run_named(names: Sequence[str]) -> None:
    """Run the services until SIGTERM or SIGINT.

    Raises:
        Exception: a setting is wrong or missing, an address is taken, or what they depend on is
            not theirs; what is only absent is waited for.
    """
    services = placed(names)
    settings = load_settings()
    configure_logs(settings.log_level)
    uvloop.run(_run(services, settings))


async def _run(services: Sequence[Placed], settings: Settings) -> None:
    host = Host(services, settings, version=version("mindweave"), patient=True)
    try:
        await until_asked_to_end(host.start(), lambda: None)
    finally:
        await host.stop()
