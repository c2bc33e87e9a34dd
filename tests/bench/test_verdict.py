"""What the benchmark calls lost and doubled, by rows that a test puts into the ledger."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from bench.ledger import numbered, verdict
from bench.tenant import Tenant

pytestmark = pytest.mark.store


def events(number, ids):
    return numbered(
        np.full(len(ids), number),
        np.frombuffer(b"".join(i.bytes for i in ids), np.uint8).reshape(-1, 16),
    )


@pytest.fixture(scope="module")
async def db(service_database):
    return await service_database("usage_tracker")


@pytest.fixture
def tenants():
    return [Tenant(str(uuid4()), [], "", "") for _ in range(2)]


async def test_a_lost_a_doubled_and_an_old_event_are_each_told(db, settings, tenants, tmp_path):
    there, twice, old, lost, elsewhere = (uuid4() for _ in range(5))
    async with db.session() as connection:
        await connection.execute("SELECT mindweave_ensure_partition('events', '2026-11-21')")
        await connection.executemany(
            """
            INSERT INTO events (part, received_at, org_id, event_id, at, event_type, status,
                input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens,
                cache_write_1h_tokens)
            VALUES (0, '2026-11-21T12:00Z', $1, $2, '2026-11-21T12:00Z', 'session', 'ok',
                0, 0, 0, 0, 0)
            """,
            [(tenants[0].org_id, i) for i in (there, twice, twice, old)]
            + [(tenants[1].org_id, elsewhere), (str(uuid4()), lost)],
        )
        await connection.execute("INSERT INTO parts (part, duplicates, conflicts) VALUES (0, 3, 1)")
    acknowledged = [events(1, [there, twice, lost]), events(1, [elsewhere])]
    files: list[Path] = []
    for number, some in enumerate(acknowledged):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(some.tobytes())
    before = events(1, [old, uuid4()])
    found = await verdict(settings.database_url, tenants, files, before)
    assert (found.lost, found.doubled) == (2, 2), "an event of another organization is no such one"
    assert (found.rows, found.windows, found.duplicates, found.conflicts) == (5, 0, 3, 1)
