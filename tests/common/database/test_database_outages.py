from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from common.database import Database, Scope, bootstrap, migrate, pending
from common.database.connection import COMMAND_TIMEOUT
from common.errors import Unavailable
from common.identity.call import ANONYMOUS, Call, set_call
from common.settings import Settings, load_settings
from fleet.embedded import Postgres
from tests.common.database.conftest import NAME, labels, opened
from tests.common.waiting import eventually

pytestmark = pytest.mark.store


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server that the test may end."""
    server = Postgres(tmp_path / "postgres", "password")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_database(own_postgres: Postgres, folder: Path) -> AsyncIterator[Database]:
    own = load_settings(secret="x" * 40, database_url=own_postgres.admin_dsn)
    await bootstrap(own_postgres.admin_dsn, NAME, own)
    await migrate(own.owner_dsn(NAME), NAME, folder)
    database = await opened(own.runtime_dsn(NAME), own)
    yield database
    await database.close()


async def nobody(sleeps: Awaitable[bool]) -> bool:
    return not await sleeps


async def asleep(db: Database) -> bool:
    async with db.session() as connection:
        found: bool = await connection.fetchval(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        )
    return found


async def test_a_cancelled_change_is_rolled_back_and_its_connection_serves_again(
    db: Database,
) -> None:
    async def endless() -> None:
        async with db.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (1, 'lost')")
            await change.connection.execute("SELECT pg_sleep(60)")

    for _ in range(5):
        task = asyncio.create_task(endless())
        await eventually(lambda: asleep(db))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await labels(db) == []


async def test_a_cancelled_task_ends_as_such_though_its_rollback_failed(db: Database) -> None:
    async def doomed() -> None:
        async with db.session():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionResetError from None

    task = asyncio.create_task(doomed())
    await eventually(lambda: db.pool.get_idle_size() < db.pool.get_size())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await db.ping()


async def test_a_client_that_is_gone_leaves_no_statement_behind(db: Database) -> None:
    own = await db.connect()
    statement = asyncio.create_task(own.execute("SELECT pg_sleep(60)"))
    await eventually(lambda: asleep(db))
    own.terminate()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await statement
    await eventually(lambda: nobody(asleep(db)))


async def test_a_connection_that_is_lost_in_a_change_makes_it_unavailable(db: Database) -> None:
    with pytest.raises(Unavailable) as caught:
        async with db.change(Scope()) as change:
            await change.connection.execute(
                "INSERT INTO notes VALUES (1, 'lost');SELECT pg_terminate_backend(pg_backend_pid())"
            )
    assert caught.value.code == "database_unavailable"
    assert await labels(db) == []
    await db.ping()


async def test_a_pool_without_a_free_connection_is_unavailable(
    db: Database, settings: Settings
) -> None:
    small = await opened(settings.runtime_dsn(NAME), settings, size=1)
    try:
        async with small.read(Scope()):
            with pytest.raises(Unavailable):
                await small.ping()
        await small.ping()
    finally:
        await small.close()


async def test_a_database_that_is_killed_is_unavailable_and_comes_back_without_a_restart(
    own_postgres: Postgres, own_database: Database, folder: Path
) -> None:
    async with own_database.change(Scope()) as change:
        await change.connection.execute("INSERT INTO notes VALUES (1, 'kept')")
    process = own_postgres.process
    assert process is not None

    async def cut_off() -> None:
        async with own_database.change(Scope()) as change:
            await change.connection.execute("INSERT INTO notes VALUES (2, 'lost')")
            backends = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            # They end by themselves, once they see that; until then one may serve and commit.
            await asyncio.to_thread(psutil.wait_procs, backends, 30)
            await change.connection.execute("INSERT INTO notes VALUES (3, 'lost')")

    with pytest.raises(Unavailable):
        await cut_off()
    with pytest.raises(Unavailable) as caught:
        await own_database.ping()
    assert caught.value.retry_after
    await asyncio.to_thread(own_postgres.start)
    await own_database.ping()
    assert await labels(own_database) == ["kept"]
    assert await pending(own_database, folder) == []


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """SIGSTOP for the server and its backends, whose connections stay open."""
    assert server.pid is not None
    first = psutil.Process(server.pid)
    first.suspend()
    processes = [first, *first.children(recursive=True)]
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            process.resume()


async def read_in_time(database: Database) -> list[str] | Unavailable:
    """What a call of a second reads, or what it is told instead."""

    async def read() -> list[str]:
        set_call(Call("the test", ANONYMOUS, deadline=time.monotonic() + 1))
        return await labels(database)

    try:
        return await asyncio.create_task(read())
    except Unavailable as error:
        return error


async def test_a_frozen_database_is_unavailable_before_the_call_ends_and_the_pool_outlives_it(
    own_postgres: Postgres, own_database: Database
) -> None:
    """Twice as many calls as connections; those that were open are silent, new ones not made."""
    calls = range(2 * own_database.pool.get_max_size())
    assert await asyncio.gather(*(read_in_time(own_database) for _ in calls)) == [[]] * len(calls)
    with frozen(own_postgres):
        for _ in range(2):
            async with asyncio.timeout(COMMAND_TIMEOUT):
                told = await asyncio.gather(*(read_in_time(own_database) for _ in calls))
            assert {type(outcome) for outcome in told} == {Unavailable}
        with pytest.raises(Unavailable):
            await own_database.ping()
    assert await asyncio.gather(*(labels(own_database) for _ in calls)) == [[]] * len(calls)
    assert own_database.pool.get_idle_size() == own_database.pool.get_size()


async def test_a_connection_that_was_lost_is_not_ended_again_at_the_deadline(db: Database) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    deadline = time.monotonic() + 0.5

    async def lose() -> None:
        set_call(Call("the test", ANONYMOUS, deadline=deadline))
        async with db.session() as connection:
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            await eventually(lambda: time.monotonic() > deadline)

    await asyncio.create_task(lose())
    asyncio.get_running_loop().set_exception_handler(None)
    assert told == []
    await db.ping()


async def test_users_who_leave_while_the_database_is_frozen_leave_no_connection_behind(
    own_postgres: Postgres, own_database: Database
) -> None:
    await own_database.ping()
    with frozen(own_postgres):
        waiting = [asyncio.create_task(read_in_time(own_database)) for _ in range(3)]
        await eventually(lambda: own_database.pool.get_idle_size() == 0)
        for call in waiting:
            call.cancel()
        async with asyncio.timeout(COMMAND_TIMEOUT):
            await asyncio.gather(*waiting, return_exceptions=True)
    await own_database.ping()
    await eventually(lambda: own_database.pool.get_idle_size() == own_database.pool.get_size() > 0)


async def test_a_pool_can_be_opened_before_its_database_is_up(
    own_postgres: Postgres, folder: Path
) -> None:
    own = load_settings(secret="x" * 40, database_url=own_postgres.admin_dsn)
    await bootstrap(own_postgres.admin_dsn, NAME, own)
    own_postgres.stop()
    database = await opened(own.runtime_dsn(NAME), own)
    try:
        with pytest.raises(Unavailable):
            await database.ping()
        await asyncio.to_thread(own_postgres.start)
        await database.ping()
        missing = await pending(database, folder)
        assert (missing[0], missing[-1]) == ("kit/0001_kit.sql", f"{NAME}/0001_notes.sql")
    finally:
        await database.close()


async def test_a_server_that_says_nothing_is_unavailable(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = await opened(f"postgresql://x:y@127.0.0.1:{port}/x", settings)
        try:
            with pytest.raises(Unavailable):
                await database.ping()
        finally:
            await database.close()


async def test_a_statement_that_does_not_end_is_cancelled(db: Database) -> None:
    with pytest.raises(Unavailable):
        async with db.read(Scope()) as connection:
            await connection.fetchval("SELECT pg_sleep(60)", timeout=0.1)
    await eventually(lambda: nobody(asleep(db)))


async def test_a_statement_that_its_own_limit_ends_is_told_apart_from_an_outage(
    db: Database,
) -> None:
    async def slow() -> None:
        async with db.read(Scope()) as connection:
            await connection.execute("SET LOCAL statement_timeout = '50ms'")
            await connection.fetchval("SELECT pg_sleep(60)")

    with pytest.raises(Unavailable, match="took too long"):
        await slow()


async def test_closing_ends_what_does_not_end_by_itself(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.database.pool.COMMAND_TIMEOUT", 0.05)
    database = await opened(settings.runtime_dsn(NAME), settings)

    async def outlive() -> None:
        async with database.read(Scope()) as connection:
            await database.close()
            await connection.fetchval("SELECT 1")

    with pytest.raises(Unavailable):
        await outlive()
    with pytest.raises(Unavailable):
        await database.ping()


async def test_a_connection_used_between_its_end_and_the_notice_of_it_is_unavailable(
    db: Database,
) -> None:
    with pytest.raises(Unavailable):
        async with db.session():
            # What asyncpg says once the server's last word has come and the socket still stands.
            raise asyncpg.InternalClientError("cannot switch to state 11")
    assert await labels(db) == []


async def end_within_a_statement(db: Database) -> None:
    async with db.session() as connection:
        connection.terminate()
        # What asyncpg says where the end comes after the preparation and before the run.
        raise AttributeError("'NoneType' object has no attribute 'bind_execute'")


async def test_a_connection_that_is_ended_within_a_statement_is_unavailable(db: Database) -> None:
    with pytest.raises(Unavailable):
        await end_within_a_statement(db)
    with pytest.raises(AttributeError):
        async with db.session():
            raise AttributeError("a mistake")
    assert await labels(db) == []
