"""One connection to PostgreSQL, and what its failures mean to a caller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import asyncpg
import msgspec

from common.certificates import refusal
from common.errors import Unavailable

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Seconds until a database that does not answer is reported as unavailable.
CONNECT_TIMEOUT = 3.0
COMMAND_TIMEOUT = 10.0

_log = logging.getLogger(__name__)

_LOST = (
    ConnectionError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,
    asyncpg.QueryCanceledError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    # The disk fails; what is written after that has been mended is well.
    asyncpg.PostgresIOError,
    # The server has said goodbye to an idle connection, whose end has not been read yet.
    asyncpg.InternalClientError,
)
# Of a connection that is gone these say no more than that; of any other they are mistakes. One that
# is ended between the preparation of a statement and its run has no protocol to run it by.
_OF_A_GONE_ONE = (asyncpg.InterfaceError, AttributeError)
# Rolled back by the server through no fault of the statement: the same call may succeed again.
_ROLLED_BACK = (
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


def options(name: str, command_timeout: float | None = COMMAND_TIMEOUT) -> dict[str, Any]:
    """What every connection of a service is opened with; ``name`` shows in pg_stat_activity."""
    return {
        "timeout": CONNECT_TIMEOUT,
        "command_timeout": command_timeout,
        "server_settings": {"application_name": f"mindweave {name}"},
    }


async def prepare(connection: Connection) -> None:
    """Make json and jsonb Python values. uuid, timestamptz (aware, UTC) and bytea are already."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_encode_json, decoder=msgspec.json.decode
        )


def _encode_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def connect(
    dsn: str, name: str, *, command_timeout: float | None = COMMAND_TIMEOUT
) -> Connection:
    """A connection outside of any pool; a command may take ``command_timeout`` seconds.

    Raises:
        Unavailable: the database does not answer or lets nobody in.
    """
    with connecting(name):
        connection: Connection = await asyncpg.connect(dsn, **options(name, command_timeout))
        try:
            await prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection


@contextmanager
def connecting(name: str) -> Iterator[None]:
    """Turns every failure to get a connection into Unavailable; the cause is logged."""
    try:
        yield
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if (why := refusal(error, "sslrootcert in DATABASE_URL")) is not None:
            _log.error("the certificate of the database of %s is refused: %s", name, why)
        else:
            _log.warning("no connection to the database of %s: %r", name, error)
        raise Unavailable(
            "The database is not available.", code="database_unavailable", retry_after=1
        ) from error


@contextmanager
def using(connection: Connection) -> Iterator[None]:
    """Turns a lost connection, a timeout and a transaction to repeat into Unavailable."""
    cancellations = _cancellations()
    try:
        yield
    except _ROLLED_BACK as error:
        raise Unavailable(
            "Another change came in between; try again.", code="try_again", retry_after=1
        ) from error
    except asyncpg.ReadOnlySQLTransactionError as error:
        if not _takes_no_writes(connection):
            raise
        # Who can write may be another server by now, or this one for new connections.
        connection.terminate()
        raise Unavailable(
            "The database takes no writes.", code="database_unavailable", retry_after=1
        ) from error
    except (*_LOST, *_OF_A_GONE_ONE) as error:
        if isinstance(error, _OF_A_GONE_ONE) and not is_gone(connection):
            raise
        if _cancellations() > cancellations:
            # The rollback failed, but what ends a cancelled task is its cancellation.
            raise asyncio.CancelledError from error
        late = isinstance(error, asyncpg.QueryCanceledError)
        message = "The database took too long." if late else "The database is not available."
        raise Unavailable(message, code="database_unavailable", retry_after=1) from error


def _takes_no_writes(connection: Connection) -> bool:
    """Whether the server lets nobody write, as a standby or by its settings.

    Of any other session a write in a transaction that reads is a mistake.
    """
    if is_gone(connection):
        return True
    told = connection.get_settings()
    modes = ("default_transaction_read_only", "in_hot_standby")
    return any(getattr(told, mode, "off") == "on" for mode in modes)


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def is_gone(connection: Connection) -> bool:
    """Whether the connection is closed, by whichever side."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # A pool takes a connection back as soon as it is lost.
        return True
