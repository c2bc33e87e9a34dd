"""What a platform stands on: its data folder, its settings, and the servers that it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.settings import Settings, SettingsError, load_settings
from common.telemetry import Log
from fleet.embedded import DataFolder, DidNotStart, Kafka, Postgres, Valkey
from fleet.embedded.daemon import Daemon
from fleet.embedded.folder import KAFKA_ACCESS, start_together
from fleet.environment import secret_is_set
from fleet.services import owners

REDIS_STREAMS = "redis-streams"
KAFKA = "kafka"
BROKERS = (KAFKA, REDIS_STREAMS)
CACHE = "cache"
_WATCH_SECONDS = 1.0


@dataclass
class Surroundings:
    """The settings of this run, and the servers that it started itself."""

    folder: DataFolder
    settings: Settings
    broker: str
    servers: list[Daemon] = field(default_factory=list)

    def name_servers(self) -> None:
        """Put the addresses of the servers, which now run, into the settings."""
        found: dict[str, str] = {}
        for server in self.servers:
            match server:
                case Postgres():
                    found["database_url"] = server.admin_dsn
                case Kafka():
                    found |= server.access
                case Valkey():
                    found["cache_url" if server.name == CACHE else "redis_url"] = server.url
        self.settings = self.settings.model_copy(update=found)

    def stop(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.servers))) as pool:
            for stopped in [pool.submit(server.stop) for server in self.servers]:
                stopped.result()

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of them."""
        return {
            "broker": self.broker,
            "servers": {server.name: server.pid for server in self.servers},
            "database_url": self.settings.database_url,
            "redis_url": self.settings.redis_url,
            "cache_url": self.settings.cache_url,
            **{name: getattr(self.settings, name) for name in KAFKA_ACCESS},
        }


@contextmanager
def surroundings(data: Path, broker: str | None = None, **given: Any) -> Iterator[Surroundings]:
    """Hold the data folder, and start there what no setting names; it all ends with the block.

    Args:
        data: the folder.
        broker: one of ``BROKERS``; absent, what the settings name, else Redis Streams.
        given: settings, before those of the environment.

    Raises:
        InUse: another process holds the folder.
        HalfRestored: a restore of it was broken off.
        OtherBroker: the folder's data belongs to the other broker.
        SettingsError: a setting is wrong.
        DidNotStart: an embedded server did not come up.
    """
    with closing(DataFolder(data)) as folder, started_in(folder, broker, **given) as found:
        yield found


@contextmanager
def started_in(
    folder: DataFolder, broker: str | None = None, **given: Any
) -> Iterator[Surroundings]:
    """As ``surroundings``, in a folder that the caller holds."""
    with _started(_configure(folder, broker, **given)) as found:
        yield found


@contextmanager
def own_database(data: Path) -> Iterator[Settings]:
    """Hold the data folder, and start its PostgreSQL alone; both end with the block.

    Raises:
        InUse: another process holds the folder.
        HalfRestored: a restore of it was broken off.
        SettingsError: a setting is wrong.
        DidNotStart: PostgreSQL did not come up.
    """
    with closing(DataFolder(data)) as folder:
        alone = Surroundings(folder, _settings(folder), "", [folder.postgres()])
        with _started(alone) as found:
            yield found.settings


@contextmanager
def _started(found: Surroundings) -> Iterator[Surroundings]:
    try:
        start_together(found.servers)
        found.name_servers()
        yield found
    finally:
        found.stop()


def _settings(folder: DataFolder, **given: Any) -> Settings:
    """Those of this run; the folder's secret is for where no other is set."""
    if not secret_is_set():
        given.setdefault("secret", folder.secret)
    return load_settings(data=folder.path, **given)


def _configure(folder: DataFolder, broker: str | None, **given: Any) -> Surroundings:
    settings = _settings(folder, **given)
    chosen = _chosen(broker, settings)
    servers: list[Daemon] = []
    if settings.database_url is None and not all(
        owner.name in settings.database_urls for owner in owners()
    ):
        folder.keep_to(chosen)
        servers.append(folder.postgres(settings.embedded_buffers_mb))
    if settings.redis_url is None and chosen == REDIS_STREAMS:
        servers.append(folder.broker())
    if settings.kafka_brokers is None and chosen == KAFKA:
        servers.append(folder.kafka())
    if settings.cache_url is None and settings.redis_url is None:
        servers.append(folder.cache())
    return Surroundings(folder, settings, chosen, servers)


def _chosen(broker: str | None, settings: Settings) -> str:
    """The broker that was asked for.

    Raises:
        SettingsError: KAFKA_BROKERS names one, and another is asked for.
    """
    if settings.kafka_brokers is None:
        return broker or REDIS_STREAMS
    if broker == REDIS_STREAMS:
        raise SettingsError(f"KAFKA_BROKERS: is set, and --broker {REDIS_STREAMS} is given")
    return KAFKA


async def watch(servers: Sequence[Daemon]) -> None:
    """Start an embedded server again that ended by itself."""
    log = Log("fleet")
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        for server in servers:
            try:
                if server.process is None:
                    log.error("an embedded server ended and is started again", server=server.name)
                    await asyncio.to_thread(server.start)
            except (DidNotStart, OSError) as error:
                log.error("an embedded server does not start", error=str(error))
            except Exception:
                log.exception("an embedded server cannot be looked after", server=server.name)
