"""The database of a service with two plain tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.database import Database, Scope
from common.settings import Settings
from common.testing import sealer_of, silent_telemetry

NAME = "plain"
MIGRATION = """
CREATE TABLE notes (id int PRIMARY KEY, label text);
CREATE TABLE kinds (id uuid, at timestamptz, day date, tree jsonb, raw bytea, ids uuid[]);
CREATE TABLE copied (two smallint, eight bigint, maybe bigint, at timestamptz, id uuid, a text,
    b text, c uuid, d bytea, alone text, fours integer[], eights bigint[]);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_notes.sql").write_text(MIGRATION)
    return folder


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]], folder: Path) -> Database:
    return await service_database(NAME, folder)


@pytest.fixture(autouse=True)
async def _no_notes(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("DELETE FROM notes")


async def opened(dsn: str, settings: Settings, **options: Any) -> Database:
    given: dict[str, Any] = {
        "name": NAME,
        "size": 2,
        "clock": SystemClock(),
        "sealer": sealer_of(settings, NAME),
        "telemetry": silent_telemetry(NAME),
    }
    return await Database.open(dsn, **given | options)


async def labels(db: Database) -> list[str]:
    async with db.read(Scope()) as connection:
        return [r["label"] for r in await connection.fetch("SELECT label FROM notes ORDER BY id")]
