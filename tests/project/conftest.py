"""The database of project and an auth that keeps keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import ManualClock
from common.database import Database
from common.errors import NotFound, Unavailable
from common.identity.call import Principal
from common.rpc.client import Answer
from common.testing import Served, a_user, serve
from mindweave.auth.v1.auth_pb2 import (
    ApiKey,
    CreatedApiKey,
    CreateProjectApiKeyRequest,
    CreateProjectApiKeyResponse,
    DeleteProjectApiKeyRequest,
    DeleteProjectApiKeyResponse,
    ListProjectApiKeysRequest,
    ListProjectApiKeysResponse,
)
from mindweave.project.v1 import project_pb2 as pb
from services.project.actions import KeyActions, ProjectActions
from services.project.rpc import ProjectServicer

START = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Auth:
    """Keeps keys of projects; ``on_create`` runs once a key has been made."""

    def __init__(self) -> None:
        self.keys: dict[str, CreateProjectApiKeyRequest] = {}
        self.down = False
        self.on_create: Callable[[], Awaitable[None]] | None = None

    async def create(
        self, request: CreateProjectApiKeyRequest, context: object = None
    ) -> CreateProjectApiKeyResponse:
        self._enter()
        key_id = str(uuid4())
        self.keys[key_id] = request
        if self.on_create is not None:
            await self.on_create()
        made = CreatedApiKey(
            id=key_id, name=request.name, prefix="mwp_abc", scopes=request.scopes, key="mwp_secret"
        )
        made.created_at.FromDatetime(START)
        if request.HasField("expires_at"):
            made.expires_at.CopyFrom(request.expires_at)
        return CreateProjectApiKeyResponse(api_key=made)

    async def list_keys(
        self, request: ListProjectApiKeysRequest, context: object = None
    ) -> ListProjectApiKeysResponse:
        self._enter()
        keys = [
            ApiKey(id=key_id, name=kept.name, prefix="mwp_abc", scopes=kept.scopes)
            for key_id, kept in self.keys.items()
            if (kept.org_id, kept.project_id) == (request.org_id, request.project_id)
        ]
        size = request.page_size or 50
        return ListProjectApiKeysResponse(
            api_keys=keys[:size], next_page_token="next" if len(keys) > size else None
        )

    async def delete(
        self, request: DeleteProjectApiKeyRequest, context: object = None
    ) -> DeleteProjectApiKeyResponse:
        self._enter()
        kept = self.keys.get(request.id)
        if kept is None or kept.project_id != request.project_id:
            raise NotFound
        del self.keys[request.id]
        return DeleteProjectApiKeyResponse()

    CreateProjectApiKey, ListProjectApiKeys, DeleteProjectApiKey = create, list_keys, delete

    def _enter(self) -> None:
        if self.down:
            raise Unavailable("auth is down")


@pytest.fixture
def auth() -> Auth:
    return Auth()


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(scope="module")
async def database(service_database: Callable[..., Awaitable[Any]], clock: ManualClock) -> Database:
    made: Database = await service_database("project", clock=clock)
    return made


@pytest.fixture
def org_id() -> UUID:
    return uuid4()


SERVICE = "mindweave.project.v1.ProjectService"


@pytest.fixture
def projects(database: Database, clock: ManualClock) -> ProjectActions:
    return ProjectActions(database, clock)


@pytest.fixture
async def served(database: Database, auth: Auth, projects: ProjectActions) -> AsyncIterator[Served]:
    servicer = ProjectServicer(projects, KeyActions(database, auth, projects))
    async with serve([(SERVICE, servicer)], database=database) as running:
        yield running


@pytest.fixture
def owner(served: Served, org_id: UUID) -> Principal:
    user = a_user()
    served.access.grant(user, org_id, "owner")
    return user


async def call(served: Served, method: str, request: Any, who: Principal, **more: Any) -> Answer:
    return await served.invoke(f"/{SERVICE}/{method}", request, who, **more)


async def created(
    served: Served, who: Principal, org_id: UUID, name: str = "Search", **more: Any
) -> pb.Project:
    request = pb.CreateProjectRequest(org_id=str(org_id), name=name)
    made: pb.Project = (await call(served, "CreateProject", request, who, **more)).message.project
    return made


async def with_key(served: Served, owner: Principal, org_id: UUID) -> tuple[str, str]:
    project = await created(served, owner, org_id)
    request = pb.CreateApiKeyRequest(project_id=project.id, name="CI")
    key = (await call(served, "CreateApiKey", request, owner)).message.api_key
    return project.id, key.id


def requests(org_id: UUID, project_id: str, key_id: str) -> dict[str, Any]:
    return {
        "CreateProject": pb.CreateProjectRequest(org_id=str(org_id), name="Search"),
        "ListProjects": pb.ListProjectsRequest(org_id=str(org_id)),
        "GetProject": pb.GetProjectRequest(id=project_id),
        "UpdateProject": pb.UpdateProjectRequest(id=project_id, name="Mine"),
        "DeleteProject": pb.DeleteProjectRequest(id=project_id),
        "CreateApiKey": pb.CreateApiKeyRequest(project_id=project_id, name="CI"),
        "ListApiKeys": pb.ListApiKeysRequest(project_id=project_id),
        "DeleteApiKey": pb.DeleteApiKeyRequest(project_id=project_id, key_id=key_id),
    }
