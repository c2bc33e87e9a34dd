"""Projects and the scopes of their keys, without I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from common.errors import Invalid, PermissionDenied, PreconditionFailed
from common.identity.permissions import PROJECT_SCOPES
from services.project.domain import Project, check_scopes

pytestmark = pytest.mark.unit

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
PROJECT = Project(uuid4(), uuid4(), None, "Search", 1, NOW, NOW)


def test_a_change_moves_the_version_and_names_the_fields() -> None:
    team = uuid4()
    changed = PROJECT.changed("Search", team, NOW.replace(hour=13))
    assert (changed.version, changed.team_id) == (2, team)
    assert PROJECT.differences(changed) == ["team_id"]
    assert PROJECT.changed("Search", None, NOW.replace(hour=13)) is PROJECT


def test_a_change_for_an_older_version_is_refused() -> None:
    with pytest.raises(PreconditionFailed):
        replace(PROJECT, version=2).expect(1)


def test_a_scope_that_reaches_beyond_the_project_is_named() -> None:
    with pytest.raises(Invalid) as refused:
        check_scopes(["events:write", "org:delete", "x"], PROJECT_SCOPES, lambda _: True)
    assert [field.pointer for field in refused.value.fields] == ["/scopes/1", "/scopes/2"]


def test_a_scope_that_its_creator_lacks_is_refused() -> None:
    with pytest.raises(PermissionDenied, match="you lack events:write"):
        check_scopes(["events:write"], PROJECT_SCOPES, lambda scope: scope != "events:write")


def test_scopes_that_the_creator_holds_are_granted() -> None:
    check_scopes(sorted(PROJECT_SCOPES), PROJECT_SCOPES, lambda _: True)
