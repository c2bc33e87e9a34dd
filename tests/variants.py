"""Servers with TimescaleDB or Citus that the environment gives, beside the plain PostgreSQL.

The store tests of both, and those of the export of raw events, run on each. A DSN is a superuser's;
that of Citus is the coordinator's, whose database knows the workers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg

PLAIN = "plain"
# By extension, the variable that gives its server.
VARIABLES = {"timescaledb": "TIMESCALE_DSN", "citus": "CITUS_DSN"}
# By what is tested on a server beside that, its variable.
FURTHER = {"a further node of citus": "CITUS_DSN"}
SERVICES = ("usage_tracker", "analytics")
TESTS = (*SERVICES, "fleet/test_raw_export.py")


def given() -> dict[str, str]:
    """The DSNs of the servers that are there, by extension."""
    return {name: dsn for name, of in VARIABLES.items() if (dsn := os.environ.get(of))}


def told() -> str:
    """Which variants the tests run on and which not, as the last line of `make test` says it."""
    asked = VARIABLES | FURTHER
    ran = [PLAIN, *(name for name, of in asked.items() if os.environ.get(of))]
    missing = [f"{name} (no {of})" for name, of in asked.items() if name not in ran]
    return f"variants: ran {', '.join(ran)}; not run: {', '.join(missing) or 'none'}"


async def make_database(
    variant: str, admin_dsn: str, service: str, without: Sequence[str] = ()
) -> None:
    """What who runs the server does before the first start: roles, databases and extensions.

    Args:
        variant: which extension.
        admin_dsn: of the server.
        service: whose database it is.
        without: DSNs of nodes that are left out.
    """
    async with connected(admin_dsn) as admin:
        for role in (f"{service}_owner", service):
            if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await admin.execute(f'CREATE ROLE "{role}" LOGIN')
        nodes = await workers(admin_dsn) if variant == "citus" else []
        nodes = [dsn for dsn in nodes if dsn not in without]
    for dsn in (admin_dsn, *nodes):
        async with connected(dsn) as node:
            if await node.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", service):
                return
            await node.execute(f'CREATE DATABASE "{service}" OWNER "{service}_owner"')
        async with connected(at(dsn, database=service)) as database:
            await database.execute(f"CREATE EXTENSION {variant}")
    if nodes:
        async with connected(at(admin_dsn, database=service)) as database:
            for dsn in (admin_dsn, *nodes):
                place = urlsplit(dsn)
                sql = "SELECT citus_add_node($1, $2)"
                if dsn == admin_dsn:
                    sql = "SELECT citus_set_coordinator_host($1, $2)"
                await database.execute(sql, place.hostname, place.port)


async def drop_database(admin_dsn: str, service: str) -> None:
    """On every node of the server."""
    for dsn in (admin_dsn, *await workers(admin_dsn)):
        async with connected(dsn) as node:
            await node.execute(f'DROP DATABASE IF EXISTS "{service}" WITH (FORCE)')


async def workers(admin_dsn: str) -> list[str]:
    """The DSNs of the nodes beside that of the DSN; none where it is no coordinator."""
    async with connected(admin_dsn) as admin:
        if not await admin.fetchval("SELECT to_regclass('pg_dist_node') IS NOT NULL"):
            return []
        rows = await admin.fetch("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0")
    return [at(admin_dsn, place=(row["nodename"], row["nodeport"])) for row in rows]


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def at(dsn: str, *, place: tuple[str, int] | None = None, database: str | None = None) -> str:
    parts = urlsplit(dsn)
    if place is not None:
        user, at, _ = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user}{at}{place[0]}:{place[1]}")
    if database is not None:
        parts = parts._replace(path=f"/{database}")
    return urlunsplit(parts)
