"""Secrets at rest: AES-256-GCM, bound to the place where they are kept."""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# Leads every sealed value, so that another scheme can follow.
_VERSION = b"\x01"
_NONCE_BYTES = 12


class SealBroken(Exception):
    """The value was not sealed with this key and context, or was changed since."""


class Sealer:
    """Seals and opens values with one key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a sealing key has 32 bytes")
        self._cipher = AESGCM(key)
        self._fingerprint_key = hmac.digest(key, b"fingerprint", hashlib.sha256)

    def fingerprint(self, value: bytes) -> bytes:
        """Tells whether two values are the same, and without the key nothing else of them."""
        return hmac.digest(self._fingerprint_key, value, hashlib.sha256)

    def seal(self, value: bytes, context: bytes) -> bytes:
        """The value, encrypted; ``context`` names its place and is needed to open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, value, _VERSION + context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The value that was sealed.

        Raises:
            SealBroken: it was not sealed with this key and context, or was changed since.
        """
        nonce = sealed[1 : 1 + _NONCE_BYTES]
        if sealed[:1] != _VERSION or len(nonce) != _NONCE_BYTES:
            raise SealBroken("not a sealed value")
        try:
            return self._cipher.decrypt(nonce, sealed[1 + _NONCE_BYTES :], _VERSION + context)
        except InvalidTag:
            raise SealBroken("another key or context, or a changed value") from None
