"""`mindweave add-node` where it can do nothing; where it can: tests/e2e/test_add_node.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from common.database import Database
from common.database.connection import connect
from common.settings import Settings, SettingsError
from fleet.nodes import add_node
from fleet.start import told_in_a_line

Named = Callable[[Settings], None]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Names a server of databases and a broker in the environment."""

    def name(settings: Settings) -> None:
        monkeypatch.setenv("MINDWEAVE_SECRET", settings.secret)
        monkeypatch.setenv("DATABASE_URL", settings.database_url or "")
        monkeypatch.setenv("REDIS_URL", settings.redis_url or "")

    return name


@pytest.mark.store
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
    named: Named,
) -> None:
    await service_database("usage_tracker")
    named(settings)
    with pytest.raises(SettingsError, match=complaint):
        await asyncio.to_thread(partial(add_node, address, tmp_path, print))


@pytest.mark.store
async def test_what_a_server_refuses_is_a_line(
    settings: Settings,
    service_database: Callable[[str], Awaitable[Database]],
    tmp_path: Path,
    named: Named,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await service_database("usage_tracker")
    named(settings)
    parts = urlsplit(settings.database_url or "")
    superuser = await connect(urlunsplit(parts._replace(path="/usage_tracker")), "a test")
    # Says that it has Citus, and has nothing of it.
    await superuser.execute("UPDATE pg_extension SET extname = 'citus' WHERE extname = 'plpgsql'")
    await superuser.close()

    def run() -> None:
        with told_in_a_line():
            add_node("127.0.0.1:1", tmp_path, print)

    with pytest.raises(SystemExit):
        await asyncio.to_thread(run)
    said = 'mindweave: usage_tracker: relation "pg_dist_node" does not exist\n'
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.unit
@pytest.mark.parametrize("variable", ["DATABASE_URL_USAGE_TRACKER", "DATABASE_OWNER_URL_ANALYTICS"])
def test_a_server_besides_the_coordinator_is_refused(
    variable: str, named: Named, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dsn = "postgresql://admin@127.0.0.1:1/postgres"
    named(Settings(secret="s" * 32, database_url=dsn, redis_url="redis://127.0.0.1:1"))
    monkeypatch.setenv(variable, "postgresql://somebody@127.0.0.1:2/usage")
    with pytest.raises(SettingsError, match=f"^{variable}: "):
        add_node("127.0.0.1:3", tmp_path, print)
