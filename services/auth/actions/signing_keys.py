"""The keys that sign tokens: made, rotated, published."""

from __future__ import annotations

import asyncio
from datetime import datetime

from common.clock import Clock
from common.database import Database, Scope
from common.identity.call import Principal
from common.identity.sealing import Sealer
from common.identity.tokens import sign_token
from services.auth.domain.signing_keys import (
    LEAD,
    ROTATE_AFTER,
    SigningKey,
    in_order,
    new_signing_key,
    next_start,
    published,
    signer,
)
from services.auth.store.signing_keys import SigningKeyStore


class KeyRing:
    """What the database holds, as of the last ``refresh``.

    A process that refreshes every minute knows a new key long before it signs (``LEAD``), so all
    processes sign with the same one.
    """

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._loading = asyncio.Lock()
        self._due = database.telemetry.gauge(
            "mindweave_signing_key_due_seconds",
            "Unix time until which the newest key signs; the next one is made before.",
        ).of()

    async def refresh(self) -> None:
        """Take up the keys of the database, after making the next one where it is time."""
        now = self._clock.now()
        async with self._database.read(Scope()) as connection:
            keys = await SigningKeyStore(connection, self._sealer).list_all()
        if next_start(keys, now) is not None or len(published(keys, now)) < len(keys):
            keys = await self._rotate()
        self._keys = keys
        self._due.set((in_order(keys)[-1].signs_from + ROTATE_AFTER).timestamp())

    async def rotate(self, *, at_once: bool) -> SigningKey:
        """Make the next key before its time.

        Args:
            at_once: it signs now, and what others have signed counts no more: one was stolen.
                Else it signs after ``LEAD``, and nobody notices.
        """
        async with self._database.change(Scope(), call=None) as change:
            store = SigningKeyStore(change.connection, self._sealer)
            await store.lock()
            now = self._clock.now()
            if at_once:
                await store.delete([key.kid for key in await store.list_all()])
            made = new_signing_key(now if at_once else now + LEAD)
            await store.insert(made)
        await self.refresh()
        return made

    async def published(self) -> list[SigningKey]:
        """The keys whose signatures count now."""
        return published(await self._loaded(), self._clock.now())

    async def sign(self, principal: Principal, *, issuer: str, until: datetime) -> str:
        """A token that says who ``principal`` is until then."""
        now = self._clock.now()
        key = signer(await self._loaded(), now)
        return sign_token(key.private, key.kid, principal, issuer=issuer, now=now, ttl=until - now)

    async def _loaded(self) -> list[SigningKey]:
        if not self._keys:
            async with self._loading:
                if not self._keys:
                    await self.refresh()
        return self._keys

    async def _rotate(self) -> list[SigningKey]:
        async with self._database.change(Scope(), call=None) as change:
            store = SigningKeyStore(change.connection, self._sealer)
            await store.lock()
            now = self._clock.now()
            keys = await store.list_all()
            start = next_start(keys, now)
            if start is not None:
                await store.insert(new_signing_key(start))
                keys = await store.list_all()
            kept = published(keys, now)
            await store.delete([key.kid for key in keys if key not in kept])
            return kept
