"""The platform that the end-to-end tests talk to: one named by its address, or one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fleet.process import Platform
from tests import variants
from tests.e2e.own import GIVEN, free_port
from tests.e2e.tenant import Tenant, tenant

# It runs on what the variable gives, or not at all: the last line of `make test` tells.
collect_ignore = [] if "citus" in variants.given() else ["test_add_node.py"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where an address is given, only those tests run that need nothing else."""
    if not os.environ.get(GIVEN):
        return
    others = [
        item for item in items if HERE in item.path.parents and not _needs_an_address_alone(item)
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _needs_an_address_alone(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return "address" in names and "data_folder" not in names


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the platform that the tests start."""
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="session", autouse=True)
def _rows_soon() -> None:
    """Of every platform that is started here: who looks at its tables does not wait a minute."""
    os.environ.setdefault("MINDWEAVE_COMPACTION_SECONDS", "1")


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the REST API, such as ``http://127.0.0.1:8080``; MINDWEAVE_E2E_ADDRESS where it is set."""
    given = os.environ.get(GIVEN)
    if given:
        yield given.rstrip("/")
        return
    data: Path = request.getfixturevalue("data_folder")
    with Platform(data, f"127.0.0.1:{free_port()}") as platform:
        platform.wait_until_ready()
        yield platform.address
    assert platform.process.returncode == 0, platform.last_lines()


@pytest.fixture(scope="session")
def api(address: str) -> Iterator[httpx.Client]:
    """A client without any credential."""
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def own_tenant(address: str) -> Tenant:
    """An organization with its owner, projects and key, of this test module alone."""
    return tenant(address)
