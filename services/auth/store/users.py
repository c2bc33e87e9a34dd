"""Users and their passwords' hashes in PostgreSQL, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from services.auth.domain.users import Credential, User, email_key


class UserStore:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def insert(self, user: User, password_hash: str) -> bool:
        """False where the address is taken."""
        status = await self._connection.execute(
            """
            INSERT INTO users (id, email, email_key, display_name, password_hash, email_verified,
                version, created_at, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT (email_key) DO NOTHING
            """,
            user.id,
            user.email,
            email_key(user.email),
            user.display_name,
            password_hash,
            user.email_verified,
            user.version,
            user.created_at,
            user.updated_at,
        )
        return status == "INSERT 0 1"

    async def get(self, user_id: UUID) -> User | None:
        found = await self.list_by_id([user_id])
        return found[0] if found else None

    async def list_by_id(self, user_ids: Sequence[UUID]) -> list[User]:
        """Those of the users that exist, in the order of their ids."""
        rows = await self._connection.fetch(
            """
            SELECT id, email, display_name, email_verified, version, created_at, updated_at
            FROM users WHERE id = ANY($1::uuid[]) ORDER BY id
            """,
            list(user_ids),
        )
        return [User(**row) for row in rows]

    async def lock(self, user_id: UUID) -> User | None:
        """The user, kept from every other change until the transaction ends.

        What refers to the user may still be added.
        """
        row = await self._connection.fetchrow(
            """
            SELECT id, email, display_name, email_verified, version, created_at, updated_at
            FROM users WHERE id = $1 FOR NO KEY UPDATE
            """,
            user_id,
        )
        return User(**row) if row else None

    async def find_credential(self, address_key: str) -> Credential | None:
        """What the user with this address signs in with."""
        row = await self._connection.fetchrow(
            """
            SELECT id, email, display_name, email_verified, version, created_at, updated_at,
                password_hash, password_version
            FROM users WHERE email_key = $1
            """,
            address_key,
        )
        return _credential(row) if row else None

    async def get_credential(self, user_id: UUID) -> Credential | None:
        row = await self._connection.fetchrow(
            """
            SELECT id, email, display_name, email_verified, version, created_at, updated_at,
                password_hash, password_version
            FROM users WHERE id = $1
            """,
            user_id,
        )
        return _credential(row) if row else None

    async def save_profile(self, user: User) -> None:
        """Write what can change of a user that this transaction has locked."""
        await self._connection.execute(
            "UPDATE users SET display_name = $2, version = $3, updated_at = $4 WHERE id = $1",
            user.id,
            user.display_name,
            user.version,
            user.updated_at,
        )

    async def hold_password(self, credential: Credential) -> bool:
        """Keep the password from changing until the transaction ends; False where it has."""
        held = await self._connection.fetchval(
            "SELECT true FROM users WHERE id = $1 AND password_version = $2 FOR SHARE",
            credential.user.id,
            credential.password_version,
        )
        return held is not None

    async def replace_password(
        self, credential: Credential, password_hash: str, now: datetime
    ) -> bool:
        """False where the password has changed meanwhile."""
        status = await self._connection.execute(
            """
            UPDATE users SET password_hash = $3, password_version = password_version + 1,
                version = version + 1, updated_at = $4
            WHERE id = $1 AND password_version = $2
            """,
            credential.user.id,
            credential.password_version,
            password_hash,
            now,
        )
        return status == "UPDATE 1"

    async def renew_hash(self, credential: Credential, password_hash: str) -> None:
        """Keep the same password under newer parameters; nobody notices."""
        await self._connection.execute(
            "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_version = $2",
            credential.user.id,
            credential.password_version,
            password_hash,
        )


def _credential(row: asyncpg.Record) -> Credential:
    fields = dict(row)
    password = fields.pop("password_hash"), fields.pop("password_version")
    return Credential(User(**fields), *password)
