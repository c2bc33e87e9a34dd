"""`mindweave add-node` where there is no Citus; with it: tests/e2e/test_add_node.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from common.database import Database
from common.settings import Settings, SettingsError
from fleet.nodes import add_node

pytestmark = pytest.mark.store


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("127.0.0.1:1", "DATABASE_URL: the database usage_tracker there has no Citus"),
        ("127.0.0.1", "127.0.0.1: must be host:port"),
    ],
)
async def test_a_server_that_is_no_coordinator_and_an_address_that_is_none_are_refused(
    address: str,
    complaint: str,
    settings: Settings,
    service_database: Callable[[str], Awaitable[Database]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await service_database("usage_tracker")
    monkeypatch.setenv("MINDWEAVE_SECRET", settings.secret)
    monkeypatch.setenv("DATABASE_URL", settings.database_url or "")
    monkeypatch.setenv("REDIS_URL", settings.redis_url or "")
    with pytest.raises(SettingsError, match=complaint):
        await asyncio.to_thread(partial(add_node, address, tmp_path, print))
