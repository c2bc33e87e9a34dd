"""Signing keys in PostgreSQL, sealed, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.identity.sealing import Sealer
from services.auth.domain.signing_keys import SigningKey


class SigningKeyStore:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], sealer: Sealer) -> None:
        self._connection = connection
        self._sealer = sealer

    async def lock(self) -> None:
        """Let one process at a time decide on keys, until the transaction ends."""
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('mindweave.auth.signing_keys', 0))"
        )

    async def list_all(self) -> list[SigningKey]:
        """Every key, in the order in which they sign."""
        rows = await self._connection.fetch(
            "SELECT kid, sealed, signs_from FROM signing_keys ORDER BY signs_from, kid"
        )
        return [
            SigningKey(
                row["kid"],
                Ed25519PrivateKey.from_private_bytes(
                    self._sealer.open(row["sealed"], _context(row["kid"]))
                ),
                row["signs_from"],
            )
            for row in rows
        ]

    async def insert(self, key: SigningKey) -> None:
        await self._connection.execute(
            "INSERT INTO signing_keys (kid, sealed, signs_from) VALUES ($1, $2, $3)",
            key.kid,
            self._sealer.seal(key.private.private_bytes_raw(), _context(key.kid)),
            key.signs_from,
        )

    async def delete(self, kids: Sequence[str]) -> None:
        await self._connection.execute(
            "DELETE FROM signing_keys WHERE kid = ANY($1::text[])", list(kids)
        )


def _context(kid: str) -> bytes:
    return b"signing key " + kid.encode()
