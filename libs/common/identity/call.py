"""The call at hand: its caller, what the caller may reach, and what travels beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from common.errors import FieldError, Invalid, NotFound, PermissionDenied, Unauthenticated
from common.identity.permissions import PERSONAL, ROLES, SELF

PrincipalKind = Literal["user", "user_key", "project_key", "service", "anonymous"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, as the signed token says.

    ``user_id`` is set for ``user`` and ``user_key``; ``org_id`` and ``project_id`` for
    ``project_key``; ``service`` for ``service``; ``scopes`` for both kinds of keys.
    """

    kind: PrincipalKind
    user_id: UUID | None = None
    session_id: UUID | None = None
    api_key_id: UUID | None = None
    org_id: UUID | None = None
    project_id: UUID | None = None
    scopes: frozenset[str] = frozenset()
    service: str | None = None
    token: str = field(default="", repr=False)
    # Identifies the caller across calls: limits, idempotency records and caches use it.
    subject: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = self.api_key_id or self.user_id or self.service
        subject = f"{self.kind}:{named}" if named else self.kind
        object.__setattr__(self, "subject", subject)


ANONYMOUS = Principal("anonymous")


def permitted(principal: Principal, role: str | None, permission: str) -> bool:
    """Whether the principal may, in an organization where it has ``role`` (None: nowhere)."""
    if principal.kind == "service":
        return permission == "service" or role is not None
    if permission in SELF:
        return principal.kind == "user"
    if principal.kind == "project_key":
        return permission in principal.scopes
    granted = ROLES.get(role, frozenset()) if role else PERSONAL
    if permission not in granted:
        return False
    return principal.kind == "user" or permission in principal.scopes


@dataclass(slots=True)
class Call:
    """One incoming call. ``roles`` maps each open organization of the caller to its role.

    ``deadline`` is in seconds of ``time.monotonic``; ``acting_for`` holds the organizations that a
    calling service says it works on, and ``org_id`` is the one that was authorized. ``answered``
    and ``recorded`` say that a transaction has committed with the answer kept for the idempotency
    key, and with the audit record.
    """

    operation: str
    principal: Principal
    permission: str = ""
    roles: Mapping[UUID, str] = field(default_factory=dict)
    caller: str | None = None
    idempotency_key: str | None = None
    request_hash: bytes = b""
    if_match: int | None = None
    audited: bool = False
    ip: str | None = None
    user_agent: str | None = None
    correlation_id: str = ""
    authorized: bool = False
    org_id: UUID | None = None
    etag: int | None = None
    answered: bool = False
    recorded: bool = False
    deadline: float | None = None
    acting_for: tuple[UUID, ...] = ()
    # How often each request was sent on to another service, so that its repeats differ by number.
    sent: dict[str, int] = field(default_factory=dict)

    @property
    def orgs(self) -> tuple[UUID, ...]:
        """The caller's organizations, for row-level security."""
        return tuple(self.roles)

    @property
    def permitted_orgs(self) -> tuple[UUID, ...]:
        """The organizations in which the caller has this operation's permission."""
        return tuple(
            org
            for org, role in self.roles.items()
            if permitted(self.principal, role, self.permission)
        )

    @property
    def user_id(self) -> UUID:
        """The calling user.

        Raises:
            Unauthenticated: the caller is not a user.
        """
        if self.principal.user_id is None:
            raise Unauthenticated("This needs the credential of a user.")
        return self.principal.user_id

    def organization(self, asked: str | None) -> UUID:
        """The organization asked for, or the caller's only one; checked either way.

        Raises:
            Invalid: none is named and the caller has none, or several.
            NotFound, PermissionDenied: see ``authorize``.
        """
        if asked is not None:
            org = UUID(asked)
        else:
            mine = self.permitted_orgs
            if not mine and self.orgs:
                raise PermissionDenied(f"This needs the permission {self.permission}.")
            if len(mine) != 1:
                raise Invalid(
                    f"You belong to {len(mine)} organizations; name one with org_id.",
                    fields=[FieldError("/org_id", "missing_field", "name an organization")],
                )
            org = mine[0]
        self.authorize(org)
        return org

    def project(self, asked: str | None) -> UUID | None:
        """The project asked for; the one that a project's key is bound to, where it asks for none.

        Raises:
            NotFound: the key asks for another one.
        """
        wanted = None if asked is None else UUID(asked)
        bound = self.principal.project_id
        if bound is None:
            return wanted
        if wanted not in (None, bound):
            raise NotFound
        return bound

    def authorize(self, org_id: UUID, project_id: UUID | None = None) -> None:
        """Check this operation's permission on the organization of the row that was found.

        Args:
            org_id: the organization of the row.
            project_id: the row's project, where it has one: a project's key reaches no other.

        Raises:
            NotFound: the caller may not know that the row exists.
            PermissionDenied: the caller's role or scopes do not allow this.
        """
        role = self.roles.get(org_id)
        bound = self.principal.project_id
        if role is None or (bound is not None and project_id is not None and project_id != bound):
            raise NotFound
        if not permitted(self.principal, role, self.permission):
            raise PermissionDenied(f"This needs the permission {self.permission}.")
        self.authorized = True
        self.org_id = org_id


_current: ContextVar[Call | None] = ContextVar("mindweave_call", default=None)


def current_call() -> Call:
    """The call being served.

    Raises:
        LookupError: outside of a call.
    """
    call = _current.get()
    if call is None:
        raise LookupError("no call is being served")
    return call


def current_call_or_none() -> Call | None:
    """The call being served, or None in consumers and background work."""
    return _current.get()


def set_call(call: Call | None) -> None:
    """Bind the call to this task; only the kit's interceptors and middleware do this."""
    _current.set(call)
