"""``mindweave add-node``: a further node of Citus for the tables that grow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from common.database import bootstrap
from common.database.connection import Connection, connect
from common.settings import Settings, SettingsError, parse_address
from common.telemetry import configure_logs
from fleet.access import ledger_settings

# Services whose tables are distributed.
DISTRIBUTED = ("usage_tracker", "analytics")


class AddNodeFailed(Exception):
    """A server refused a step; one line with what it said."""


def add_node(address: str, data: Path, tell: Callable[[str], None]) -> None:
    """Add a server to both databases, and move its share of their shards there, while all runs.

    Ended in the middle, it is run again: shards that have moved stay where they are.

    Args:
        address: "host:port" of a server with Citus, as the coordinator reaches it; the user of
            ``DATABASE_URL`` is a superuser there with the same password.
        data: the folder of a platform, where settings name no database.
        tell: is told what lies where.

    Raises:
        NotRunning: no servers are named, and no platform runs there.
        SettingsError: a setting is wrong, names no coordinator of Citus, or a server besides it.
        Unavailable: a server is.
        AddNodeFailed: it refused a step, as while shards are still moving for a run before.
    """
    configure_logs("warning")
    settings = ledger_settings(data)
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL: is needed, of a superuser of the coordinator")
    _require_one_server(settings)
    try:
        node = _at(settings.database_url, address)
    except ValueError as error:
        raise SettingsError(f"{address}: {error}") from None
    asyncio.run(_add(settings, settings.database_url, node, address, tell))


def _require_one_server(settings: Settings) -> None:
    named = {
        "DATABASE_URL_": settings.database_urls,
        "DATABASE_OWNER_URL_": settings.database_owner_urls,
    }
    for prefix, urls in named.items():
        for service in DISTRIBUTED:
            if service in urls:
                raise SettingsError(
                    f"{prefix}{service.upper()}: is set, and a node is added to the server of"
                    " DATABASE_URL alone, with the passwords that the platform derives"
                )


async def _add(
    settings: Settings, coordinator: str, node: str, address: str, tell: Callable[[str], None]
) -> None:
    there = settings.model_copy(update={"database_url": node})
    place = parse_address(address)
    for service in DISTRIBUTED:
        # Shards take as long to move as they take.
        connection = await connect(_named(coordinator, service), service, command_timeout=None)
        try:
            await _require_citus(connection, service)
            known = await connection.fetchval(
                "SELECT true FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2", *place
            )
            if not known:
                await _make_database(connection, node, service)
                await bootstrap(node, service, there)
                await _make_extension(_named(node, service), service)
                await connection.execute("SELECT citus_add_node($1, $2)", *place)
            await connection.execute(
                "SELECT rebalance_table_shards(shard_transfer_mode := 'force_logical')"
            )
            (shards,) = await connection.fetch(
                """
                SELECT count(*) AS all, count(*) FILTER (
                    WHERE nodename = $1 AND nodeport = $2
                ) AS moved FROM citus_shards
                """,
                *place,
            )
        except asyncpg.PostgresError as error:
            said = "; ".join(str(error).splitlines())
            raise AddNodeFailed(f"{service}: {said}") from error
        finally:
            await connection.close()
        tell(f"{service}: {shards['moved']} of {shards['all']} shards lie on {address}")


async def _require_citus(connection: Connection, service: str) -> None:
    if not await connection.fetchval("SELECT true FROM pg_extension WHERE extname = 'citus'"):
        raise SettingsError(f"DATABASE_URL: the database {service} there has no Citus")


async def _make_database(coordinator: Connection, node: str, service: str) -> None:
    """As it is here: a node that sorts texts otherwise would give other first rows."""
    connection = await connect(node, service)
    try:
        if await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", service):
            return
        owner = f"{service}_owner"
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", owner):
            await connection.execute(
                await connection.fetchval("SELECT format('CREATE ROLE %I LOGIN', $1::text)", owner)
            )
        here = await coordinator.fetchval(
            """
            SELECT format(
                'CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING %L'
                ' LC_COLLATE %L LC_CTYPE %L LOCALE_PROVIDER ',
                datname, $1::text, pg_encoding_to_char(encoding), datcollate, datctype
            ) || CASE datlocprovider
                WHEN 'i' THEN format('icu ICU_LOCALE %L', locale)
                WHEN 'b' THEN format('builtin BUILTIN_LOCALE %L', locale)
                ELSE 'libc'
            END
            FROM pg_database AS d, coalesce(
                -- Its name until PostgreSQL 16, and since.
                to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'
            ) AS locale
            WHERE datname = current_database()
            """,
            owner,
        )
        await connection.execute(here)
    finally:
        await connection.close()


async def _make_extension(dsn: str, service: str) -> None:
    connection = await connect(dsn, service)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS citus")
    finally:
        await connection.close()


def _at(dsn: str, address: str) -> str:
    """The same of another server.

    Raises:
        ValueError: its address is not of the shape host:port.
    """
    parse_address(address)
    parts = urlsplit(dsn)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{address}"))


def _named(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))
