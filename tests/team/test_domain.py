"""Who may change whose role, without I/O."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PreconditionFailed
from services.team.domain import (
    LastOwner,
    Member,
    OnlyOwners,
    check_may_touch,
    check_owner_stays,
)

pytestmark = pytest.mark.unit

ROLES = ("owner", "admin", "member", "viewer", "billing")
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
roles = st.sampled_from(ROLES)


def member(role: str) -> Member:
    return Member(uuid4(), uuid4(), role, 2, NOW, NOW)


@given(actor=roles, old=roles, new=roles)
def test_only_an_owner_touches_owners(actor: str, old: str, new: str) -> None:
    if actor != "owner" and "owner" in (old, new):
        with pytest.raises(OnlyOwners):
            check_may_touch(actor, old, new)
    else:
        check_may_touch(actor, old, new)


@given(owners=st.integers(1, 5), role=roles, new=st.none() | roles)
def test_an_organization_never_loses_its_last_owner(
    owners: int, role: str, new: str | None
) -> None:
    left = owners - (role == "owner") + (role == "owner" and new == "owner")
    if left < 1:
        with pytest.raises(LastOwner):
            check_owner_stays(owners, role, new)
    else:
        check_owner_stays(owners, role, new)


def test_another_role_moves_the_version_and_the_same_does_not() -> None:
    viewer = member("viewer")
    later = NOW.replace(hour=13)
    assert viewer.with_role("viewer", later) is viewer
    changed = viewer.with_role("admin", later)
    assert (changed.role, changed.version, changed.updated_at) == ("admin", 3, later)


def test_a_change_for_an_older_version_is_refused() -> None:
    member("viewer").expect(None)
    member("viewer").expect(2)
    with pytest.raises(PreconditionFailed):
        member("viewer").expect(1)
