"""The database of team and an auth that knows some users."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import protovalidate
import pytest

from common.clock import SystemClock
from common.database import Database
from common.errors import Unavailable
from mindweave.auth.v1.auth_pb2 import ListProfilesRequest, ListProfilesResponse, Profile
from services.team.actions import MemberActions


class Auth:
    """Knows the profiles of the users that were added to it."""

    def __init__(self) -> None:
        self.profiles: dict[UUID, Profile] = {}
        self.down = False

    def user(self, name: str = "Ada") -> UUID:
        user_id = uuid4()
        self.profiles[user_id] = Profile(
            user_id=str(user_id), email=f"{user_id}@example.org", display_name=name
        )
        return user_id

    async def list_profiles(
        self, request: ListProfilesRequest, context: object = None
    ) -> ListProfilesResponse:
        if self.down:
            raise Unavailable("auth is down")
        protovalidate.validate(request)
        known = (self.profiles.get(UUID(user_id)) for user_id in request.user_ids)
        return ListProfilesResponse(profiles=[profile for profile in known if profile])

    ListProfiles = list_profiles


@pytest.fixture
def auth() -> Auth:
    return Auth()


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]]) -> Database:
    made: Database = await service_database("team")
    return made


@pytest.fixture
def actions(database: Database, auth: Auth) -> MemberActions:
    return MemberActions(database, auth, SystemClock())
