"""Use cases of API keys: users' own, and projects' for the service project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Database, Scope
from common.identity.api_keys import is_well_formed
from mindweave.auth.v1.events_pb2 import ApiKeyCreated, ApiKeyRevoked
from services.auth.actions.callers import Caller, lock_user
from services.auth.actions.tokens import Issued, TokenIssuer
from services.auth.domain.api_keys import (
    USED_EVERY,
    ApiKey,
    ApiKeyNotFound,
    NewKey,
    Owner,
    new_key,
    secret_digest,
)
from services.auth.store.api_keys import ApiKeyStore

T = TypeVar("T")
# Makes the answer from the key and its secret, which nothing else ever holds.
AnswerCreated = Callable[[Change, ApiKey, str], T]


@dataclass(frozen=True, slots=True)
class Project:
    """The project whose keys are at hand."""

    org_id: UUID
    id: UUID


class ApiKeyActions:
    """What can be done with API keys."""

    def __init__(self, database: Database, tokens: TokenIssuer, clock: Clock) -> None:
        self._database = database
        self._tokens = tokens
        self._clock = clock

    async def create_for_user(self, caller: Caller, asked: NewKey, answer: AnswerCreated[T]) -> T:
        """Make a key of the caller.

        Raises:
            Invalid: a scope is unknown, or the key would have expired.
        """
        now = self._clock.now()
        key, secret = new_key(Owner(user_id=caller.user_id), asked, caller.user_id, now)
        async with self._database.change() as change:
            await lock_user(change.connection, caller, now)
            return await _keep(change, key, secret, answer)

    async def create_for_project(
        self, project: Project, asked: NewKey, created_by: UUID | None, answer: AnswerCreated[T]
    ) -> T:
        """Make a key of a project, which the service project has checked.

        Raises:
            Invalid: a scope is none of a project's key, or the key would have expired.
        """
        owner = Owner(org_id=project.org_id, project_id=project.id)
        key, secret = new_key(owner, asked, created_by, self._clock.now())
        async with self._database.change() as change:
            return await _keep(change, key, secret, answer)

    async def list_of_user(self, user_id: UUID, before: UUID | None, limit: int) -> list[ApiKey]:
        """The user's keys, newest first, from the one after ``before`` on."""
        async with self._database.read(Scope()) as connection:
            return await ApiKeyStore(connection).list_of_user(user_id, before, limit)

    async def list_of_project(
        self, project: Project, before: UUID | None, limit: int
    ) -> list[ApiKey]:
        """The project's keys, newest first, from the one after ``before`` on."""
        async with self._database.read(Scope()) as connection:
            return await ApiKeyStore(connection).list_of_project(
                project.org_id, project.id, before, limit
            )

    async def revoke_of_user(
        self, caller: Caller, key_id: UUID, answer: Callable[[Change], T]
    ) -> T:
        """Revoke a key of the caller.

        Raises:
            ApiKeyNotFound: the caller has no such key.
        """
        async with self._database.change() as change:
            await lock_user(change.connection, caller, self._clock.now())
            if not await ApiKeyStore(change.connection).delete_of_user(caller.user_id, key_id):
                raise ApiKeyNotFound
            change.publish(ApiKeyRevoked(api_key_id=str(key_id), user_id=str(caller.user_id)))
            return answer(change)

    async def revoke_of_project(
        self, project: Project, key_id: UUID, answer: Callable[[Change], T]
    ) -> T:
        """Revoke a key of a project.

        Raises:
            ApiKeyNotFound: the project has no such key.
        """
        async with self._database.change() as change:
            store = ApiKeyStore(change.connection)
            if not await store.delete_of_project(project.org_id, project.id, key_id):
                raise ApiKeyNotFound
            _publish_revoked(change, key_id, project)
            return answer(change)

    async def revoke_all(
        self, change: Change, org_id: UUID, project_id: UUID | None = None
    ) -> None:
        """Revoke every key of an organization's projects, or of one, in the change at hand."""
        for key in await ApiKeyStore(change.connection).delete_all(org_id, project_id):
            if key.project_id is not None:
                _publish_revoked(change, key.id, Project(org_id, key.project_id))

    async def exchange(self, secret: str) -> Issued:
        """An internal token for a key.

        Raises:
            ApiKeyNotFound: the key is mistyped, unknown, revoked or expired.
        """
        if not is_well_formed(secret):
            raise ApiKeyNotFound
        now = self._clock.now()
        async with self._database.read(Scope()) as connection:
            key = await ApiKeyStore(connection).find(secret_digest(secret))
        until = key.valid_until(now) if key else None
        if key is None or until is None:
            raise ApiKeyNotFound
        if key.last_used_at is None or now - key.last_used_at >= USED_EVERY:
            async with self._database.change(Scope(), call=None) as change:
                await ApiKeyStore(change.connection).touch(key.id, now, now - USED_EVERY)
        return await self._tokens.for_key(key, until)


async def _keep(change: Change, key: ApiKey, secret: str, answer: AnswerCreated[T]) -> T:
    await ApiKeyStore(change.connection).insert(key, secret_digest(secret))
    change.publish(
        ApiKeyCreated(
            api_key_id=str(key.id),
            user_id=_text(key.user_id),
            org_id=_text(key.org_id),
            project_id=_text(key.project_id),
        ),
        org_id=key.org_id,
    )
    return answer(change, key, secret)


def _publish_revoked(change: Change, key_id: UUID, project: Project) -> None:
    change.publish(
        ApiKeyRevoked(
            api_key_id=str(key_id), org_id=str(project.org_id), project_id=str(project.id)
        ),
        org_id=project.org_id,
    )


def _text(id_: UUID | None) -> str | None:
    return str(id_) if id_ else None
