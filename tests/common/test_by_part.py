from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest

from common.database import Database
from tests.conftest import ROOT
from tests.variants import SERVICES

pytestmark = pytest.mark.store

# What is about orders and walks, of all parts, beside their rows.
BESIDE = {"usage_tracker": {"walks", "repricing_parts"}, "analytics": set()}
KIT = {"offsets"}


@pytest.mark.parametrize("service", SERVICES)
async def test_every_table_with_parts_is_said_to_lie_by_part(
    service_database: Callable[[str], Awaitable[Database]], service: str
) -> None:
    db = await service_database(service)
    async with db.session() as connection:
        rows = await connection.fetch(
            """
            SELECT relname FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
            WHERE attname = 'part' AND relkind IN ('r', 'p') AND NOT relispartition
            """
        )
    migrations = sorted((ROOT / "services" / service / "migrations").glob("*.sql"))
    said = re.findall(
        r"mindweave_by_part\(([^)]*)\)", "".join(path.read_text() for path in migrations)
    )
    tables = set(re.findall(r"'(\w+)'", "".join(said)))
    assert {row["relname"] for row in rows} == tables | BESIDE[service] | KIT
