"""The database of one service: a pool of connections as its runtime role."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum
from time import monotonic, perf_counter
from typing import Literal, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from common.clock import Clock
from common.database.change import Change
from common.database.connection import (
    COMMAND_TIMEOUT,
    CONNECT_TIMEOUT,
    Connection,
    connect,
    connecting,
    is_gone,
    options,
    prepare,
    using,
)
from common.database.idempotency import claim
from common.database.scope import Scope, bound
from common.identity.call import Call, current_call_or_none
from common.identity.sealing import Sealer
from common.telemetry import SpanKind, Telemetry

# A backend that nobody uses keeps some 17 MB of the server's memory.
_IDLE_SECONDS = 30.0
# What a call keeps of its time, to say that the database did not answer.
_ANSWER_SECONDS = 0.1
# Until a database that is asked whether it is there is not.
_PING_SECONDS = 1.5


class Whose(Enum):
    """Whose change it is, where a caller does not say."""

    CURRENT_CALL = "current call"


class UnsafeRole(Exception):
    """The role that a service runs as could read past row-level security."""


class Database:
    """Reads and changes, each one transaction bound to a scope.

    Every failure of the database itself is ``Unavailable``: at once where it refuses, after
    seconds where it is silent, and in a call before that call's deadline: its connection is closed
    then, which ends the statement on the server too. The pool heals by itself.
    """

    pool: asyncpg.Pool[asyncpg.Record]

    def __init__(
        self,
        pool: asyncpg.Pool[asyncpg.Record],
        dsn: str,
        *,
        name: str,
        clock: Clock,
        sealer: Sealer,
        telemetry: Telemetry,
    ) -> None:
        self.pool = pool
        self.name = name
        self.clock = clock
        self.sealer = sealer
        self.telemetry = telemetry
        self._dsn = dsn
        self._waited = telemetry.histogram(
            "mindweave_database_acquire_seconds", "Time until a connection was free."
        ).of()
        self._held = telemetry.histogram(
            "mindweave_database_transaction_seconds", "Time that transactions took.", ["kind"]
        )
        connections = telemetry.gauge(
            "mindweave_database_connections", "Connections of the pool.", ["state"]
        )
        connections.of(state="idle").set_function(pool.get_idle_size)
        connections.of(state="used").set_function(lambda: pool.get_size() - pool.get_idle_size())

    @classmethod
    async def open(
        cls, dsn: str, *, name: str, size: int, clock: Clock, sealer: Sealer, telemetry: Telemetry
    ) -> Database:
        """A pool of at most ``size`` connections; the first is made when one is needed.

        Args:
            dsn: of the service's database, as its runtime role.
            name: the service's; the source of its events.
            size: connections at most.
            clock: tells when answers expire and when events were written.
            sealer: encrypts what is kept for idempotency keys.
            telemetry: the service's.
        """
        pool = await asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=_IDLE_SECONDS,
            init=_admit,
            reset=_keep,
            **options(name),
        )
        return cls(pool, dsn, name=name, clock=clock, sealer=sealer, telemetry=telemetry)

    async def close(self) -> None:
        """Wait for the transactions that run, a command's time at most, and close the pool."""
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    async def connect(self) -> Connection:
        """A connection of one's own beside the pool, as for LISTEN; the caller closes it.

        Raises:
            Unavailable: the database does not answer or lets nobody in.
        """
        return await connect(self._dsn, self.name)

    async def ping(self) -> None:
        """Returns where the database answers.

        Raises:
            Unavailable: it does not.
            UnsafeRole: the runtime role is a superuser's or bypasses row-level security.
        """
        async with self.session(within=_PING_SECONDS) as connection:
            await connection.fetchval("SELECT 1")

    def read(self, scope: Scope | None = None) -> AbstractAsyncContextManager[Connection]:
        """A transaction that reads one snapshot; the caller's scope when none is given."""
        return self._transaction(
            "read",
            scope or Scope.of(current_call_or_none()),
            "ISOLATION LEVEL REPEATABLE READ READ ONLY",
        )

    @asynccontextmanager
    async def change(
        self,
        scope: Scope | None = None,
        call: Call | Literal[Whose.CURRENT_CALL] | None = Whose.CURRENT_CALL,
    ) -> AsyncIterator[Change]:
        """A transaction that changes something; it commits where the block ends without an error.

        Args:
            scope: the call's when absent.
            call: whose idempotency key and audit record it carries; None for a step of a use case
                that is not its last, and for background work.

        Raises:
            AnswerExists: the call's idempotency key has been answered; nothing was changed.
            Unavailable: the database failed. A transaction whose commit was not confirmed may
                have happened: repeat it under the same idempotency key.
        """
        if call is Whose.CURRENT_CALL:
            call = current_call_or_none()
        async with self._transaction("change", scope or Scope.of(call)) as connection:
            if call is not None and call.idempotency_key and not call.answered:
                await claim(connection, call, self.clock.now())
            change = Change(
                connection, call, source=self.name, clock=self.clock, sealer=self.sealer
            )
            yield change
            await change.finish()
        change.committed()

    @asynccontextmanager
    async def session(self, *, within: float | None = None) -> AsyncIterator[Connection]:
        """A connection without transaction and scope.

        For single statements on tables without row-level security: of others it sees no row.

        Args:
            within: seconds for all of it; those that the present call has left when absent.
        """
        started = perf_counter()
        left = _left() if within is None else within
        with connecting(self.name):
            proxy = await self.pool.acquire(timeout=min(CONNECT_TIMEOUT, left))
        waited = perf_counter() - started
        self._waited.observe(waited)
        connection = cast(Connection, proxy)
        limit = None
        if left < math.inf:
            # A cancellation would ask the server, which may be what does not answer.
            limit = asyncio.get_running_loop().call_later(left - waited, _end, connection)
        try:
            with using(connection):
                yield connection
        finally:
            if limit is not None:
                limit.cancel()
            await self._release(proxy)

    async def _release(self, proxy: PoolConnectionProxy[asyncpg.Record]) -> None:
        """What was done is done: a connection that cannot be reset is closed, and replaced."""
        try:
            await self.pool.release(proxy)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self.telemetry.log.warning("a connection was closed", error=repr(error))

    @asynccontextmanager
    async def _transaction(
        self, kind: str, scope: Scope, mode: str = ""
    ) -> AsyncIterator[Connection]:
        about = {
            "db.system.name": "postgresql",
            "db.namespace": self.name,
            "db.operation.name": kind,
        }
        with self.telemetry.span(f"{kind} {self.name}", kind=SpanKind.CLIENT, attributes=about):
            async with self.session() as connection:
                with self._held.of(kind=kind).time():
                    async with bound(connection, scope, mode):
                        yield connection


def _left() -> float:
    """Seconds in which the database has to answer the present call; endless outside of one."""
    call = current_call_or_none()
    if call is None or call.deadline is None:
        return math.inf
    return max(call.deadline - monotonic() - _ANSWER_SECONDS, 0.0)


def _end(connection: Connection) -> None:
    if not is_gone(connection):
        connection.terminate()


async def _admit(connection: Connection) -> None:
    """Refuse a role that row-level security does not bind, whatever the configuration says."""
    if await connection.fetchval(
        "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
    ):
        raise UnsafeRole("a service must not run as a superuser or a role with BYPASSRLS")
    await prepare(connection)


async def _keep(_: Connection) -> None:
    """Nothing is left to reset: what a transaction sets ends with it."""
