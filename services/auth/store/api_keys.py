"""API keys in PostgreSQL, within one transaction; every query is bound to the keys' owner."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import asyncpg

from services.auth.domain.api_keys import ApiKey


class ApiKeyStore:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def insert(self, key: ApiKey, digest: bytes) -> None:
        await self._connection.execute(
            """
            INSERT INTO api_keys (id, kind, digest, prefix, name, scopes, user_id, org_id,
                project_id, created_by, created_at, expires_at, last_used_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
            """,
            key.id,
            key.kind,
            digest,
            key.prefix,
            key.name,
            list(key.scopes),
            key.user_id,
            key.org_id,
            key.project_id,
            key.created_by,
            key.created_at,
            key.expires_at,
            key.last_used_at,
        )

    async def find(self, digest: bytes) -> ApiKey | None:
        row = await self._connection.fetchrow(
            """
            SELECT id, kind, name, prefix, scopes, user_id, org_id, project_id, created_by,
                created_at, expires_at, last_used_at
            FROM api_keys WHERE digest = $1
            """,
            digest,
        )
        return _key(row) if row else None

    async def list_of_user(self, user_id: UUID, before: UUID | None, limit: int) -> list[ApiKey]:
        """The user's keys, newest first, from the one after ``before`` on."""
        rows = await self._connection.fetch(
            """
            SELECT id, kind, name, prefix, scopes, user_id, org_id, project_id, created_by,
                created_at, expires_at, last_used_at
            FROM api_keys WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2)
            ORDER BY id DESC LIMIT $3
            """,
            user_id,
            before,
            limit,
        )
        return [_key(row) for row in rows]

    async def list_of_project(
        self, org_id: UUID, project_id: UUID, before: UUID | None, limit: int
    ) -> list[ApiKey]:
        """The project's keys, newest first, from the one after ``before`` on."""
        rows = await self._connection.fetch(
            """
            SELECT id, kind, name, prefix, scopes, user_id, org_id, project_id, created_by,
                created_at, expires_at, last_used_at
            FROM api_keys
            WHERE org_id = $1 AND project_id = $2 AND ($3::uuid IS NULL OR id < $3)
            ORDER BY id DESC LIMIT $4
            """,
            org_id,
            project_id,
            before,
            limit,
        )
        return [_key(row) for row in rows]

    async def touch(self, key_id: UUID, now: datetime, unless_after: datetime) -> None:
        """Write that the key was used now, unless it was used after that moment already."""
        await self._connection.execute(
            """
            UPDATE api_keys SET last_used_at = $2
            WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= $3)
            """,
            key_id,
            now,
            unless_after,
        )

    async def delete_of_user(self, user_id: UUID, key_id: UUID) -> bool:
        """Whether the user had such a key."""
        status = await self._connection.execute(
            "DELETE FROM api_keys WHERE id = $1 AND user_id = $2", key_id, user_id
        )
        return status == "DELETE 1"

    async def delete_of_project(self, org_id: UUID, project_id: UUID, key_id: UUID) -> bool:
        """Whether the project had such a key."""
        status = await self._connection.execute(
            "DELETE FROM api_keys WHERE id = $1 AND org_id = $2 AND project_id = $3",
            key_id,
            org_id,
            project_id,
        )
        return status == "DELETE 1"

    async def delete_all(self, org_id: UUID, project_id: UUID | None = None) -> list[ApiKey]:
        """Remove every key of an organization's projects, or of one of them."""
        rows = await self._connection.fetch(
            """
            DELETE FROM api_keys WHERE org_id = $1 AND ($2::uuid IS NULL OR project_id = $2)
            RETURNING id, kind, name, prefix, scopes, user_id, org_id, project_id, created_by,
                created_at, expires_at, last_used_at
            """,
            org_id,
            project_id,
        )
        return [_key(row) for row in rows]


def _key(row: asyncpg.Record) -> ApiKey:
    fields = dict(row)
    return ApiKey(**{**fields, "scopes": tuple(fields["scopes"])})
