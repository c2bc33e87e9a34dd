"""A ledger of the release before, on which this one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from common.database import Database
from common.database.schema import migrate
from common.settings import Settings
from services.usage_tracker.domain.windows import SUMS
from tests.conftest import ROOT

pytestmark = pytest.mark.store

MIGRATIONS = ROOT / "services" / "usage_tracker" / "migrations"
START = datetime(2026, 11, 20, tzinfo=UTC)


async def test_what_was_counted_before_there_was_a_list_of_models_without_a_price_is_on_it(
    service_database: Callable[..., Awaitable[Database]], settings: Settings, tmp_path: Path
) -> None:
    for name in ("0001_usage.sql", "0002_layout.sql"):
        shutil.copy(MIGRATIONS / name, tmp_path)
    db = await service_database("usage_tracker", tmp_path)
    names = ", ".join(SUMS)
    async with db.session() as connection:
        await connection.execute("INSERT INTO parts (part, last_seq) VALUES (0, 3), (1, 1)")
        for part, seq, unpriced in ((0, 1, 2), (0, 2, 0), (0, 3, 5), (1, 1, 1)):
            await connection.execute(
                f"""
                INSERT INTO deltas (part, seq, org_id, start, model, latency_bins, latency_counts,
                    {names})
                VALUES ($1, $2, $3, $4, 'ours', '{{}}', '{{}}',
                    {", ".join("$5" if n == "unpriced_events" else "0" for n in SUMS)})
                """,
                part,
                seq,
                UUID(int=1),
                START,
                unpriced,
            )
    await migrate(settings.owner_dsn("usage_tracker"), "usage_tracker", MIGRATIONS)
    async with db.session() as connection:
        left = await connection.fetch("SELECT part, model, events, first_at FROM unpriced")
        behind = await connection.fetchval(
            "SELECT count(*) FROM parts WHERE unpriced_seq <> last_seq"
        )
    assert {tuple(row) for row in left} == {(0, "ours", 7, START), (1, "ours", 1, START)}
    assert behind == 0
