"""Removal of what has expired."""

from __future__ import annotations

from datetime import timedelta

from common.clock import Clock
from common.database import Database, Scope
from services.auth.store.attempts import StoredAttempts
from services.auth.store.sessions import SessionStore


class Upkeep:
    """Args: ``attempts_kept`` is longer than any limit's window."""

    def __init__(self, database: Database, clock: Clock, *, attempts_kept: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._attempts_kept = attempts_kept

    async def sweep(self) -> None:
        """Remove expired sessions and forgotten attempts."""
        now = self._clock.now()
        async with self._database.change(Scope(), call=None) as change:
            await SessionStore(change.connection).delete_expired(now)
            await StoredAttempts(change.connection).delete_before(now - self._attempts_kept)
