"""Organizations: their names, slugs and the states of their life."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from common.errors import Conflict, Invalid, NotFound, PreconditionFailed

State = Literal["pending", "active", "closing"]

_SLUG_LENGTH = 63


@dataclass(frozen=True, slots=True)
class Org:
    """An organization.

    ``pending`` until team has opened it, ``active``, and ``closing`` from the moment its removal
    is decided. ``activated_at`` is None where it was never active: nobody has heard of it.
    """

    id: UUID
    name: str
    slug: str
    state: State
    version: int
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    activated_at: datetime | None = None

    def renamed(self, name: str, now: datetime) -> Org:
        """The organization under another name; its slug stays, since links hold it."""
        if name == self.name:
            return self
        return replace(self, name=name, version=self.version + 1, updated_at=now)

    def expect(self, version: int | None) -> None:
        """Refuse a change that was made for another version.

        Raises:
            PreconditionFailed: ``version`` is given and not the current one.
        """
        if version is not None and version != self.version:
            raise PreconditionFailed("The organization has changed; read it again.")


@dataclass(frozen=True, slots=True)
class Opening:
    """A creator's wish for an organization: the same wish again means the same organization."""

    org_id: UUID
    user_id: UUID
    key: str
    request_hash: bytes


class OrgNotFound(NotFound):
    """There is no such organization, or none that the caller may know of: both read alike."""


class OrgNotOpened(Conflict):
    """The organization was given up before it was open."""

    code = "org_not_opened"
    title = "The organization could not be opened; create it again"


class KeyReused(Invalid):
    """The idempotency key belongs to another body."""

    code = "idempotency_key_reused"
    title = "The idempotency key was used with another body"


def slug_of(name: str) -> str:
    """Lower-case ASCII letters, digits and hyphens from a name, at most 63 characters."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return slug[:_SLUG_LENGTH].strip("-") or "org"


def slug_candidates(name: str, org_id: UUID) -> Iterator[str]:
    """Slugs to try, the plainest first; the last holds the whole id, so it is free."""
    slug, tail = slug_of(name), org_id.hex
    yield slug
    for length in (6, 12, len(tail)):
        room = _SLUG_LENGTH - length - 1
        yield f"{slug[:room].strip('-')}-{tail[-length:]}"
