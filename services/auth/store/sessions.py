"""Sessions and their refresh tokens in PostgreSQL, within one transaction."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import asyncpg

from services.auth.domain.sessions import RefreshToken, Session


class SessionStore:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def insert(self, session: Session, digest: bytes) -> None:
        """Open a session with its first refresh token."""
        await self._connection.execute(
            """
            INSERT INTO sessions (id, user_id, created_at, last_seen_at, expires_at, ip, user_agent)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            session.id,
            session.user_id,
            session.created_at,
            session.last_seen_at,
            session.expires_at,
            session.ip,
            session.user_agent,
        )
        await self._issue(session.id, digest, session.created_at)

    async def find(self, session_id: UUID, now: datetime) -> Session | None:
        """The session, if it is open now."""
        row = await self._connection.fetchrow(
            """
            SELECT id, user_id, created_at, last_seen_at, expires_at, ip, user_agent
            FROM sessions WHERE id = $1 AND expires_at > $2
            """,
            session_id,
            now,
        )
        return Session(**row) if row else None

    async def hold(self, session_id: UUID, user_id: UUID, now: datetime) -> bool:
        """Keep the user's session from ending until the transaction does; False where it has."""
        held = await self._connection.fetchval(
            """
            SELECT true FROM sessions
            WHERE id = $1 AND user_id = $2 AND expires_at > $3 FOR SHARE
            """,
            session_id,
            user_id,
            now,
        )
        return held is not None

    async def list_of(
        self, user_id: UUID, before: UUID | None, limit: int, now: datetime
    ) -> list[Session]:
        """The user's open sessions, newest first, from the one after ``before`` on."""
        rows = await self._connection.fetch(
            """
            SELECT id, user_id, created_at, last_seen_at, expires_at, ip, user_agent
            FROM sessions
            WHERE user_id = $1 AND expires_at > $4 AND ($2::uuid IS NULL OR id < $2)
            ORDER BY id DESC LIMIT $3
            """,
            user_id,
            before,
            limit,
            now,
        )
        return [Session(**row) for row in rows]

    async def touch(self, session_id: UUID, now: datetime, unless_after: datetime) -> None:
        """Write that the session was seen now, unless it was seen after that moment already."""
        await self._connection.execute(
            "UPDATE sessions SET last_seen_at = $2 WHERE id = $1 AND last_seen_at <= $3",
            session_id,
            now,
            unless_after,
        )

    async def delete(self, session_id: UUID, user_id: UUID) -> bool:
        """Whether the user had such a session."""
        status = await self._connection.execute(
            "DELETE FROM sessions WHERE id = $1 AND user_id = $2", session_id, user_id
        )
        return status == "DELETE 1"

    async def delete_others(self, user_id: UUID, but: UUID | None) -> list[UUID]:
        """End every session of the user but one; their ids."""
        rows = await self._connection.fetch(
            "DELETE FROM sessions WHERE user_id = $1 AND id IS DISTINCT FROM $2 RETURNING id",
            user_id,
            but,
        )
        return [row["id"] for row in rows]

    async def delete_expired(self, now: datetime) -> int:
        status = await self._connection.execute("DELETE FROM sessions WHERE expires_at <= $1", now)
        return int(status.removeprefix("DELETE "))

    async def lock_family(self, digest: bytes, now: datetime) -> Session | None:
        """The open session that a refresh token belongs to, kept from every other refresh."""
        row = await self._connection.fetchrow(
            """
            SELECT id, user_id, created_at, last_seen_at, expires_at, ip, user_agent
            FROM sessions
            WHERE id = (SELECT session_id FROM refresh_tokens WHERE digest = $1)
                AND expires_at > $2
            FOR UPDATE
            """,
            digest,
            now,
        )
        return Session(**row) if row else None

    async def get_token(self, digest: bytes) -> RefreshToken | None:
        row = await self._connection.fetchrow(
            """
            SELECT digest, session_id, spent_at, successor FROM refresh_tokens WHERE digest = $1
            """,
            digest,
        )
        return RefreshToken(**row) if row else None

    async def spend(self, digest: bytes, successor: bytes, now: datetime) -> None:
        """Spend a token of a session that this transaction has locked."""
        await self._connection.execute(
            "UPDATE refresh_tokens SET spent_at = $3, successor = $2 WHERE digest = $1",
            digest,
            successor,
            now,
        )

    async def follow(self, session: Session, digest: bytes, grace_since: datetime) -> None:
        """Issue the next token of a locked session, and forget successors out of their grace."""
        await self._connection.execute(
            """
            UPDATE refresh_tokens SET successor = NULL
            WHERE session_id = $1 AND successor IS NOT NULL AND spent_at < $2
            """,
            session.id,
            grace_since,
        )
        await self._issue(session.id, digest, session.last_seen_at)
        await self._connection.execute(
            """
            UPDATE sessions SET last_seen_at = $2, expires_at = $3, ip = $4, user_agent = $5
            WHERE id = $1
            """,
            session.id,
            session.last_seen_at,
            session.expires_at,
            session.ip,
            session.user_agent,
        )

    async def _issue(self, session_id: UUID, digest: bytes, now: datetime) -> None:
        await self._connection.execute(
            "INSERT INTO refresh_tokens (digest, session_id, issued_at) VALUES ($1, $2, $3)",
            digest,
            session_id,
            now,
        )
