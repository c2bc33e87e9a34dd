"""Organizations in PostgreSQL. A store is bound to one transaction, and so to its scope."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from common.database import Connection
from services.account.domain import Opening, Org, slug_candidates

_COLUMNS = "id, name, slug, state, version, created_by, created_at, updated_at, activated_at"


class OrgStore:
    """Sees the organizations of the transaction's scope, and the openings of its user."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def insert(self, org: Org) -> Org:
        """Keep a new organization under the first of its slugs that is free."""
        for slug in slug_candidates(org.name, org.id):
            row = await self._connection.fetchrow(
                f"""
                INSERT INTO orgs (id, name, slug, state, version, created_by, created_at,
                    updated_at, activated_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                ON CONFLICT (slug) DO NOTHING
                RETURNING {_COLUMNS}
                """,
                org.id,
                org.name,
                slug,
                org.state,
                org.version,
                org.created_by,
                org.created_at,
                org.updated_at,
                org.activated_at,
            )
            if row is not None:
                return Org(**row)
        raise LookupError(f"no slug is free for the organization {org.id}")

    async def get(self, org_id: UUID) -> Org | None:
        row = await self._connection.fetchrow(
            f"""
            SELECT {_COLUMNS}
            FROM orgs WHERE id = $1
            """,
            org_id,
        )
        return Org(**row) if row else None

    async def lock(self, org_id: UUID) -> Org | None:
        """The organization, kept from every other change until the transaction ends."""
        row = await self._connection.fetchrow(
            f"""
            SELECT {_COLUMNS}
            FROM orgs WHERE id = $1 FOR UPDATE
            """,
            org_id,
        )
        return Org(**row) if row else None

    async def list_active(
        self, org_ids: Sequence[UUID], after: UUID | None, limit: int
    ) -> list[Org]:
        """Active organizations among ``org_ids`` in the order of their ids, after one of them."""
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS}
            FROM orgs
            WHERE id = ANY($1::uuid[]) AND state = 'active' AND ($2::uuid IS NULL OR id > $2)
            ORDER BY id LIMIT $3
            """,
            list(org_ids),
            after,
            limit,
        )
        return [Org(**row) for row in rows]

    async def save(self, org: Org) -> None:
        """Write what can change of an organization that this transaction has locked."""
        await self._connection.execute(
            """
            UPDATE orgs
            SET name = $2, state = $3, version = $4, updated_at = $5, activated_at = $6
            WHERE id = $1
            """,
            org.id,
            org.name,
            org.state,
            org.version,
            org.updated_at,
            org.activated_at,
        )

    async def delete(self, org_id: UUID) -> bool:
        """Whether there was such an organization to remove."""
        status = await self._connection.execute("DELETE FROM orgs WHERE id = $1", org_id)
        return status == "DELETE 1"

    async def insert_opening(self, opening: Opening, now: datetime) -> bool:
        """False where the user's key already stands for an organization."""
        status = await self._connection.execute(
            """
            INSERT INTO openings (user_id, key, org_id, request_hash, created_at)
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id, key) DO NOTHING
            """,
            opening.user_id,
            opening.key,
            opening.org_id,
            opening.request_hash,
            now,
        )
        return status == "INSERT 0 1"

    async def find_opening(self, user_id: UUID, key: str) -> Opening | None:
        row = await self._connection.fetchrow(
            """
            SELECT org_id, user_id, key, request_hash FROM openings
            WHERE user_id = $1 AND key = $2
            """,
            user_id,
            key,
        )
        return Opening(**row) if row else None

    async def unfinished(self, before: datetime, most: int) -> list[UUID]:
        """Organizations left pending or closing since ``before``, whosever they are."""
        rows = await self._connection.fetch("SELECT unfinished_orgs($1, $2) AS id", before, most)
        return [row["id"] for row in rows]

    async def forget_openings(self, before: datetime) -> int:
        """Drop openings made before then, whosever they are; their count."""
        gone: int = await self._connection.fetchval("SELECT forget_openings($1)", before)
        return gone
