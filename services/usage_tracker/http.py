"""REST of usage_tracker: raw ingest of events, health and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Set
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from starlette.requests import Request
from starlette.responses import Response

from common.errors import (
    FieldError,
    Invalid,
    MindWeaveError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from common.events.bus import Bus
from common.http.app import RestApp, answer
from common.http.body import read_body
from common.http.problems import problem
from common.identity.call import Principal, current_call, permitted
from common.ids import uuid7
from common.telemetry import Telemetry
from common.telemetry.metrics import CONTENT_TYPE
from services.usage_tracker.actions.ingest import Ingest, Taken
from services.usage_tracker.domain.events import MAX_BYTES, read_one

SERVICE = "/mindweave.usage_tracker.v1.UsageTrackerService"
Repeats = Callable[[], Awaitable[Mapping[str, int]]]

_UNKNOWN_TENANT = frozenset({"foreign_org", "foreign_project"})
_DENIED = "permission_denied"


class UsageRoutes:
    """The service's own handlers.

    Args:
        ingest: judges and sends events.
        bus: whose health is the route's.
        telemetry: the service's; its metrics are this process's.
        repeats: tells what the ledger counted, in whatever process, since the beginning.
    """

    def __init__(self, ingest: Ingest, bus: Bus, telemetry: Telemetry, repeats: Repeats) -> None:
        self._ingest = ingest
        self._bus = bus
        self._telemetry = telemetry
        self._repeats = repeats
        self._repeated = telemetry.gauge(
            "mindweave_ledger_repeats",
            "Events that came again, since the beginning; a conflict has another body.",
            ("kind",),
        )

    def app(self) -> RestApp:
        return RestApp(
            {
                f"{SERVICE}/SendEvents": self.send_events,
                f"{SERVICE}/Track": self.track,
                f"{SERVICE}/GetHealth": self.health,
                f"{SERVICE}/GetMetrics": self.metrics,
            }
        )

    async def send_events(self, request: Request) -> Response:
        call = current_call()
        with self._ingest.holding(call.principal) as room:
            body = await read_body(request, limit=MAX_BYTES, room=room)
            taken = await self._ingest.send(call.principal, body)
        listed = [
            {"index": i, "code": r.code, "field": r.field, "message": r.message}
            for i, r in taken.rejected
        ]
        if taken.accepted_at is None:
            return _refusal(request, taken, lambda i: f"/events/{i}", {"rejected": listed})
        return answer(
            {
                "accepted": taken.accepted,
                "accepted_at": _rfc3339(taken.accepted_at),
                "rejected": listed,
            },
            202,
        )

    async def track(self, request: Request) -> Response:
        call = current_call()
        with self._ingest.holding(call.principal) as room:
            event = read_one(await read_body(request, limit=MAX_BYTES, room=room))
            name_event = _event_name(call.principal, call.idempotency_key)
            taken = await self._ingest.send_found(call.principal, [event], name_event)
        if taken.accepted_at is None:
            return _refusal(request, taken, lambda _: "")
        event_id = str(UUID(bytes=taken.first_id))
        return answer({"event_id": event_id, "accepted_at": _rfc3339(taken.accepted_at)}, 202)

    async def health(self, _: Request) -> Response:
        try:
            await self._bus.ping()
        except Unavailable:
            return answer({"status": "unavailable"}, 503, {"Retry-After": "1"})
        return answer({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        call = current_call()
        if not permitted(call.principal, None, call.permission):
            raise PermissionDenied(f"This needs the permission {call.permission}.")
        for kind, count in (await self._repeats()).items():
            self._repeated.of(kind=kind).set(count)
        return Response(self._telemetry.metrics.exposition(), media_type=CONTENT_TYPE)


def _event_name(principal: Principal, key: str | None) -> Callable[[UUID], UUID]:
    """The id of an event without one: made from the idempotency key and who used it."""
    return lambda org: uuid5(org, f"{principal.subject}\n{key}") if key else uuid7()


def _refusal(
    request: Request,
    taken: Taken,
    pointer: Callable[[int], str],
    extra: Mapping[str, Any] | None = None,
) -> Response:
    call = current_call()
    codes = {rejection.code for _, rejection in taken.rejected}
    error = _error(call.principal, codes)(
        "No event was accepted.",
        code=codes.pop() if len(codes) == 1 else None,
        fields=[
            FieldError(f"{pointer(i)}/{r.field}" if r.field else pointer(i), r.code, r.message)
            for i, r in taken.rejected
        ],
    )
    return problem(
        error, instance=request.url.path, correlation_id=call.correlation_id, extra=extra
    )


def _error(principal: Principal, codes: Set[str]) -> type[MindWeaveError]:
    """What it means that no event was taken.

    A person who may not write there is told so, as anywhere else; a project's key, which can write
    to its project alone, errs in what it sends.
    """
    if codes <= _UNKNOWN_TENANT and principal.kind != "project_key":
        return NotFound
    if codes <= {*_UNKNOWN_TENANT, _DENIED} and _DENIED in codes:
        return PermissionDenied
    return Invalid


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
