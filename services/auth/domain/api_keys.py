"""API keys: how they are made, told apart, bound and limited."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from common.errors import FieldError, Invalid, NotFound
from common.identity.api_keys import KeyKind, new_secret
from common.identity.call import Principal
from common.identity.permissions import PROJECT_SCOPES, SCOPES
from common.ids import uuid7

# How long an internal token for a key lasts.
EXCHANGED_FOR = timedelta(seconds=60)
# How old `last_used_at` may be before it is written again.
USED_EVERY = timedelta(minutes=1)

_SCOPES: dict[KeyKind, frozenset[str]] = {"user": SCOPES, "project": PROJECT_SCOPES}
_SHOWN_LENGTH = 12


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key.

    A user's key has ``user_id``; a project's has ``org_id`` and ``project_id``, and outlives
    ``created_by``.
    """

    id: UUID
    kind: KeyKind
    name: str
    prefix: str
    scopes: tuple[str, ...]
    user_id: UUID | None
    org_id: UUID | None
    project_id: UUID | None
    created_by: UUID | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    def principal(self) -> Principal:
        """Who a call with this key is from."""
        return Principal(
            "user_key" if self.kind == "user" else "project_key",
            user_id=self.user_id,
            api_key_id=self.id,
            org_id=self.org_id,
            project_id=self.project_id,
            scopes=frozenset(self.scopes),
        )

    def valid_until(self, now: datetime) -> datetime | None:
        """How long a token for this key may last from now; None where the key has expired."""
        if self.expires_at is None:
            return now + EXCHANGED_FOR
        return min(now + EXCHANGED_FOR, self.expires_at) if self.expires_at > now else None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a key is: a user's, or a project's of an organization."""

    user_id: UUID | None = None
    org_id: UUID | None = None
    project_id: UUID | None = None

    @property
    def kind(self) -> KeyKind:
        return "project" if self.user_id is None else "user"


@dataclass(frozen=True, slots=True)
class NewKey:
    """What is asked of a key; ``expires_at`` None: it does not expire."""

    name: str
    scopes: Sequence[str]
    expires_at: datetime | None = None


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"
    title = "There is no such API key"


def new_key(
    owner: Owner, asked: NewKey, created_by: UUID | None, now: datetime
) -> tuple[ApiKey, str]:
    """A key and its secret.

    Raises:
        Invalid: a scope is none that such a key may have, or the key would have expired.
    """
    scopes = check_scopes(owner.kind, asked.scopes)
    _check_expiry(asked.expires_at, now)
    secret = new_secret(owner.kind)
    key = ApiKey(
        id=uuid7(),
        kind=owner.kind,
        name=asked.name,
        prefix=shown_prefix(secret),
        scopes=scopes,
        user_id=owner.user_id,
        org_id=owner.org_id,
        project_id=owner.project_id,
        created_by=created_by,
        created_at=now,
        expires_at=asked.expires_at,
        last_used_at=None,
    )
    return key, secret


def shown_prefix(secret: str) -> str:
    """As much of a key as its owner needs to tell it from others."""
    return secret[:_SHOWN_LENGTH]


def secret_digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def check_scopes(kind: KeyKind, scopes: Sequence[str]) -> tuple[str, ...]:
    """The scopes, each once.

    Raises:
        Invalid: one of them is no permission that a key of this kind may have.
    """
    unknown = [
        FieldError(f"/scopes/{index}", "unknown_scope", f"is no scope of a {kind}'s key")
        for index, scope in enumerate(scopes)
        if scope not in _SCOPES[kind]
    ]
    if unknown:
        allowed = ", ".join(sorted(_SCOPES[kind]))
        raise Invalid(f"The scopes of a {kind}'s key are {allowed}.", fields=unknown)
    return tuple(dict.fromkeys(scopes))


def _check_expiry(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise Invalid(
            "expires_at must be in the future.",
            fields=[FieldError("/expires_at", "in_past", "must be in the future")],
        )
