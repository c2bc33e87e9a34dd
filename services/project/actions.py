"""Use cases of projects and of their API keys, which auth keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from common.clock import Clock
from common.database import Change, Database, Scope
from common.identity.call import Call, permitted
from common.identity.permissions import PROJECT_SCOPES
from common.ids import uuid7
from common.rpc.fields import timestamp
from mindweave.auth.v1.auth_pb2 import (
    CreatedApiKey,
    CreateProjectApiKeyRequest,
    DeleteProjectApiKeyRequest,
    ListProjectApiKeysRequest,
    ListProjectApiKeysResponse,
)
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceStub
from mindweave.project.v1.events_pb2 import ProjectCreated, ProjectDeleted, ProjectUpdated
from services.project.domain import OrgClosed, Project, ProjectNotFound, check_scopes
from services.project.store import ProjectStore

T = TypeVar("T")


class ProjectActions:
    """What can be done with projects.

    ``answer`` makes the result inside the transaction of a change, so that what it remembers
    there commits together with the effect.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self,
        org_id: UUID,
        name: str,
        team_id: UUID | None,
        answer: Callable[[Change, Project], T],
    ) -> T:
        """Create a project.

        Raises:
            OrgClosed: the organization is deleted, which not every service knows yet.
        """
        now = self._clock.now()
        project = Project(uuid7(), org_id, team_id, name, 1, now, now)
        async with self._database.change(Scope((org_id,))) as change:
            store = ProjectStore(change.connection)
            if not await store.hold_org(org_id):
                raise OrgClosed
            await store.insert(project)
            change.publish(
                ProjectCreated(
                    project_id=str(project.id),
                    org_id=str(org_id),
                    team_id=str(team_id) if team_id else None,
                ),
                org_id=org_id,
            )
            return answer(change, project)

    async def list_projects(
        self,
        org_ids: Sequence[UUID],
        *,
        only: UUID | None,
        after: UUID | None,
        limit: int,
    ) -> list[Project]:
        """Projects of these organizations, or ``only`` the one named."""
        async with self._database.read(Scope(org_ids)) as connection:
            return await ProjectStore(connection).list_projects(
                org_ids, only=only, after=after, limit=limit
            )

    async def get(self, call: Call, project_id: UUID) -> Project:
        """A project on which the caller has the call's permission.

        Raises:
            NotFound: there is none that the caller may know of.
            PermissionDenied: as said.
        """
        async with self._database.read(Scope(call.orgs)) as connection:
            project = await ProjectStore(connection).get(project_id, call.orgs)
        return _authorized(call, project)

    async def update(
        self,
        call: Call,
        project_id: UUID,
        edit: Callable[[Project, datetime], Project],
        answer: Callable[[Change, Project], T],
    ) -> T:
        """Change a project by ``edit``, which takes it and the time.

        Raises:
            PreconditionFailed: the call's If-Match is not the current version.
        """
        async with self._database.change(Scope(call.orgs)) as change:
            store = ProjectStore(change.connection)
            project = _authorized(call, await store.lock(project_id, call.orgs))
            project.expect(call.if_match)
            edited = edit(project, self._clock.now())
            if edited != project:
                await store.save(edited)
                change.publish(
                    ProjectUpdated(
                        project_id=str(project.id),
                        org_id=str(project.org_id),
                        fields=project.differences(edited),
                    ),
                    org_id=project.org_id,
                )
            return answer(change, edited)

    async def delete(self, call: Call, project_id: UUID, answer: Callable[[Change], T]) -> T:
        """Delete a project; auth ends its keys when it hears of it.

        Raises:
            PreconditionFailed: the call's If-Match is not the current version.
        """
        async with self._database.change(Scope(call.orgs)) as change:
            store = ProjectStore(change.connection)
            project = _authorized(call, await store.lock(project_id, call.orgs))
            project.expect(call.if_match)
            await store.delete(project)
            _publish_deleted(change, project.id, project.org_id)
            return answer(change)

    async def resolve(self, ids: Sequence[UUID]) -> list[tuple[UUID, UUID, UUID | None]]:
        """Id, organization and team of the projects among ``ids`` that there are."""
        async with self._database.session() as connection:
            return await ProjectStore(connection).resolve(ids)

    async def remove_org(self, change: Change, org_id: UUID) -> None:
        """Remove the projects of a deleted organization, for good, in the change at hand."""
        store = ProjectStore(change.connection)
        await store.mark_org_deleted(org_id, self._clock.now())
        for project_id in await store.delete_all(org_id):
            _publish_deleted(change, project_id, org_id)


class KeyActions:
    """What can be done with the API keys of projects; ``Unavailable`` while auth is down."""

    def __init__(self, database: Database, auth: AuthServiceStub, projects: ProjectActions) -> None:
        self._database = database
        self._auth = auth
        self._projects = projects

    async def create(
        self,
        call: Call,
        project_id: UUID,
        name: str,
        scopes: Sequence[str],
        expires_at: datetime | None,
        answer: Callable[[Change, CreatedApiKey], T],
    ) -> T:
        """Make a key of a project.

        The key carries the call's idempotency key to auth, so a repeat after a crash between
        the two services gets the same secret. Where the project went meanwhile, so does the key.

        Raises:
            Invalid: a scope is none that a project's key may have.
            ScopeBeyondCaller: the caller lacks a scope.
        """
        project = await self._projects.get(call, project_id)
        role = call.roles[project.org_id]
        check_scopes(
            scopes,
            PROJECT_SCOPES,
            lambda scope: (
                permitted(call.principal, role, scope) or permitted(call.principal, None, scope)
            ),
        )
        made = await self._auth.CreateProjectApiKey(
            CreateProjectApiKeyRequest(
                org_id=str(project.org_id),
                project_id=str(project.id),
                name=name,
                scopes=scopes,
                expires_at=timestamp(expires_at) if expires_at else None,
            )
        )
        try:
            async with self._database.change(Scope((project.org_id,))) as change:
                if not await ProjectStore(change.connection).hold(project.id, project.org_id):
                    raise ProjectNotFound
                return answer(change, made.api_key)
        except ProjectNotFound:
            await self._revoke(project, UUID(made.api_key.id))
            raise

    async def list_keys(
        self, call: Call, project_id: UUID, *, page_size: int, page_token: str
    ) -> ListProjectApiKeysResponse:
        """A page of the project's keys, as auth makes it."""
        project = await self._projects.get(call, project_id)
        return await self._auth.ListProjectApiKeys(
            ListProjectApiKeysRequest(
                org_id=str(project.org_id),
                project_id=str(project.id),
                page_size=page_size,
                page_token=page_token,
            )
        )

    async def delete(
        self, call: Call, project_id: UUID, key_id: UUID, answer: Callable[[Change], T]
    ) -> T:
        """Revoke a key of a project.

        Raises:
            NotFound: the project has no such key.
        """
        project = await self._projects.get(call, project_id)
        await self._revoke(project, key_id)
        async with self._database.change(Scope((project.org_id,))) as change:
            return answer(change)

    async def _revoke(self, project: Project, key_id: UUID) -> None:
        await self._auth.DeleteProjectApiKey(
            DeleteProjectApiKeyRequest(
                org_id=str(project.org_id), project_id=str(project.id), id=str(key_id)
            )
        )


def _authorized(call: Call, project: Project | None) -> Project:
    if project is None:
        raise ProjectNotFound
    call.authorize(project.org_id, project.id)
    return project


def _publish_deleted(change: Change, project_id: UUID, org_id: UUID) -> None:
    change.publish(ProjectDeleted(project_id=str(project_id), org_id=str(org_id)), org_id=org_id)
