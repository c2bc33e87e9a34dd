from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry

from common.database import Database, Scope, UnsafeRole, migrate
from common.errors import NotFound, Unavailable
from common.settings import Settings
from common.telemetry import Metrics, SpanKind, Telemetry, Tracing
from mindweave.account.v1.events_pb2 import OrgDeleted
from tests.common.database.conftest import NAME, labels, opened

pytestmark = pytest.mark.store


async def test_a_change_commits_where_its_block_ends(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'kept')")
        assert await labels(db) == []
    assert await labels(db) == ["kept"]


async def test_an_error_in_its_block_rolls_a_change_back_and_is_not_changed_itself(
    db: Database,
) -> None:

    async def fail() -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'lost')")
            raise NotFound("no such note")

    with pytest.raises(NotFound, match="no such note"):
        await fail()
    with pytest.raises(asyncpg.UniqueViolationError):
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'a'), (1, 'b')")
    assert await labels(db) == []


async def test_a_read_shows_one_snapshot_and_writes_nothing(db: Database) -> None:
    async with db.read(Scope()) as connection:
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'later')")
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with db.read(Scope()) as connection:
            await connection.execute("INSERT INTO notes VALUES (2, 'never')")


async def test_values_come_back_as_they_are_used(db: Database) -> None:
    uuid, tree = uuid4(), {"a": [1, 2.5, None, "ä"], "b": {}}
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    async with db.change(Scope()) as change:
        await change.connection.execute(
            "INSERT INTO kinds VALUES ($1, $2, $3, $4, $5, $6)",
            uuid,
            moment,
            moment.date(),
            tree,
            b"\x00\xff",
            [uuid],
        )
        row = await change.connection.fetchrow("DELETE FROM kinds RETURNING *")
    assert row is not None
    assert isinstance(row["id"], UUID)
    assert dict(row) == {
        "id": uuid,
        "at": moment,
        "day": moment.date(),
        "tree": tree,
        "raw": b"\x00\xff",
        "ids": [uuid],
    }
    assert row["at"].tzinfo == UTC


async def test_a_superuser_is_refused_as_runtime_role(settings: Settings) -> None:
    database = await opened(settings.database_url or "", settings)
    try:
        with pytest.raises(UnsafeRole):
            await database.ping()
    finally:
        await database.close()


async def test_a_deadlock_asks_the_caller_to_try_again(db: Database) -> None:
    async with db.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'x'), (2, 'x')")
    both = asyncio.Barrier(2)

    async def crosswise(first: int, second: int) -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("SELECT FROM notes WHERE id = $1 FOR UPDATE", first)
            await both.wait()
            await change.connection.execute("SELECT FROM notes WHERE id = $1 FOR UPDATE", second)

    outcomes = await asyncio.gather(crosswise(1, 2), crosswise(2, 1), return_exceptions=True)
    failed = [outcome for outcome in outcomes if outcome is not None]
    assert len(failed) == 1
    assert isinstance(failed[0], Unavailable)
    assert failed[0].code == "try_again"


async def test_a_mistake_in_the_use_of_a_connection_is_no_failure_of_the_database(
    db: Database,
) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        async with db.read(Scope()) as connection:
            await asyncio.gather(*(connection.fetchval("SELECT pg_sleep(0.1)") for _ in range(2)))
    await db.ping()


async def test_a_table_that_a_migration_changed_meanwhile_asks_to_try_again(
    db: Database, folder: Path, settings: Settings
) -> None:
    single = await opened(settings.runtime_dsn(NAME), settings, size=1)
    try:
        assert await labels(single) == []
        async with single.read(Scope()) as connection:
            assert await connection.fetch("SELECT * FROM notes") == []
        (folder / "0002_wider.sql").write_text("ALTER TABLE notes ADD COLUMN extra int")
        await migrate(settings.owner_dsn(NAME), NAME, folder)
        with pytest.raises(Unavailable) as caught:
            async with single.read(Scope()) as connection:
                await connection.fetch("SELECT * FROM notes")
        assert caught.value.code == "try_again"
        async with single.read(Scope()) as connection:
            assert await connection.fetch("SELECT * FROM notes") == []
    finally:
        await single.close()


async def test_the_pools_connections_are_counted(db: Database, settings: Settings) -> None:
    database = await opened(settings.runtime_dsn(NAME), settings)
    registry = database.telemetry.metrics.registry

    def connections(state: str) -> float | None:
        labels = {"service": NAME, "state": state}
        return registry.get_sample_value("mindweave_database_connections", labels)

    try:
        await database.ping()
        assert (connections("idle"), connections("used")) == (1, 0)
        async with database.read(Scope()), database.read(Scope()):
            assert (connections("idle"), connections("used")) == (0, 2)
        assert (connections("idle"), connections("used")) == (2, 0)
        for name in ("acquire_seconds_count", "transaction_seconds_count"):
            sample = f"mindweave_database_{name} "
            text = database.telemetry.metrics.exposition().decode()
            assert sample.strip() in text
    finally:
        await database.close()


async def test_a_transaction_is_a_span_that_its_events_continue(
    db: Database, settings: Settings
) -> None:
    spans = InMemorySpanExporter()

    class Recording(Tracing):
        def tracer(self, service: str) -> Tracer:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(spans))
            return provider.get_tracer(service)

    metrics, tracing = Metrics(CollectorRegistry()), Recording(None, version="test")
    telemetry = Telemetry(NAME, metrics=metrics, tracing=tracing)
    database = await opened(settings.runtime_dsn(NAME), settings, telemetry=telemetry)
    try:
        async with database.change(Scope()) as change:
            change.publish(OrgDeleted(org_id=str(uuid4())))
        async with database.session() as connection:
            headers = await connection.fetchval("DELETE FROM outbox RETURNING headers")
    finally:
        await database.close()
    [span] = spans.get_finished_spans()
    context = span.get_span_context()
    assert (span.name, span.kind) == (f"change {NAME}", SpanKind.CLIENT)
    assert context is not None
    assert span.attributes is not None
    assert span.attributes["db.system.name"] == "postgresql"
    assert f"{context.trace_id:032x}-{context.span_id:016x}" in headers["traceparent"]
