"""Changes of one organization, also by two at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from common.clock import ManualClock
from common.errors import PreconditionFailed
from services.account.actions import OrgActions
from services.account.domain import Org
from tests.account.conftest import Creator, Team, delete, types
from tests.conftest import Published

pytestmark = pytest.mark.store


async def rename(actions: OrgActions, org_id: UUID, name: str, version: int | None = None) -> Org:
    return await actions.rename(org_id, name, version=version, answer=lambda _change, org: org)


async def test_renaming_keeps_the_slug_and_is_told_of(
    creator: Creator, published: Published, actions: OrgActions, clock: ManualClock
) -> None:
    org = await creator.create("Before")
    clock.advance(timedelta(seconds=1))
    renamed = await rename(actions, org.id, "After", org.version)
    assert (renamed.name, renamed.slug, renamed.version) == ("After", org.slug, 2)
    assert await actions.get(org.id) == renamed
    assert [e.data for e in await published()][1:] == [{"org_id": str(org.id), "fields": ["name"]}]
    assert await rename(actions, org.id, "After") == renamed
    assert await types(published) == ["org.created", "org.updated"]


async def test_of_two_writers_with_the_same_version_one_is_refused(
    creator: Creator, actions: OrgActions
) -> None:
    org = await creator.create()
    done = await asyncio.gather(
        *(rename(actions, org.id, f"Name {n}", org.version) for n in range(2)),
        return_exceptions=True,
    )
    assert sorted(type(result) is Org for result in done) == [False, True]
    assert any(isinstance(result, PreconditionFailed) for result in done)
    assert (await actions.get(org.id)).version == 2


async def test_writers_without_a_version_come_one_after_the_other(
    creator: Creator, actions: OrgActions
) -> None:
    org = await creator.create()
    done = await asyncio.gather(*(rename(actions, org.id, f"Name {n}") for n in range(4)))
    assert sorted(result.version for result in done) == [2, 3, 4, 5]


async def test_a_stale_version_deletes_nothing(
    creator: Creator, actions: OrgActions, team: Team
) -> None:
    org = await creator.create()
    await rename(actions, org.id, "Newer")
    with pytest.raises(PreconditionFailed):
        await delete(actions, org.id, version=org.version)
    assert team.closed == set()
    assert (await actions.get(org.id)).state == "active"
