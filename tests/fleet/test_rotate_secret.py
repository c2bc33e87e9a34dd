"""``mindweave rotate-secret``: what the old secret has sealed is opened by the new one alone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.database import Database
from common.database.connection import connect
from common.errors import NotReady
from common.identity.sealing import SealBroken
from common.settings import Settings, SettingsError
from common.testing import sealer_of, silent_telemetry
from fleet.embedded import DataFolder
from fleet.migrate import migrate_all
from fleet.secret import rotate_secret
from fleet.services import owners
from fleet.surroundings import own_database
from services.auth.actions.signing_keys import KeyRing

pytestmark = pytest.mark.store

AUTH = [owner for owner in owners() if owner.name == "auth"]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINDWEAVE_SECRET", "DATABASE_URL", "REDIS_URL", "KAFKA_BROKERS"):
        monkeypatch.delenv(name, raising=False)


async def kids(settings: Settings) -> list[str]:
    """Of the keys that sign, as a process of auth with these settings sees them."""
    await migrate_all(AUTH, settings)
    db = await Database.open(
        settings.runtime_dsn("auth"),
        name="auth",
        size=1,
        clock=SystemClock(),
        sealer=sealer_of(settings, "auth"),
        telemetry=silent_telemetry("auth"),
    )
    try:
        return [key.kid for key in await KeyRing(db, db.sealer, db.clock).published()]
    finally:
        await db.close()


async def beside(settings: Settings, rotate: Callable[[], None]) -> None:
    """While somebody is connected to the database of auth."""
    connection = await connect(settings.owner_dsn("auth"), "auth")
    try:
        await asyncio.to_thread(rotate)
    finally:
        await connection.close()


def seen(opened: Callable[[], AbstractContextManager[Settings]]) -> list[str]:
    with opened() as settings:
        return asyncio.run(kids(settings))


def test_the_secret_of_a_data_folder_is_replaced_and_sessions_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    before = seen(lambda: own_database(data))
    old = (data / "secret").read_text()
    shutil.copy(data / "secret", tmp_path / "old")

    # Of a disk that was full.
    (data / "secret.new").touch()
    rotate_secret(data, print)
    assert (data / "secret").read_text() != old
    assert len((data / "secret").read_text()) >= 32
    assert seen(lambda: own_database(data)) == before
    # Broken off after the database was changed: it knows that it is done.
    (data / "secret").rename(data / "secret.new")
    shutil.copy(tmp_path / "old", data / "secret")
    rotate_secret(data, print)
    assert seen(lambda: own_database(data)) == before

    (data / "secret").write_text(old)
    with pytest.raises(NotReady), own_database(data) as settings:
        asyncio.run(kids(settings.model_copy(update={"startup_timeout": 0.1})))


def test_the_secret_of_given_servers_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with closing(DataFolder(tmp_path)) as folder:
        server = folder.postgres()
        server.start()
        try:
            monkeypatch.setenv("DATABASE_URL", server.admin_dsn)
            monkeypatch.setenv("MINDWEAVE_SECRET", "o" * 32)
            old = Settings()
            before = asyncio.run(kids(old))
            with pytest.raises(SettingsError, match="MINDWEAVE_NEW_SECRET"):
                rotate_secret(tmp_path, told.append)
            monkeypatch.setenv("MINDWEAVE_NEW_SECRET", "n" * 32)
            with pytest.raises(NotReady, match="1 sessions"):
                asyncio.run(beside(old, partial(rotate_secret, tmp_path, told.append)))
            assert asyncio.run(kids(old)) == before
            rotate_secret(tmp_path, told.append)
            rotate_secret(tmp_path, told.append)
            with pytest.raises(SealBroken):
                asyncio.run(kids(old))
            new = old.model_copy(update={"secret": "n" * 32})
            assert asyncio.run(kids(new)) == before
        finally:
            server.stop()
    assert ["mindweave migrate" in line for line in told] == [True, False, True]
    assert "done already" in told[1]
