"""Members of organizations, their roles, and who may change whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from common.errors import Conflict, NotFound, PermissionDenied, PreconditionFailed

OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Member:
    """A user in an organization; ``role`` is owner, admin, member, viewer or billing."""

    org_id: UUID
    user_id: UUID
    role: str
    version: int
    created_at: datetime
    updated_at: datetime

    def with_role(self, role: str, now: datetime) -> Member:
        if role == self.role:
            return self
        return replace(self, role=role, version=self.version + 1, updated_at=now)

    def expect(self, version: int | None) -> None:
        """Refuse a change that was made for another version.

        Raises:
            PreconditionFailed: ``version`` is given and not the current one.
        """
        if version is not None and version != self.version:
            raise PreconditionFailed("The member has changed; read the members again.")


class MemberNotFound(NotFound):
    code = "member_not_found"
    title = "The organization has no such member"


class UserNotFound(NotFound):
    code = "user_not_found"
    title = "There is no user with this id"


class AlreadyMember(Conflict):
    code = "already_member"
    title = "The user is already a member of the organization"


class LastOwner(Conflict):
    code = "last_owner"
    title = "The last owner stays; make another member an owner first"


class OrgClosed(Conflict):
    code = "org_closed"
    title = "The organization is closed for good"


class OnlyOwners(PermissionDenied):
    code = "only_owners"
    title = "Only an owner may add, change or remove an owner"


def check_may_touch(actor_role: str, *roles: str) -> None:
    """Refuse where a role at hand, old or new, is the owner's and the actor is no owner.

    Raises:
        OnlyOwners: as said.
    """
    if OWNER in roles and actor_role != OWNER:
        raise OnlyOwners


def check_owner_stays(owners: int, role: str, new_role: str | None) -> None:
    """Refuse to take the role of the last owner.

    Args:
        owners: how many the organization has now.
        role: the member's role now.
        new_role: its next one; None where the member is removed.

    Raises:
        LastOwner: no owner would be left.
    """
    if role == OWNER and new_role != OWNER and owners <= 1:
        raise LastOwner
