"""Organizations and their members in PostgreSQL, within the scope of one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from common.database import Connection
from services.team.domain import Member

_COLUMNS = "org_id, user_id, role, version, created_at, updated_at"


class MemberStore:
    """Sees the organizations of the transaction's scope, and its user's own memberships."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open_org(self, org_id: UUID, now: datetime) -> bool:
        """False where the organization was opened or closed before."""
        status = await self._connection.execute(
            "INSERT INTO orgs (org_id, opened_at) VALUES ($1, $2) ON CONFLICT (org_id) DO NOTHING",
            org_id,
            now,
        )
        return status == "INSERT 0 1"

    async def close_org(self, org_id: UUID, now: datetime) -> bool:
        """False where it was closed before; one that never was open cannot be opened later."""
        status = await self._connection.execute(
            """
            INSERT INTO orgs (org_id, closed_at) VALUES ($1, $2)
            ON CONFLICT (org_id) DO UPDATE SET closed_at = excluded.closed_at
            WHERE orgs.closed_at IS NULL
            """,
            org_id,
            now,
        )
        return status == "INSERT 0 1"

    async def lock_open_org(self, org_id: UUID) -> bool:
        """Keep every other change of the organization's members out; False where it is closed."""
        return (
            await self._connection.fetchval(
                "SELECT true FROM orgs WHERE org_id = $1 AND closed_at IS NULL FOR UPDATE", org_id
            )
            is not None
        )

    async def list_open_orgs(self, org_ids: Sequence[UUID]) -> list[UUID]:
        """Those of ``org_ids`` that are open."""
        rows = await self._connection.fetch(
            "SELECT org_id FROM orgs WHERE org_id = ANY($1::uuid[]) AND closed_at IS NULL",
            list(org_ids),
        )
        return [row["org_id"] for row in rows]

    async def list_memberships(self, user_id: UUID) -> list[tuple[UUID, str]]:
        """Each organization of the user, and its role there."""
        rows = await self._connection.fetch(
            "SELECT org_id, role FROM members WHERE user_id = $1", user_id
        )
        return [(row["org_id"], row["role"]) for row in rows]

    async def get(self, org_id: UUID, user_id: UUID) -> Member | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM members WHERE org_id = $1 AND user_id = $2", org_id, user_id
        )
        return Member(**row) if row else None

    async def list_members(
        self, org_id: UUID, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[Member]:
        """Members in the order in which they came, after one of them."""
        joined, user_id = after or (None, None)
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM members
            WHERE org_id = $1
                AND ($2::timestamptz IS NULL OR (created_at, user_id) > ($2, $3::uuid))
            ORDER BY created_at, user_id LIMIT $4
            """,
            org_id,
            joined,
            user_id,
            limit,
        )
        return [Member(**row) for row in rows]

    async def count_owners(self, org_id: UUID) -> int:
        count: int = await self._connection.fetchval(
            "SELECT count(*) FROM members WHERE org_id = $1 AND role = 'owner'", org_id
        )
        return count

    async def insert(self, member: Member) -> bool:
        """False where the user is a member already."""
        status = await self._connection.execute(
            """
            INSERT INTO members (org_id, user_id, role, version, created_at, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (org_id, user_id) DO NOTHING
            """,
            member.org_id,
            member.user_id,
            member.role,
            member.version,
            member.created_at,
            member.updated_at,
        )
        return status == "INSERT 0 1"

    async def save(self, member: Member) -> None:
        """Write what can change of a member while its organization is locked."""
        await self._connection.execute(
            """
            UPDATE members SET role = $3, version = $4, updated_at = $5
            WHERE org_id = $1 AND user_id = $2
            """,
            member.org_id,
            member.user_id,
            member.role,
            member.version,
            member.updated_at,
        )

    async def delete(self, org_id: UUID, user_id: UUID) -> None:
        await self._connection.execute(
            "DELETE FROM members WHERE org_id = $1 AND user_id = $2", org_id, user_id
        )

    async def delete_all(self, org_id: UUID) -> list[UUID]:
        """Remove every member; their user ids."""
        rows = await self._connection.fetch(
            "DELETE FROM members WHERE org_id = $1 RETURNING user_id", org_id
        )
        return [row["user_id"] for row in rows]
