"""Which key signs, which are published, and when the next one is made.

A key is published ``LEAD`` before it signs, so that every verifier knows it by then, and stays
published for ``OVERLAP`` after its successor took over, so that what it signed is verified.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ROTATE_AFTER = timedelta(days=30)
LEAD = timedelta(hours=1)
# Longer than any token lasts.
OVERLAP = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens from ``signs_from`` on, until the next one does."""

    kid: str
    private: Ed25519PrivateKey = field(repr=False)
    signs_from: datetime

    @property
    def public(self) -> Ed25519PublicKey:
        return self.private.public_key()


def new_signing_key(signs_from: datetime) -> SigningKey:
    private = Ed25519PrivateKey.generate()
    return SigningKey(thumbprint(private.public_key()), private, signs_from)


def thumbprint(key: Ed25519PublicKey) -> str:
    """The key's id: its JWK thumbprint (RFC 7638)."""
    x = _base64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    members = {"crv": "Ed25519", "kty": "OKP", "x": x}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def in_order(keys: Sequence[SigningKey]) -> list[SigningKey]:
    return sorted(keys, key=lambda key: key.signs_from)


def signer(keys: Sequence[SigningKey], now: datetime) -> SigningKey:
    """The key that signs now: the newest whose time has come.

    Raises:
        LookupError: there are no keys.
    """
    ordered = in_order(keys)
    if not ordered:
        raise LookupError("there is no signing key")
    due = [key for key in ordered if key.signs_from <= now]
    return due[-1] if due else ordered[0]


def published(keys: Sequence[SigningKey], now: datetime) -> list[SigningKey]:
    """The keys whose signatures count now."""
    ordered = in_order(keys)
    successors = [*ordered[1:], None]
    return [
        key
        for key, successor in zip(ordered, successors, strict=True)
        if successor is None or now < successor.signs_from + OVERLAP
    ]


def next_start(keys: Sequence[SigningKey], now: datetime) -> datetime | None:
    """From when a key to be made now signs; None while none is to be made."""
    if not keys:
        return now
    due = max(key.signs_from for key in keys) + ROTATE_AFTER
    return max(due, now + LEAD) if due - LEAD <= now else None


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
