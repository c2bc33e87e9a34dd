"""The sagas with team: killed at every step, repeated, run twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.errors import MindWeaveError, NotFound, Unavailable
from services.account.actions import GRACE, OPENING_KEPT, PATIENCE, OrgActions, Sweeper
from services.account.domain import KeyReused, Org, OrgNotOpened
from services.account.store import OrgStore
from tests.account.conftest import Creator, Team, delete, types
from tests.conftest import Published

pytestmark = pytest.mark.store


class Killed(BaseException):
    """The process ends here."""


def kill(*_: object) -> None:
    raise Killed


def killed_at(moment: str) -> Callable[[str], None]:
    return lambda now: kill() if now == moment else None


async def stored(database: Database, org_id: UUID) -> Org | None:
    async with database.read(Scope((org_id,))) as connection:
        return await OrgStore(connection).get(org_id)


async def left_over(actions: OrgActions, clock: ManualClock) -> list[UUID]:
    clock.advance(GRACE + timedelta(seconds=1))
    return await actions.left_over()


async def test_a_created_organization_is_open_in_team_and_told_of(
    creator: Creator, team: Team, published: Published
) -> None:
    org = await creator.create()
    assert org.state == "active"
    assert team.owners[org.id] == creator.user_id
    (event,) = await published()
    assert (event.type, event.metadata.org_id) == ("org.created", org.id)
    assert event.data == {"org_id": str(org.id), "name": "Acme"}


async def test_a_repeat_with_the_same_key_is_the_same_organization(
    creator: Creator, published: Published
) -> None:
    first, second = await creator.create(), await creator.create()
    assert first == second
    assert await types(published) == ["org.created"]


async def test_the_same_key_with_another_body_is_refused(creator: Creator) -> None:
    await creator.create()
    with pytest.raises(KeyReused):
        await creator.create("Other", body=b"other")


async def test_twins_at_the_same_time_are_one_organization(
    creator: Creator, published: Published
) -> None:
    made = await asyncio.gather(*(creator.create() for _ in range(4)))
    assert len({org.id for org in made}) == 1
    assert await types(published) == ["org.created"]


CREATION_KILLS = ["before open", "after open", "before commit"]


async def create_killed(creator: Creator, team: Team, moment: str) -> None:
    team.interrupt = killed_at(moment)
    answer = kill if moment == "before commit" else lambda _change, org: org
    with pytest.raises(Killed):
        await creator.create(answer=answer)
    team.interrupt = killed_at("never")


@pytest.mark.parametrize("moment", CREATION_KILLS)
async def test_a_creation_killed_half_way_is_resumed_by_its_repeat(
    creator: Creator,
    team: Team,
    moment: str,
    published: Published,
    actions: OrgActions,
    clock: ManualClock,
) -> None:
    await create_killed(creator, team, moment)
    assert await types(published) == []
    org = await creator.create()
    assert team.owners == {org.id: creator.user_id}
    assert await types(published) == ["org.created"]
    assert await left_over(actions, clock) == []


@pytest.mark.parametrize("moment", CREATION_KILLS)
async def test_a_creation_killed_half_way_is_finished_by_the_sweeper(
    creator: Creator,
    team: Team,
    moment: str,
    published: Published,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
) -> None:
    await create_killed(creator, team, moment)
    assert await actions.left_over() == []
    (org_id,) = await left_over(actions, clock)
    assert await sweeper.sweep() == 0
    assert team.owners == {org_id: creator.user_id}
    assert await types(published) == ["org.created"]
    assert (await actions.get(org_id)).name == "Acme"
    assert (await creator.create()).id == org_id


async def test_sweepers_and_the_repeat_at_once_open_it_once(
    creator: Creator,
    team: Team,
    published: Published,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
) -> None:
    await create_killed(creator, team, "before open")
    await left_over(actions, clock)
    org, *_ = await asyncio.gather(creator.create(), sweeper.sweep(), sweeper.sweep())
    assert (await actions.get(org.id)).state == "active"
    assert await types(published) == ["org.created"]


async def test_while_team_is_down_a_creation_waits_for_its_repeat_or_the_sweeper(
    creator: Creator,
    team: Team,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
    published: Published,
) -> None:
    team.down = True
    with pytest.raises(Unavailable):
        await creator.create()
    (org_id,) = await left_over(actions, clock)
    assert await sweeper.sweep() == 1
    with pytest.raises(NotFound):
        await actions.get(org_id)
    team.down = False
    assert await sweeper.sweep() == 0
    assert (await actions.get(org_id)).state == "active"
    assert await types(published) == ["org.created"]


async def test_a_creation_left_for_too_long_is_given_up_and_never_told_of(
    creator: Creator,
    team: Team,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
    published: Published,
    database: Database,
) -> None:
    await create_killed(creator, team, "after open")
    (org_id,) = team.owners
    clock.advance(PATIENCE)
    assert await sweeper.sweep() == 0
    assert await stored(database, org_id) is None
    assert (team.owners, team.closed) == ({}, {org_id})
    assert await types(published) == []
    with pytest.raises(OrgNotOpened):
        await creator.create()


async def test_giving_up_killed_half_way_is_ended_later(
    creator: Creator,
    team: Team,
    sweeper: Sweeper,
    clock: ManualClock,
    published: Published,
    database: Database,
) -> None:
    await create_killed(creator, team, "after open")
    (org_id,) = team.owners
    clock.advance(PATIENCE)
    team.interrupt = killed_at("after close")
    with pytest.raises(Killed):
        await sweeper.sweep()
    team.interrupt = killed_at("never")
    with pytest.raises(OrgNotOpened):
        await creator.create()
    clock.advance(GRACE + timedelta(seconds=1))
    assert await sweeper.sweep() == 0
    assert await stored(database, org_id) is None
    assert await types(published) == []


async def test_an_organization_that_team_has_closed_is_removed(
    creator: Creator,
    team: Team,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
    database: Database,
) -> None:
    await create_killed(creator, team, "before open")
    (org_id,) = await left_over(actions, clock)
    team.closed.add(org_id)
    assert await sweeper.sweep() == 0
    assert await stored(database, org_id) is None


async def test_deleting_closes_in_team_and_is_told_of(
    creator: Creator, team: Team, published: Published, actions: OrgActions, database: Database
) -> None:
    org = await creator.create()
    await delete(actions, org.id)
    assert team.closed == {org.id}
    assert await stored(database, org.id) is None
    assert await types(published) == ["org.created", "org.deleted"]
    with pytest.raises(NotFound):
        await delete(actions, org.id)


@pytest.mark.parametrize("moment", ["before close", "after close", "before commit"])
async def test_a_deletion_killed_half_way_is_ended_by_the_sweeper(
    creator: Creator,
    team: Team,
    moment: str,
    published: Published,
    sweeper: Sweeper,
    actions: OrgActions,
    clock: ManualClock,
    database: Database,
) -> None:
    org = await creator.create()
    team.interrupt = killed_at(moment)
    with pytest.raises(Killed):
        await actions.delete(
            org.id, version=None, answer=kill if moment == "before commit" else lambda _: None
        )
    team.interrupt = killed_at("never")
    with pytest.raises(NotFound):
        await actions.get(org.id)
    assert await actions.list_active([org.id], None, 10) == []
    assert await left_over(actions, clock) == [org.id]
    await asyncio.gather(sweeper.sweep(), sweeper.sweep())
    assert await stored(database, org.id) is None
    assert team.closed == {org.id}
    assert await types(published) == ["org.created", "org.deleted"]


async def test_a_deletion_that_team_could_not_do_is_ended_by_its_repeat(
    creator: Creator, team: Team, published: Published, actions: OrgActions
) -> None:
    org = await creator.create()
    team.down = True
    with pytest.raises(Unavailable):
        await delete(actions, org.id, version=org.version)
    team.down = False
    await delete(actions, org.id, version=org.version)
    assert team.closed == {org.id}
    assert await types(published) == ["org.created", "org.deleted"]


async def test_deletions_at_the_same_time_are_told_of_once(
    creator: Creator, published: Published, actions: OrgActions
) -> None:
    org = await creator.create()
    done = await asyncio.gather(
        *(delete(actions, org.id) for _ in range(3)), return_exceptions=True
    )
    assert all(result is None or isinstance(result, NotFound) for result in done)
    assert await types(published) == ["org.created", "org.deleted"]


async def test_a_key_of_yesterday_is_free_again(
    creator: Creator, sweeper: Sweeper, clock: ManualClock
) -> None:
    first = await creator.create()
    clock.advance(OPENING_KEPT + timedelta(seconds=1))
    await sweeper.sweep()
    second = await creator.create("Other", body=b"other")
    assert first.id != second.id


async def test_a_wrong_row_does_not_keep_the_sweeper_from_the_others(
    actions: OrgActions, team: Team, sweeper: Sweeper, clock: ManualClock
) -> None:
    creators = [Creator(actions) for _ in range(3)]
    for creator in creators:
        await create_killed(creator, team, "before open")
    first, *others = await left_over(actions, clock)

    def refuse_one(_moment: str) -> None:
        if not team.owners:
            team.interrupt = killed_at("never")
            raise MindWeaveError

    team.interrupt = refuse_one
    assert await sweeper.sweep() == 1
    assert await sweeper.sweep() == 0
    assert set(team.owners) == {first, *others}
