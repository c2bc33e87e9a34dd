"""``mindweave export-raw``: what is in the file, and that it is whole or not there."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from common.database import Database
from common.errors import NotFound
from common.timeseries import drop_partitions
from fleet import raw_export
from fleet.cli import app
from fleet.raw_export import Exported, NoParquet, exported
from services.usage_tracker.store import UsageStore
from services.usage_tracker.store.raw_export import Expired, ExportStore
from tests.usage_tracker.conftest import MakeArrived, MakeRecord, arrived, record
from tests.usage_tracker.repricing.conftest import DAY, HAIKU, NOW, ORG, OTHER, OWN, TABLES, World

__all__ = ["arrived", "record"]

RAW = timedelta(days=7)
EARLY = NOW - 6 * DAY


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=4)


@pytest.fixture
async def world(db: Database) -> World:
    async with db.session() as connection:
        for table in (*TABLES, "relays"):
            await connection.execute(f"DELETE FROM {table}")
    return World(db, 1)


async def export(db: Database, out: Path, **given: Any) -> Exported:
    since, until = given.get("since", EARLY), given.get("until", NOW + DAY)
    return await exported(ExportStore(db, RAW), given.get("org", ORG), since, until, out)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.store
async def test_every_event_is_a_row_of_typed_columns_with_what_it_costs_now(
    db: Database, world: World, arrived: MakeArrived, record: MakeRecord, tmp_path: Path
) -> None:
    full = arrived(
        model=OWN,
        api_key_id=uuid4(),
        user_id=uuid4(),
        user_ref="ada",
        latency_us=812_500,
        client_cost_nano=5,
        metadata=b'{"a":12345678901234567890}',
    )
    mark = arrived(model=None, event_type="session", session_id="s")
    await world.count(record(full, mark, arrived(), arrived(model="never priced")))
    for usd in (3, 1):
        await world.state(usd=usd)
        await world.orders.order_all(ORG, NOW - DAY, NOW + DAY)
        await world.finish()
    told = await export(db, tmp_path / "new" / "day.parquet")

    table = pq.read_table(told.file)
    assert told.file == tmp_path / "new" / "day.parquet"
    kinds = {field.name: field.type for field in table.schema}
    assert kinds["timestamp"] == kinds["received_at"] == pa.timestamp("us", tz="UTC")
    assert (kinds["cost_usd"], kinds["cost_nano"]) == (pa.decimal128(38, 9), pa.int64())
    rows = {row["event_id"]: row for row in table.to_pylist()}
    own = rows[str(UUID(bytes=full.row.event_id))]
    assert (own["cost_nano"], own["cost_usd"]) == (1_200_000, Decimal("0.0012"))
    assert (own["counted_cost_nano"], own["counted_price_version"]) == (None, None)
    assert (own["adjustments"], own["unpriced"]) == (2, False)
    assert own["price_version"].startswith("organization/")
    assert own["timestamp"] == own["received_at"] == NOW
    assert (own["user_ref"], own["latency_us"], own["client_cost_nano"]) == ("ada", 812_500, 5)
    assert own["metadata"] == '{"a":12345678901234567890}'
    session = rows[str(UUID(bytes=mark.row.event_id))]
    assert (session["cost_nano"], session["unpriced"], session["session_id"]) == (None, False, "s")
    sums = [sum(row[name] or 0 for row in rows.values()) for name in ("cost_nano", "unpriced")]
    assert (told.events, told.cost_nano, told.unpriced) == (4, *sums) == (4, 2_700_000, 1)
    assert "4 events, 1 of them unpriced, 0.002700000 USD" in told.line()


@pytest.mark.store
async def test_each_event_of_the_period_is_there_once_over_days_and_batches(
    db: Database,
    world: World,
    arrived: MakeArrived,
    record: MakeRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raw_export, "_EVENTS", 7)
    mine = []
    for day in range(4):
        some = [arrived(at=NOW - day * DAY, received_at=NOW - (day // 2) * DAY) for _ in range(20)]
        await world.count(record(*some, *some[:5]))
        mine += some
    await world.count(record(*(arrived(org_id=OTHER) for _ in range(5))))
    told = await export(db, tmp_path, since=NOW - 2 * DAY, until=NOW)

    found = pq.read_table(told.file)["event_id"].to_pylist()
    wanted = [str(UUID(bytes=e.row.event_id)) for e in mine[20:60]]
    assert sorted(found) == sorted(wanted)
    assert told.events == 40
    assert told.file.name == f"raw-events-{ORG}-20261119T120030Z-20261121T120030Z.parquet"
    assert pq.ParquetFile(told.file).metadata.num_row_groups > 4


@pytest.mark.store
async def test_a_file_is_whole_or_as_it_was(
    db: Database,
    world: World,
    arrived: MakeArrived,
    record: MakeRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await world.count(record(*(arrived() for _ in range(20))))
    file = tmp_path / "day.parquet"
    first = await export(db, file)
    before = file.read_bytes()
    await world.count(record(arrived()))
    monkeypatch.setattr(raw_export, "_EVENTS", 5)
    write, writes = pq.ParquetWriter.write_table, []

    def broken(writer: Any, table: Any) -> None:
        writes.append(names(tmp_path))
        if len(writes) == 3:
            raise OSError(28, "No space left on device")
        write(writer, table)

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", broken)
        with pytest.raises(OSError, match="No space"):
            await export(db, file)
    assert len(writes[-1]) == 2
    assert names(tmp_path) == ["day.parquet"]
    assert file.read_bytes() == before
    again = await export(db, file)
    assert (first.events, again.events) == (20, 21)
    assert pq.read_table(file).num_rows == 21
    assert names(tmp_path) == ["day.parquet"]


@pytest.mark.store
async def test_what_cannot_be_whole_or_is_nobodys_is_refused_and_an_empty_period_is_not(
    db: Database, world: World, arrived: MakeArrived, record: MakeRecord, tmp_path: Path
) -> None:
    await world.count(record(arrived(model=HAIKU)))
    empty = await export(db, tmp_path / "empty.parquet", since=EARLY, until=EARLY + DAY)
    assert (empty.events, pq.read_table(empty.file).num_rows) == (0, 0)
    with pytest.raises(NotFound, match="no usage"):
        await export(db, tmp_path, org=uuid4())
    await UsageStore(db).note_watermarks({0: NOW, 1: NOW - 2 * DAY})
    gone = datetime(2026, 11, 14, 0, 4, tzinfo=UTC)
    with pytest.raises(Expired, match="2026-11-14 00:05"):
        await export(db, tmp_path, since=gone)
    await export(db, tmp_path / "oldest.parquet", since=gone + timedelta(minutes=1))
    assert names(tmp_path) == ["empty.parquet", "oldest.parquet"]


@pytest.mark.store
async def test_other_days_are_dropped_while_one_is_exported(
    db: Database, world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    old = NOW - 30 * DAY
    for at in (old, NOW):
        await world.count(record(arrived(received_at=at, at=at)))
    async with ExportStore(db, RAW).snapshot(ORG, NOW - DAY, NOW + DAY) as found:
        rows = [row async for batch in found.batches(5) for row in batch]
        async with db.session() as other:
            dropped = await drop_partitions(other, "events", old.date() + DAY)
    assert (len(rows), f"events_p{old:%Y%m%d}" in dropped) == (1, True)


@pytest.mark.store
async def test_without_the_library_it_says_what_to_install(
    db: Database, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NoParquet, match="`parquet`"):
        await export(db, tmp_path)
    assert names(tmp_path) == []


def run(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export-raw", *options])
    return done.exit_code, done.output


@pytest.mark.unit
def test_without_a_platform_it_ends_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MINDWEAVE_SECRET", "DATABASE_URL", "MINDWEAVE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    times = ("--from", "2026-11-20", "--to", "2026-11-21")
    folders = ("--out", str(tmp_path), "--data", str(tmp_path))
    code, told = run("--org", str(uuid4()), *times, *folders)
    assert code == 1
    assert "No platform runs in" in told


@pytest.mark.unit
@pytest.mark.parametrize(
    ("org", "until"),
    [
        *((str(ORG), until) for until in ("2026-11-20", "2026-11-19", "yesterday", "9999-12-31")),
        ("nobody", "2026-11-21"),
    ],
)
def test_a_period_that_is_none_and_an_id_that_is_none_are_refused(
    tmp_path: Path, org: str, until: str
) -> None:
    folder = str(tmp_path)
    code, _ = run("--org", org, "--from", "2026-11-20", "--to", until, "--out", folder)
    assert code == 2
