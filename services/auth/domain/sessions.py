"""Sessions and the chain of refresh tokens that keeps one open.

A session's tokens are its family: each refresh spends the last token and issues the next, so that
one is unspent at any time. A token is kept only as its SHA-256. The spent one holds its successor,
encrypted under itself: within the grace, whoever shows the spent token is given the same successor
again (two tabs that refresh at once), while nothing that is stored can be turned into a token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from common.errors import NotFound, Unauthenticated

_MARK = "mwr_"
_TOKEN_BYTES = 32
GRACE = timedelta(seconds=10)
# However often it is refreshed, a session ends after this.
LONGEST_SESSION = timedelta(days=90)
# How old `last_seen_at` may be before it is written again.
SEEN_EVERY = timedelta(minutes=1)
_USER_AGENT_LENGTH = 512

EndReason = Literal["ended", "password_changed", "refresh_reused"]


@dataclass(frozen=True, slots=True)
class Session:
    """An open session; ``expires_at`` moves on with each refresh."""

    id: UUID
    user_id: UUID
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None

    def seen(
        self, now: datetime, ttl: timedelta, ip: str | None, user_agent: str | None
    ) -> Session:
        """The session after a refresh."""
        return replace(
            self,
            last_seen_at=now,
            expires_at=expiry(self.created_at, now, ttl),
            ip=ip or self.ip,
            user_agent=shortened(user_agent) or self.user_agent,
        )


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What is kept of a refresh token; ``successor`` only while the grace lasts."""

    digest: bytes
    session_id: UUID
    spent_at: datetime | None
    successor: bytes | None

    def in_grace(self, now: datetime) -> bool:
        return (
            self.spent_at is not None
            and self.successor is not None
            and now - self.spent_at <= GRACE
        )


class SessionNotFound(NotFound):
    code = "session_not_found"
    title = "There is no such session"


class SessionEnded(Unauthenticated):
    code = "session_ended"
    title = "The session has ended; sign in again"


class InvalidRefreshToken(Unauthenticated):
    """Unknown, expired, or spent: which of them is not told."""

    code = "invalid_refresh_token"
    title = "The refresh token is not valid; sign in again"


def expiry(created: datetime, now: datetime, ttl: timedelta) -> datetime:
    """When a session that is refreshed now ends unless it is refreshed again."""
    return min(now + ttl, created + LONGEST_SESSION)


def shortened(user_agent: str | None) -> str | None:
    """A user agent as far as people read it."""
    if not user_agent:
        return None
    shown = "".join(c for c in user_agent if c.isprintable())
    return shown[:_USER_AGENT_LENGTH] or None


def new_refresh_token() -> str:
    return _text(secrets.token_bytes(_TOKEN_BYTES))


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def conceal_successor(spent: str, successor: str) -> bytes:
    """The successor, readable only with the token that it followed, which conceals no other."""
    return _xor(_raw(successor), _pad(spent))


def reveal_successor(spent: str, concealed: bytes) -> str:
    return _text(_xor(concealed, _pad(spent)))


def _pad(token: str) -> bytes:
    return hmac.digest(token.encode(), b"mindweave successor", hashlib.sha256)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _text(raw: bytes) -> str:
    return _MARK + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _raw(token: str) -> bytes:
    # 43 characters hold 32 bytes.
    return base64.urlsafe_b64decode(token.removeprefix(_MARK) + "=")
