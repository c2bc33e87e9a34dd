"""AuthService: messages to users, sessions and keys, and back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from common.database import Change
from common.errors import PermissionDenied
from common.identity.call import current_call
from common.identity.tokens import public_jwk
from common.names import clean_name
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import changed_fields, moment, timestamp
from mindweave.auth.v1 import auth_pb2 as pb
from mindweave.auth.v1.auth_pb2_grpc import AuthServiceServicer
from services.auth.actions.api_keys import ApiKeyActions, Project
from services.auth.actions.callers import Caller
from services.auth.actions.sessions import Device, SessionActions
from services.auth.actions.signing_keys import KeyRing
from services.auth.actions.tokens import TokenIssuer
from services.auth.actions.users import UserActions
from services.auth.domain.api_keys import ApiKey, NewKey
from services.auth.domain.sessions import Session, SessionEnded
from services.auth.domain.users import User

# How an access token is shown (RFC 6750).
_SCHEME = "Bearer"


class AuthServicer(AuthServiceServicer):
    def __init__(
        self,
        users: UserActions,
        sessions: SessionActions,
        keys: ApiKeyActions,
        tokens: TokenIssuer,
        ring: KeyRing,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._keys = keys
        self._tokens = tokens
        self._ring = ring

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        def answer(change: Change, user: User) -> pb.RegisterResponse:
            return change.answer(pb.RegisterResponse(user=_registered(user)), etag=user.version)

        return await self._users.register(
            request.email,
            request.password,
            clean_name(request.display_name, "/display_name"),
            ip=current_call().ip,
            answer=answer,
        )

    async def Login(self, request: pb.LoginRequest, context: Any) -> pb.LoginResponse:
        pair = await self._sessions.login(request.email, request.password, _device())
        return pb.LoginResponse(
            access_token=pair.access_token,
            token_type=_SCHEME,
            expires_in=pair.expires_in,
            refresh_token=pair.refresh_token,
        )

    async def Refresh(self, request: pb.RefreshRequest, context: Any) -> pb.RefreshResponse:
        pair = await self._sessions.refresh(request.refresh_token, _device())
        return pb.RefreshResponse(
            access_token=pair.access_token,
            token_type=_SCHEME,
            expires_in=pair.expires_in,
            refresh_token=pair.refresh_token,
        )

    async def Logout(self, request: pb.LogoutRequest, context: Any) -> pb.LogoutResponse:
        await self._sessions.logout(_caller())
        return pb.LogoutResponse()

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Any
    ) -> pb.ChangePasswordResponse:
        return await self._users.change_password(
            _caller(),
            request.current_password,
            request.password,
            lambda change: change.answer(pb.ChangePasswordResponse()),
        )

    async def GetMe(self, request: pb.GetMeRequest, context: Any) -> pb.GetMeResponse:
        user = await self._users.get(current_call().user_id)
        current_call().etag = user.version
        return pb.GetMeResponse(user=_user(user))

    async def UpdateMe(self, request: pb.UpdateMeRequest, context: Any) -> pb.UpdateMeResponse:
        changed = changed_fields(request, request.update_mask, required={"display_name"})

        def answer(change: Change, user: User) -> pb.UpdateMeResponse:
            return change.answer(pb.UpdateMeResponse(user=_user(user)), etag=user.version)

        return await self._users.rename(
            _caller(),
            clean_name(request.display_name, "/display_name") if changed else None,
            version=current_call().if_match,
            answer=answer,
        )

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        caller, size = _caller(), page_size(request.page_size)
        after = decode_key(request.page_token, UUID)
        sessions = await self._sessions.list_open(
            caller.user_id, after[0] if after else None, size + 1
        )
        return pb.ListSessionsResponse(
            sessions=[_session(session, caller) for session in sessions[:size]],
            next_page_token=_next(sessions, size),
        )

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Any
    ) -> pb.DeleteSessionResponse:
        return await self._sessions.end(
            _caller(),
            UUID(request.id),
            lambda change: change.answer(pb.DeleteSessionResponse()),
        )

    async def DeleteOtherSessions(
        self, request: pb.DeleteOtherSessionsRequest, context: Any
    ) -> pb.DeleteOtherSessionsResponse:
        return await self._sessions.end_others(
            _caller(), lambda change: change.answer(pb.DeleteOtherSessionsResponse())
        )

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Any
    ) -> pb.ListApiKeysResponse:
        size = page_size(request.page_size)
        after = decode_key(request.page_token, UUID)
        keys = await self._keys.list_of_user(
            current_call().user_id, after[0] if after else None, size + 1
        )
        return pb.ListApiKeysResponse(
            api_keys=[_api_key(key) for key in keys[:size]], next_page_token=_next(keys, size)
        )

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Any
    ) -> pb.CreateApiKeyResponse:
        def answer(change: Change, key: ApiKey, secret: str) -> pb.CreateApiKeyResponse:
            return change.answer(pb.CreateApiKeyResponse(api_key=_created(key, secret)))

        return await self._keys.create_for_user(_caller(), _asked(request), answer)

    async def DeleteApiKey(
        self, request: pb.DeleteApiKeyRequest, context: Any
    ) -> pb.DeleteApiKeyResponse:
        return await self._keys.revoke_of_user(
            _caller(),
            UUID(request.id),
            lambda change: change.answer(pb.DeleteApiKeyResponse()),
        )

    async def GetJwks(self, request: pb.GetJwksRequest, context: Any) -> pb.GetJwksResponse:
        keys = await self._ring.published()
        return pb.GetJwksResponse(
            keys=[pb.JsonWebKey(**public_jwk(key.kid, key.public)) for key in keys]
        )

    async def IssueServiceToken(
        self, request: pb.IssueServiceTokenRequest, context: Any
    ) -> pb.IssueServiceTokenResponse:
        issued = await self._tokens.for_service(request.service, request.secret)
        return pb.IssueServiceTokenResponse(
            token=issued.token, expires_at=timestamp(issued.expires_at)
        )

    async def CheckSession(
        self, request: pb.CheckSessionRequest, context: Any
    ) -> pb.CheckSessionResponse:
        await self._sessions.check(Caller(UUID(request.user_id), UUID(request.session_id)))
        return pb.CheckSessionResponse()

    async def ExchangeApiKey(
        self, request: pb.ExchangeApiKeyRequest, context: Any
    ) -> pb.ExchangeApiKeyResponse:
        issued = await self._keys.exchange(request.key)
        return pb.ExchangeApiKeyResponse(
            token=issued.token, expires_at=timestamp(issued.expires_at)
        )

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: Any
    ) -> pb.ListProfilesResponse:
        users = await self._users.list_by_id([UUID(user_id) for user_id in request.user_ids])
        return pb.ListProfilesResponse(profiles=[_profile(user) for user in users])

    async def CreateProjectApiKey(
        self, request: pb.CreateProjectApiKeyRequest, context: Any
    ) -> pb.CreateProjectApiKeyResponse:
        _only_project()

        def answer(change: Change, key: ApiKey, secret: str) -> pb.CreateProjectApiKeyResponse:
            return change.answer(pb.CreateProjectApiKeyResponse(api_key=_created(key, secret)))

        return await self._keys.create_for_project(
            _project(request), _asked(request), current_call().principal.user_id, answer
        )

    async def ListProjectApiKeys(
        self, request: pb.ListProjectApiKeysRequest, context: Any
    ) -> pb.ListProjectApiKeysResponse:
        _only_project()
        size = page_size(request.page_size)
        after = decode_key(request.page_token, UUID)
        keys = await self._keys.list_of_project(
            _project(request), after[0] if after else None, size + 1
        )
        return pb.ListProjectApiKeysResponse(
            api_keys=[_api_key(key) for key in keys[:size]], next_page_token=_next(keys, size)
        )

    async def DeleteProjectApiKey(
        self, request: pb.DeleteProjectApiKeyRequest, context: Any
    ) -> pb.DeleteProjectApiKeyResponse:
        _only_project()
        return await self._keys.revoke_of_project(
            _project(request),
            UUID(request.id),
            lambda change: change.answer(pb.DeleteProjectApiKeyResponse()),
        )


def _only_project() -> None:
    if current_call().caller != "project":
        raise PermissionDenied("Only the service project keeps the keys of projects.")


def _caller() -> Caller:
    call = current_call()
    if call.principal.session_id is None:
        raise SessionEnded
    return Caller(call.user_id, call.principal.session_id)


def _device() -> Device:
    call = current_call()
    return Device(call.ip, call.user_agent)


def _project(
    request: pb.CreateProjectApiKeyRequest
    | pb.ListProjectApiKeysRequest
    | pb.DeleteProjectApiKeyRequest,
) -> Project:
    return Project(UUID(request.org_id), UUID(request.project_id))


def _asked(request: pb.CreateApiKeyRequest | pb.CreateProjectApiKeyRequest) -> NewKey:
    return NewKey(
        clean_name(request.name),
        request.scopes,
        moment(request.expires_at) if request.HasField("expires_at") else None,
    )


def _next(found: list[Session] | list[ApiKey], size: int) -> str | None:
    return encode_token(str(found[size - 1].id)) if len(found) > size else None


def _user(user: User) -> pb.User:
    return pb.User(
        id=str(user.id),
        email=user.email,
        display_name=user.display_name,
        email_verified=user.email_verified,
        mfa_enabled=False,
        created_at=timestamp(user.created_at),
        updated_at=timestamp(user.updated_at),
    )


def _registered(user: User) -> pb.RegisteredUser:
    return pb.RegisteredUser(
        id=str(user.id),
        email=user.email,
        display_name=user.display_name,
        email_verified=user.email_verified,
        created_at=timestamp(user.created_at),
    )


def _profile(user: User) -> pb.Profile:
    return pb.Profile(
        user_id=str(user.id),
        email=user.email,
        display_name=user.display_name,
        email_verified=user.email_verified,
    )


def _session(session: Session, caller: Caller) -> pb.Session:
    return pb.Session(
        id=str(session.id),
        created_at=timestamp(session.created_at),
        last_seen_at=timestamp(session.last_seen_at),
        ip=session.ip,
        user_agent=session.user_agent,
        current=session.id == caller.session_id,
    )


def _api_key(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        id=str(key.id),
        name=key.name,
        prefix=key.prefix,
        scopes=key.scopes,
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at) if key.expires_at else None,
        last_used_at=timestamp(key.last_used_at) if key.last_used_at else None,
    )


def _created(key: ApiKey, secret: str) -> pb.CreatedApiKey:
    return pb.CreatedApiKey(
        id=str(key.id),
        name=key.name,
        prefix=key.prefix,
        scopes=key.scopes,
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at) if key.expires_at else None,
        last_used_at=None,
        key=secret,
    )
