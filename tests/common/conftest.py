"""One broker of each driver for all tests that run on every driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.common.brokers import DRIVERS, Broker


@pytest.fixture(scope="session", params=DRIVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    broker = DRIVERS[request.param][0](tmp_path_factory.mktemp("bus"))
    yield broker
    broker.stop()


@pytest.fixture
def broker(server: Broker) -> Broker:
    """It runs, whatever the test before has done to it."""
    server.start()
    return server
