"""Projects in PostgreSQL, within the scope of one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from common.database import Connection
from services.project.domain import Project

_COLUMNS = "id, org_id, team_id, name, version, created_at, updated_at"


class ProjectStore:
    """Sees the projects of the scope's organizations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def hold_org(self, org_id: UUID) -> bool:
        """Keep the organization from being marked deleted until then; False where it is."""
        await self._connection.execute(
            "INSERT INTO orgs (org_id) VALUES ($1) ON CONFLICT (org_id) DO NOTHING", org_id
        )
        held = await self._connection.fetchval(
            "SELECT true FROM orgs WHERE org_id = $1 AND deleted_at IS NULL FOR SHARE", org_id
        )
        return held is not None

    async def mark_org_deleted(self, org_id: UUID, now: datetime) -> None:
        """From here no project of the organization can be made."""
        await self._connection.execute(
            """
            INSERT INTO orgs (org_id, deleted_at) VALUES ($1, $2)
            ON CONFLICT (org_id) DO UPDATE SET deleted_at = excluded.deleted_at
            WHERE orgs.deleted_at IS NULL
            """,
            org_id,
            now,
        )

    async def insert(self, project: Project) -> None:
        await self._connection.execute(
            """
            INSERT INTO projects (id, org_id, team_id, name, version, created_at, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            project.id,
            project.org_id,
            project.team_id,
            project.name,
            project.version,
            project.created_at,
            project.updated_at,
        )

    async def get(self, project_id: UUID, org_ids: Sequence[UUID]) -> Project | None:
        row = await self._connection.fetchrow(
            f"SELECT {_COLUMNS} FROM projects WHERE id = $1 AND org_id = ANY($2::uuid[])",
            project_id,
            list(org_ids),
        )
        return Project(**row) if row else None

    async def lock(self, project_id: UUID, org_ids: Sequence[UUID]) -> Project | None:
        """The project, kept from every other change until the transaction ends."""
        row = await self._connection.fetchrow(
            f"""
            SELECT {_COLUMNS} FROM projects WHERE id = $1 AND org_id = ANY($2::uuid[])
            FOR UPDATE
            """,
            project_id,
            list(org_ids),
        )
        return Project(**row) if row else None

    async def hold(self, project_id: UUID, org_id: UUID) -> bool:
        """Keep the project from being deleted until the transaction ends; False where it is."""
        held = await self._connection.fetchval(
            "SELECT true FROM projects WHERE id = $1 AND org_id = $2 FOR SHARE",
            project_id,
            org_id,
        )
        return held is not None

    async def list_projects(
        self,
        org_ids: Sequence[UUID],
        *,
        only: UUID | None,
        after: UUID | None,
        limit: int,
    ) -> list[Project]:
        """Projects of the organizations in the order of their ids, after one of them.

        Args:
            org_ids: whose projects.
            only: where given, this project and no other.
            after: the last id of the page before.
            limit: at most so many.
        """
        rows = await self._connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM projects
            WHERE org_id = ANY($1::uuid[])
                AND ($2::uuid IS NULL OR id = $2)
                AND ($3::uuid IS NULL OR id > $3)
            ORDER BY id LIMIT $4
            """,
            list(org_ids),
            only,
            after,
            limit,
        )
        return [Project(**row) for row in rows]

    async def resolve(self, ids: Sequence[UUID]) -> list[tuple[UUID, UUID, UUID | None]]:
        """Id, organization and team of projects, whosever they are: only for services."""
        rows = await self._connection.fetch(
            "SELECT id, org_id, team_id FROM resolve_projects($1::uuid[])", list(ids)
        )
        return [(row["id"], row["org_id"], row["team_id"]) for row in rows]

    async def save(self, project: Project) -> None:
        """Write what can change of a project that this transaction has locked."""
        await self._connection.execute(
            """
            UPDATE projects SET team_id = $3, name = $4, version = $5, updated_at = $6
            WHERE id = $1 AND org_id = $2
            """,
            project.id,
            project.org_id,
            project.team_id,
            project.name,
            project.version,
            project.updated_at,
        )

    async def delete(self, project: Project) -> None:
        await self._connection.execute(
            "DELETE FROM projects WHERE id = $1 AND org_id = $2", project.id, project.org_id
        )

    async def delete_all(self, org_id: UUID) -> list[UUID]:
        """Remove every project of an organization; their ids."""
        rows = await self._connection.fetch(
            "DELETE FROM projects WHERE org_id = $1 RETURNING id", org_id
        )
        return [row["id"] for row in rows]
