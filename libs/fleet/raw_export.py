"""``mindweave export-raw``: raw events of a period as a Parquet file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from common.errors import MindWeaveError, NotFound
from common.telemetry import configure_logs
from fleet.access import LEDGER, database, ledger_settings
from services.usage_tracker.domain.pricing import usd
from services.usage_tracker.store.raw_export import EXPORTED, ExportStore

_SUFFIX = ".parquet"
# Events in memory at once, which are a row group of the file.
_EVENTS = 20_000
_TIMES = {"at": "timestamp", "received_at": "received_at"}
_IDS = frozenset({"event_id", "org_id", "project_id", "team_id", "user_id", "api_key_id"})


class NoParquet(MindWeaveError):
    """The library that writes Parquet is not installed."""


class Rows(Protocol):
    """Takes rows of the columns of ``EXPORTED``."""

    def write(self, rows: Sequence[Any]) -> None: ...


@dataclass(slots=True)
class Exported:
    """What is in a file."""

    file: Path
    events: int = 0
    unpriced: int = 0
    cost_nano: int = 0
    watermark: datetime | None = None

    def line(self) -> str:
        until = "unknown" if self.watermark is None else f"{self.watermark:%Y-%m-%dT%H:%M:%S.%fZ}"
        return (
            f"{self.events:,} events, {self.unpriced:,} of them unpriced,"
            f" {usd(self.cost_nano)} USD, all that was accepted before {until}: {self.file}"
        )


def export_raw(
    org_id: UUID,
    since: datetime,
    until: datetime,
    out: Path,
    data: Path,
    tell: Callable[[str], None],
) -> None:
    """Write a file with the events, whole or not at all.

    Args:
        org_id: whose events.
        since: included, by the events' own times.
        until: excluded.
        out: the file, or a folder for one that is named for what it holds.
        data: the folder of a platform, where settings name no database.
        tell: is told what is in the file.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        NotFound: the organization never had any event.
        Expired: some of the events may be gone.
        NoParquet: the library is missing.
        Unavailable: the database is.
        OSError: the file cannot be written.
        SettingsError: a setting is wrong.
    """
    configure_logs("warning")
    tell(asyncio.run(_export(org_id, since, until, out, data)).line())


async def _export(
    org_id: UUID, since: datetime, until: datetime, out: Path, data: Path
) -> Exported:
    settings = ledger_settings(data)
    async with database(settings, LEDGER) as db:
        store = ExportStore(db, timedelta(days=settings.raw_retention_days))
        return await exported(store, org_id, since, until, out)


async def exported(
    store: ExportStore, org_id: UUID, since: datetime, until: datetime, out: Path
) -> Exported:
    """As ``export_raw``, of the ledger's database."""
    found = Exported(_file(out, org_id, since, until))
    async with store.snapshot(org_id, since, until) as snapshot:
        found.watermark = await snapshot.watermark()
        with _written(found.file) as writer:
            async for rows in snapshot.batches(_EVENTS):
                await asyncio.to_thread(writer.write, rows)
                found.events += len(rows)
                found.unpriced += sum(row["unpriced"] for row in rows)
                found.cost_nano += sum(row["cost_nano"] or 0 for row in rows)
            if not found.events and not await snapshot.is_known():
                raise NotFound(f"There is no usage of an organization {org_id}.")
    return found


def _file(out: Path, org_id: UUID, since: datetime, until: datetime) -> Path:
    if out.suffix == _SUFFIX and not out.is_dir():
        return out
    return out / f"raw-events-{org_id}-{since:%Y%m%dT%H%M%SZ}-{until:%Y%m%dT%H%M%SZ}{_SUFFIX}"


@contextmanager
def _written(file: Path) -> Iterator[Rows]:
    """A file that is there when the block has ended without an error, and durable."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise NoParquet(
            "Parquet is written by pyarrow: install mindweave with the extra `parquet`."
        ) from error

    kinds = _kinds(pa)
    schema = pa.schema([pa.field(name, kind, nullable) for name, (kind, nullable) in kinds.items()])

    class Columns:
        """Writes rows column by column."""

        def __init__(self, writer: Any) -> None:
            self._writer = writer

        def write(self, rows: Sequence[Any]) -> None:
            columns = dict(_columns(rows))
            arrays = [pa.array(columns[name], kind) for name, (kind, _) in kinds.items()]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("xb") as sink:
            with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
                yield Columns(writer)
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _kinds(pa: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each column, and whether a value may lack."""
    found: dict[str, tuple[Any, bool]] = {}
    always = {"event_id", "org_id", "event_type", "status", "adjustments", "unpriced"}
    for name in EXPORTED:
        if name in _TIMES:
            found[_TIMES[name]] = pa.timestamp("us", tz="UTC"), False
        elif name == "unpriced":
            found[name] = pa.bool_(), False
        elif name.endswith(("_tokens", "_nano", "_us")) or name == "adjustments":
            found[name] = pa.int64(), not name.endswith("_tokens") and name not in always
        else:
            found[name] = pa.string(), name not in always
    return found | {"cost_usd": (pa.decimal128(38, 9), True)}


def _columns(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    for name in EXPORTED:
        values = [row[name] for row in rows]
        if name in _IDS:
            values = [None if value is None else str(value) for value in values]
        yield _TIMES.get(name, name), values
        if name == "cost_nano":
            yield "cost_usd", [None if v is None else Decimal(v).scaleb(-9) for v in values]
