"""The database of a service and its two roles: the owner migrates, the runtime role serves."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from common.database.connection import CONNECT_TIMEOUT, Connection, connect
from common.database.pool import UnsafeRole
from common.settings import Settings, db_password

# PostgreSQL's own default for scram_iterations.
_ITERATIONS = 4096


async def bootstrap(admin_dsn: str, service: str, settings: Settings) -> None:
    """Make the service's database and roles where they lack, and set their passwords and rights.

    The admin needs CREATEDB and CREATEROLE; it need not be a superuser.

    Raises:
        Unavailable: the server does not answer or lets nobody in.
        UnsafeRole: the runtime role exists as one that row-level security does not bind.
    """
    admin = await connect(admin_dsn, f"{service} bootstrap")
    try:
        # Several processes may start at once; roles are shared by the whole server.
        await admin.execute("SELECT pg_advisory_lock(hashtextextended('mindweave.bootstrap', 0))")
        owner = f"{service}_owner"
        await _ensure_role(admin, owner, db_password(settings, owner))
        await _ensure_role(admin, service, db_password(settings, service))
        await _run(
            admin,
            "ALTER ROLE %1$I SET timezone = 'UTC';"
            "ALTER ROLE %1$I SET jit = off;"
            "ALTER ROLE %1$I SET statement_timeout = '60s';"
            "ALTER ROLE %1$I SET idle_in_transaction_session_timeout = '60s';"
            # A peer that is gone without a word keeps its locks for a minute, not for hours.
            "ALTER ROLE %1$I SET tcp_keepalives_idle = 30;"
            "ALTER ROLE %1$I SET tcp_keepalives_interval = 10;"
            "ALTER ROLE %1$I SET tcp_keepalives_count = 3;"
            # A statement whose client is gone ends too, with its locks.
            "ALTER ROLE %1$I SET client_connection_check_interval = '2s'",
            service,
        )
        await _ensure_database(admin, service, owner)
    finally:
        await admin.close(timeout=CONNECT_TIMEOUT)
    await grant_runtime(settings.owner_dsn(service), service)


async def grant_runtime(owner_dsn: str, runtime: str) -> None:
    """Let the runtime role use what the owner has made and will make; nobody else may."""
    owner = await connect(owner_dsn, f"{runtime} bootstrap")
    try:
        await _run(
            owner,
            "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
            "GRANT USAGE ON SCHEMA public TO %1$I;"
            "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
            "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO %1$I;"
            "ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %1$I;"
            "ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO %1$I",
            runtime,
        )
    finally:
        await owner.close(timeout=CONNECT_TIMEOUT)


async def _ensure_role(admin: Connection, role: str, password: str) -> None:
    found = await admin.fetchrow(
        "SELECT rolsuper OR rolbypassrls AS unbound FROM pg_roles WHERE rolname = $1", role
    )
    if found is None:
        await _run(
            admin,
            "CREATE ROLE %I LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION",
            role,
        )
    elif found["unbound"]:
        raise UnsafeRole(f"the role {role} is a superuser or has BYPASSRLS; take it away first")
    await _run(admin, "ALTER ROLE %I LOGIN PASSWORD %L", role, scram_verifier(password))


async def _ensure_database(admin: Connection, name: str, owner: str) -> None:
    if not await admin.fetchval("SELECT pg_has_role(current_user, $1, 'SET')", owner):
        await _run(admin, "GRANT %I TO CURRENT_USER", owner)
    if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
        # The same order of texts on every machine: by code point.
        newer = admin.get_server_version().major >= 17
        locale = "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'" if newer else ""
        await _run(
            admin,
            "CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' " + locale,
            name,
            owner,
        )
    await _run(
        admin,
        "REVOKE ALL ON DATABASE %1$I FROM PUBLIC; GRANT CONNECT ON DATABASE %1$I TO %2$I",
        name,
        name,
    )


async def _run(connection: Connection, template: str, *names: str) -> None:
    """Run commands that take no parameters; the server itself quotes what goes into them."""
    marks = ", ".join(f"${n}::text" for n in range(2, len(names) + 2))
    await connection.execute(
        await connection.fetchval(f"SELECT format($1, {marks})", template, *names)
    )


def scram_verifier(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that it is never sent or logged itself."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return "SCRAM-SHA-256${}:{}${}:{}".format(_ITERATIONS, *parts)
