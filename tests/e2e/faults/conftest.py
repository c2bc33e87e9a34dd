"""One platform of many processes for all tests of faults, on servers that a test may hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fleet.embedded import Kafka, Postgres, Valkey
from fleet.embedded.folder import start_together
from fleet.process import Platform
from tests.e2e.faults.watching import until, whole
from tests.e2e.own import SOON_ENDED, own_platform

SECRET = "a secret of the tests, longer than needed"
SCALE = ("project", "gateway")


@dataclass
class Servers:
    """What the platform stands on; nobody but a test starts or ends it."""

    postgres: Postgres
    cache: Valkey
    kafka: Kafka


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    postgres = Postgres(folder / "postgres", "password")
    cache = Valkey(folder / "cache", "password", durable=False)
    kafka = Kafka(folder / "kafka")
    start_together([postgres, cache, kafka])
    yield Servers(postgres, cache, kafka)
    for server in (kafka, cache, postgres):
        server.stop()


@pytest.fixture(scope="package")
def shared(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    environment = {
        "DATABASE_URL": servers.postgres.admin_dsn,
        "KAFKA_BROKERS": servers.kafka.bootstrap,
        "REDIS_CACHE_URL": servers.cache.url,
        "MINDWEAVE_SECRET": SECRET,
        **SOON_ENDED,
    }
    options = ("--broker", "kafka", *(part for n in SCALE for part in ("--scale", f"{n}=2")))
    data = tmp_path_factory.mktemp("faults")
    with own_platform(data, environment, layout="up", options=options) as platform:
        yield platform


@pytest.fixture
def platform(shared: Platform) -> Iterator[Platform]:
    """The shared one, whole before the test and again after it."""
    until(lambda: whole(shared))
    yield shared
    until(lambda: whole(shared))
