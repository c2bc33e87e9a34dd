"""ProjectService: messages to projects and their keys, and back."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from common.database import Change
from common.identity.call import current_call
from common.names import clean_name
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import changed_fields, moment, timestamp
from mindweave.auth.v1 import auth_pb2
from mindweave.project.v1.project_pb2 import (
    ApiKey,
    CreateApiKeyRequest,
    CreateApiKeyResponse,
    CreatedApiKey,
    CreateProjectRequest,
    CreateProjectResponse,
    DeleteApiKeyRequest,
    DeleteApiKeyResponse,
    DeleteProjectRequest,
    DeleteProjectResponse,
    GetProjectRequest,
    GetProjectResponse,
    ListApiKeysRequest,
    ListApiKeysResponse,
    ListProjectsRequest,
    ListProjectsResponse,
    ResolvedProject,
    ResolveProjectsRequest,
    ResolveProjectsResponse,
    UpdateProjectRequest,
    UpdateProjectResponse,
)
from mindweave.project.v1.project_pb2 import Project as ProjectMessage
from mindweave.project.v1.project_pb2_grpc import ProjectServiceServicer
from services.project.actions import KeyActions, ProjectActions
from services.project.domain import DEFAULT_SCOPES, Project


class ProjectServicer(ProjectServiceServicer):
    def __init__(self, projects: ProjectActions, keys: KeyActions) -> None:
        self._projects = projects
        self._keys = keys

    async def CreateProject(
        self, request: CreateProjectRequest, context: Any
    ) -> CreateProjectResponse:
        def answer(change: Change, project: Project) -> CreateProjectResponse:
            message = CreateProjectResponse(project=_message(project))
            return change.answer(message, etag=project.version)

        return await self._projects.create(
            UUID(request.org_id),
            clean_name(request.name),
            UUID(request.team_id) if request.HasField("team_id") else None,
            answer,
        )

    async def ListProjects(
        self, request: ListProjectsRequest, context: Any
    ) -> ListProjectsResponse:
        call = current_call()
        size = page_size(request.page_size)
        after = decode_key(request.page_token, UUID)
        found = await self._projects.list_projects(
            (UUID(request.org_id),) if request.HasField("org_id") else call.permitted_orgs,
            only=call.principal.project_id,
            after=after[0] if after else None,
            limit=size + 1,
        )
        return ListProjectsResponse(
            projects=[_message(project) for project in found[:size]],
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else None,
        )

    async def GetProject(self, request: GetProjectRequest, context: Any) -> GetProjectResponse:
        call = current_call()
        project = await self._projects.get(call, UUID(request.id))
        call.etag = project.version
        return GetProjectResponse(project=_message(project))

    async def UpdateProject(
        self, request: UpdateProjectRequest, context: Any
    ) -> UpdateProjectResponse:
        changed = changed_fields(
            request, request.update_mask, required={"name"}, nullable={"team_id"}
        )
        name = clean_name(request.name) if "name" in changed else None
        team_id = UUID(request.team_id) if request.HasField("team_id") else None

        def edit(project: Project, now: datetime) -> Project:
            return project.changed(
                project.name if name is None else name,
                team_id if "team_id" in changed else project.team_id,
                now,
            )

        def answer(change: Change, project: Project) -> UpdateProjectResponse:
            message = UpdateProjectResponse(project=_message(project))
            return change.answer(message, etag=project.version)

        return await self._projects.update(current_call(), UUID(request.id), edit, answer)

    async def DeleteProject(
        self, request: DeleteProjectRequest, context: Any
    ) -> DeleteProjectResponse:
        project_id = UUID(request.id)

        def answer(change: Change) -> DeleteProjectResponse:
            return change.answer(DeleteProjectResponse(), resource_id=project_id)

        return await self._projects.delete(current_call(), project_id, answer)

    async def CreateApiKey(
        self, request: CreateApiKeyRequest, context: Any
    ) -> CreateApiKeyResponse:
        def answer(change: Change, key: auth_pb2.CreatedApiKey) -> CreateApiKeyResponse:
            return change.answer(CreateApiKeyResponse(api_key=_created_key(key)))

        return await self._keys.create(
            current_call(),
            UUID(request.project_id),
            clean_name(request.name),
            tuple(request.scopes) or DEFAULT_SCOPES,
            moment(request.expires_at) if request.HasField("expires_at") else None,
            answer,
        )

    async def ListApiKeys(self, request: ListApiKeysRequest, context: Any) -> ListApiKeysResponse:
        page = await self._keys.list_keys(
            current_call(),
            UUID(request.project_id),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return ListApiKeysResponse(
            api_keys=[_key(key) for key in page.api_keys],
            next_page_token=page.next_page_token if page.HasField("next_page_token") else None,
        )

    async def DeleteApiKey(
        self, request: DeleteApiKeyRequest, context: Any
    ) -> DeleteApiKeyResponse:
        key_id = UUID(request.key_id)

        def answer(change: Change) -> DeleteApiKeyResponse:
            return change.answer(DeleteApiKeyResponse(), resource_id=key_id)

        return await self._keys.delete(current_call(), UUID(request.project_id), key_id, answer)

    async def ResolveProjects(
        self, request: ResolveProjectsRequest, context: Any
    ) -> ResolveProjectsResponse:
        found = await self._projects.resolve([UUID(project_id) for project_id in request.ids])
        return ResolveProjectsResponse(
            projects=[
                ResolvedProject(
                    id=str(project_id),
                    org_id=str(org_id),
                    team_id=str(team_id) if team_id else None,
                )
                for project_id, org_id, team_id in found
            ]
        )


def _message(project: Project) -> ProjectMessage:
    return ProjectMessage(
        id=str(project.id),
        org_id=str(project.org_id),
        team_id=str(project.team_id) if project.team_id else None,
        name=project.name,
        created_at=timestamp(project.created_at),
        updated_at=timestamp(project.updated_at),
    )


def _key(key: auth_pb2.ApiKey) -> ApiKey:
    return ApiKey(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        scopes=key.scopes,
        created_at=key.created_at,
        expires_at=key.expires_at if key.HasField("expires_at") else None,
        last_used_at=key.last_used_at if key.HasField("last_used_at") else None,
    )


def _created_key(key: auth_pb2.CreatedApiKey) -> CreatedApiKey:
    return CreatedApiKey(
        id=key.id,
        name=key.name,
        key=key.key,
        prefix=key.prefix,
        scopes=key.scopes,
        created_at=key.created_at,
        expires_at=key.expires_at if key.HasField("expires_at") else None,
    )
