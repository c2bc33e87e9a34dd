"""SessionService: questions to sessions, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from common.clock import Clock
from common.errors import NotFound
from common.exact import exact
from common.identity.call import current_call
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import given_moment, text, timestamp
from mindweave.usage_tracker.v1 import sessions_pb2 as pb
from mindweave.usage_tracker.v1.sessions_pb2_grpc import SessionServiceServicer
from services.usage_tracker.actions.sessions import Asked, Sessions
from services.usage_tracker.domain import judging
from services.usage_tracker.domain.islands import Part, Session, of_models, of_tools
from services.usage_tracker.domain.pricing import usd
from services.usage_tracker.domain.ranges import asked_range, place_us

_TOOL, _MARK = "mcp_tool", "session"
_COUNTS = (
    *("errors", "unpriced_events", "input_tokens", "output_tokens"),
    *("cache_read_tokens", "cache_write_tokens"),
)


class SessionServicer(SessionServiceServicer):
    """Answers about sessions."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Any
    ) -> pb.ListSessionsResponse:
        call = current_call()
        org_id = call.organization(request.org_id if request.HasField("org_id") else None)
        start, end = asked_range(
            given_moment(request, "start"), given_moment(request, "end"), self._clock.now()
        )
        asked = Asked(
            org_id,
            judging.microseconds(start),
            judging.microseconds(end),
            call.project(request.project_id if request.HasField("project_id") else None),
            UUID(request.user_id) if request.HasField("user_id") else None,
        )
        size = page_size(request.page_size)
        after = decode_key(request.page_token, place_us, UUID)
        page = await self._sessions.page(asked, after and (after[0], after[1]), size)
        return pb.ListSessionsResponse(
            sessions=[_session(org_id, one, "/start") for one in page.sessions],
            next_page_token=page.next and encode_token(*map(str, page.next)),
        )

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Any
    ) -> pb.GetSessionResponse:
        call = current_call()
        for org_id in call.permitted_orgs:
            found = await self._sessions.session(org_id, UUID(request.id))
            if found is not None:
                # A project's key is shown what belongs to no project no more than another one's.
                if call.project(None) not in (None, found.project_id):
                    raise NotFound
                call.authorize(org_id, found.project_id)
                return pb.GetSessionResponse(session=_session(org_id, found, "/id"))
        raise NotFound


def _session(org_id: UUID, found: Session, asked: str) -> pb.Session:
    """A message.

    Raises:
        SumTooLarge: a sum is beyond 2^53; it points at what was ``asked``.
    """
    parts = found.used.items()
    return pb.Session(
        id=str(found.id),
        org_id=str(org_id),
        session_id=found.session_id,
        project_id=text(found.project_id),
        user_id=text(found.user_id),
        started_at=timestamp(judging.moment(found.started_us)),
        ended_at=timestamp(judging.moment(found.ended_us)),
        duration_ms=(found.ended_us - found.started_us) / 1000,
        events=found.whole.events,
        calls=_events(part for used, part in parts if used.event_type != _MARK),
        tool_calls=_events(part for used, part in parts if used.event_type == _TOOL),
        cost_usd=usd(found.whole.cost_nano),
        models=[
            pb.SessionModel(
                model=model, calls=part.events, cost_usd=usd(part.cost_nano), **_counts(part, asked)
            )
            for model, part in of_models(found)
        ],
        tools=[
            pb.SessionTool(
                mcp_server=server or None,
                tool=tool,
                calls=part.events,
                errors=part.errors,
                cost_usd=usd(part.cost_nano),
            )
            for (server, tool), part in of_tools(found)
        ],
        **_counts(found.whole, asked),
    )


def _events(parts: Iterable[Part]) -> int:
    return sum(part.events for part in parts)


def _counts(part: Part, asked: str) -> dict[str, int]:
    return {name: exact(name, getattr(part, name), asked=asked) for name in _COUNTS}
