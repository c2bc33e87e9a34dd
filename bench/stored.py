"""A store that holds identities of the past days, written straight into the ledger's table."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import numpy as np

from bench.ledger import Events, numbered
from bench.tenant import Tenant
from bench.traffic import ROW_BYTES, Bytes, Traffic, body_of
from common.columns import Integers
from common.database.copying import CopyRows, copy_rows
from common.settings import Settings
from common.timeseries import ensure_partitions
from services.usage_tracker.domain.events import Event, read_batch
from services.usage_tracker.domain.judging import Judge, Project, Row, Tenancy, microseconds
from services.usage_tracker.domain.records import events_partition
from services.usage_tracker.store.ledger import IDS
from services.usage_tracker.store.rows import ID_COLUMNS

SERVICE = "usage_tracker"
_PAST = timedelta(days=7)
# So that what is sent again during the run is not too old meanwhile.
_MARGIN = timedelta(hours=2)
_BLOCK = 200_000
_CONNECTIONS = 2
# Of those stored, so many are of events that may be sent again.
_AGAIN = 50_000


@dataclass(frozen=True, slots=True)
class Stored:
    """What was written.

    Attributes:
        count: identities.
        partitions: of ``usage.events``.
        rows: a file of encoded events of some of them, of shape (organizations, rows, bytes).
        events: those events.
        seconds: that it took to copy them.
        vacuum_seconds: to do what autovacuum does of past days, and a checkpoint.
    """

    count: int
    partitions: int
    rows: Path
    events: Events
    seconds: float
    vacuum_seconds: float


@dataclass(frozen=True, slots=True)
class _Identities:
    """Identities as columns; ids and digests are of shape (count, 16), times microseconds."""

    organizations: Bytes
    events: Bytes
    received_at: Integers
    digests: Bytes

    def copied(self, partitions: int) -> bytes:
        """For ``ID_COLUMNS``: those of one part together, as commits leave them."""
        pairs = zip(_listed(self.organizations), _listed(self.events), strict=True)
        parts = np.array([events_partition(*pair, partitions) for pair in pairs], ">i2")
        order = np.argsort(parts, kind="stable")
        rows = CopyRows(len(order), len(ID_COLUMNS))
        rows.raw(parts[order].view(np.uint8).reshape(-1, 2)).raw(self.organizations[order])
        rows.raw(self.events[order]).timestamp(self.received_at[order])
        return rows.raw(self.digests[order]).finish()


async def store_identities(
    settings: Settings, tenants: Sequence[Tenant], count: int, rows: Path
) -> Stored:
    """Write so many identities of the past 7 days, evenly over time and organizations.

    Most are of random ids and digests; those of the events in ``rows`` are just what the platform
    keeps of them.
    """
    now = datetime.now(UTC)
    since = now - _PAST + _MARGIN
    known = min(count, _AGAIN) // len(tenants)
    events, first = _known(tenants, known, since, now, rows)
    writer = _Writer(settings, tenants, since, now)
    began = time.perf_counter()
    partitions = await writer.write(first, count - len(events))
    copied = time.perf_counter()
    await _settle(str(settings.database_url))
    vacuumed = time.perf_counter() - copied
    return Stored(count, partitions, rows, events, copied - began, vacuumed)


class _Writer:
    """Copies blocks over some connections, so that one is made while another is written."""

    def __init__(
        self, settings: Settings, tenants: Sequence[Tenant], since: datetime, until: datetime
    ) -> None:
        # As the service itself: partitions become those of the tables' owner.
        self._dsn = settings.runtime_dsn(SERVICE)
        self._organizations = np.stack([_bytes(tenant.org_id) for tenant in tenants])
        self._since, self._until = microseconds(since), microseconds(until)
        self._days = [(since + timedelta(days=n)).date() for n in range((until - since).days + 2)]

    async def write(self, first: _Identities, count: int) -> int:
        """Write these, and so many more; returns how many partitions ``usage.events`` has."""
        connection = await asyncpg.connect(self._dsn)
        await ensure_partitions(connection, IDS, self._days)
        partitions: int = await connection.fetchval("SELECT partitions FROM layout")
        await copy_rows(connection, IDS, ID_COLUMNS, first.copied(partitions))
        await connection.close()
        blocks = self._blocks(count)
        await asyncio.gather(*(self._copy(blocks, partitions) for _ in range(_CONNECTIONS)))
        return partitions

    async def _copy(self, blocks: Iterator[tuple[int, int, int]], partitions: int) -> None:
        connection = await asyncpg.connect(self._dsn, command_timeout=None)
        for block in blocks:
            stream = await asyncio.to_thread(self._stream, partitions, *block)
            await copy_rows(connection, IDS, ID_COLUMNS, stream)
        await connection.close()

    def _blocks(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Counts, with the times between which they are."""
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            since, until = (
                self._since + (self._until - self._since) * place // count for place in (start, end)
            )
            yield end - start, since, until

    def _stream(self, partitions: int, count: int, since: int, until: int) -> bytes:
        random = np.random.default_rng()
        chosen = random.integers(len(self._organizations), size=count)
        events, digests = (
            np.frombuffer(random.bytes(16 * count), np.uint8).reshape(count, 16) for _ in range(2)
        )
        received_at = np.sort(random.integers(since, until, count))
        found = _Identities(self._organizations[chosen], events, received_at, digests)
        return found.copied(partitions)


def _known(
    tenants: Sequence[Tenant], each: int, since: datetime, until: datetime, file: Path
) -> tuple[Events, _Identities]:
    """Events of each organization, encoded into the file, and what the platform keeps of them."""
    rows = np.empty((len(tenants), each, ROW_BYTES), np.uint8)
    judged: list[Row] = []
    for number, tenant in enumerate(tenants):
        seed = secrets.randbits(32)
        if each:
            at = np.linspace(microseconds(since), microseconds(until), each).astype("M8[us]")
            rows[number], _ = Traffic(tenant.projects, seed, users=20, pool=1000).rows(each, at)
            judged += _judged(tenant, rows[number], until)
    np.save(file, rows)
    identities = _Identities(
        _joined([row.org_id for row in judged]),
        _joined([row.event_id for row in judged]),
        np.array([row.at for row in judged], np.int64),
        _joined([row.digest for row in judged]),
    )
    numbers = np.repeat(np.arange(1, len(tenants) + 1), each)
    return numbered(numbers, identities.events), identities


def _judged(tenant: Tenant, rows: Bytes, now: datetime) -> list[Row]:
    """The events as the platform reads them.

    Raises:
        ValueError: it would not take one.
    """
    org = UUID(tenant.org_id)
    projects = {id_: Project(id_, org, None) for id_ in map(UUID, tenant.projects)}
    judge = Judge(Tenancy({org: True}, projects), now, _PAST)
    found = []
    for event in read_batch(body_of(rows)):
        row = judge.judge(event) if isinstance(event, Event) else event
        if not isinstance(row, Row):
            raise ValueError(f"an event is not taken: {row}")
        found.append(row)
    return found


async def _settle(database_url: str) -> None:
    """Leave nothing to autovacuum and to a checkpoint that is not of the run itself."""
    connection = await asyncpg.connect(database_url, database=SERVICE, command_timeout=None)
    await connection.execute(f"VACUUM (ANALYZE) {IDS}")
    await connection.execute("CHECKPOINT")
    await connection.close()


def _bytes(id_: str) -> Bytes:
    return np.frombuffer(UUID(id_).bytes, np.uint8)


def _joined(ids: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)


def _listed(ids: Bytes) -> list[bytes]:
    found: list[bytes] = np.ascontiguousarray(ids).view("V16").reshape(-1).tolist()
    return found
