"""Projects of organizations, and what their keys may be given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from common.errors import (
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
)

DEFAULT_SCOPES = ("events:write",)


@dataclass(frozen=True, slots=True)
class Project:
    """A project; usage names it, and ``team_id`` is the team that its usage counts for."""

    id: UUID
    org_id: UUID
    team_id: UUID | None
    name: str
    version: int
    created_at: datetime
    updated_at: datetime

    def changed(self, name: str, team_id: UUID | None, now: datetime) -> Project:
        if (name, team_id) == (self.name, self.team_id):
            return self
        return replace(self, name=name, team_id=team_id, version=self.version + 1, updated_at=now)

    def expect(self, version: int | None) -> None:
        """Refuse a change that was made for another version.

        Raises:
            PreconditionFailed: ``version`` is given and not the current one.
        """
        if version is not None and version != self.version:
            raise PreconditionFailed("The project has changed; read it again.")

    def differences(self, other: Project) -> list[str]:
        """Names of the fields in which the other differs."""
        return [f for f in ("name", "team_id") if getattr(self, f) != getattr(other, f)]


class ProjectNotFound(NotFound):
    """There is no such project, or the caller may not know of it: both read alike."""


class OrgClosed(Conflict):
    code = "org_closed"
    title = "The organization is deleted"


class ScopeBeyondCaller(PermissionDenied):
    code = "scope_beyond_caller"
    title = "A key may have only scopes that its creator has"


def check_scopes(
    scopes: Sequence[str], grantable: frozenset[str], held: Callable[[str], bool]
) -> None:
    """Refuse scopes that no project's key may have, or that the caller lacks.

    Args:
        scopes: what is asked for.
        grantable: what a project's key may have at all.
        held: whether the caller has a permission.

    Raises:
        Invalid: some are not grantable; each is named.
        ScopeBeyondCaller: the caller lacks some.
    """
    wrong = [
        FieldError(f"/scopes/{index}", "unknown_scope", f"must be one of {_listed(grantable)}")
        for index, scope in enumerate(scopes)
        if scope not in grantable
    ]
    if wrong:
        raise Invalid(f"A project's key may have the scopes {_listed(grantable)}.", fields=wrong)
    lacking = [scope for scope in scopes if not held(scope)]
    if lacking:
        raise ScopeBeyondCaller(
            f"A key may have only scopes that its creator has; you lack {_listed(lacking)}."
        )


def _listed(names: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
