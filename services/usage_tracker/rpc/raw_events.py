"""RawEventService: events as they are kept, as messages."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from common.clock import Clock
from common.identity.call import current_call
from common.paging import decode_key, encode_token, page_size
from common.rpc.fields import given_moment, text, timestamp
from common.threads import off_loop
from mindweave.usage_tracker.v1 import raw_events_pb2 as pb
from mindweave.usage_tracker.v1.raw_events_pb2_grpc import RawEventServiceServicer
from services.usage_tracker.actions.raw_events import AskedEvents, Page, RawEvents
from services.usage_tracker.domain import judging
from services.usage_tracker.domain.pricing import usd
from services.usage_tracker.domain.ranges import asked_range, place_us
from services.usage_tracker.domain.raw_events import MONEY, Adjustment, RawEvent
from services.usage_tracker.domain.windows import TOKENS

_IDS = ("event_id", "org_id", "project_id", "team_id", "user_id", "api_key_id")
_SAME = (
    *("event_type", "user_ref", "model", "provider", "service_tier", "mcp_server", "tool"),
    *("session_id", "request_id", "decision_id", "status", "error_type", *TOKENS),
)
_TEXTS = ("event_type", "model", "session_id")
# More events take milliseconds.
_MANY = 50


class RawEventServicer(RawEventServiceServicer):
    """Shows events."""

    def __init__(self, events: RawEvents, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    async def ListEvents(
        self, request: pb.ListEventsRequest, context: Any
    ) -> pb.ListEventsResponse:
        call = current_call()
        given = {field.name: value for field, value in request.ListFields()}
        org_id = call.organization(given.get("org_id"))
        start, end = asked_range(
            given_moment(request, "start"), given_moment(request, "end"), self._clock.now()
        )
        equal: dict[str, object] = {name: given.get(name) for name in _TEXTS}
        for name in ("user_id", "event_id"):
            equal[name] = UUID(given[name]) if name in given else None
        equal["project_id"] = call.project(given.get("project_id"))
        size = page_size(request.page_size)
        after = decode_key(request.page_token, _moment, UUID)
        page = await self._events.page(
            AskedEvents(org_id, start, end, equal), after and (after[0], after[1]), size
        )
        return await off_loop(len(page.events) > _MANY, _answer, page)


def _answer(page: Page) -> pb.ListEventsResponse:
    last = page.next
    return pb.ListEventsResponse(
        events=[_event(one) for one in page.events],
        next_page_token=last and encode_token(str(judging.microseconds(last[0])), str(last[1])),
    )


def _moment(text: str) -> datetime:
    return judging.moment(place_us(text))


def _event(found: RawEvent) -> pb.RawEvent:
    row = found.row
    shown: dict[str, Any] = {name: row[name] for name in _SAME}
    shown |= {name: text(row[name]) for name in _IDS}
    shown |= {_in_usd(name): _usd(found.nano(name)) for name in MONEY}
    return pb.RawEvent(
        timestamp=timestamp(row["at"]),
        received_at=timestamp(row["received_at"]),
        latency_ms=None if row["latency_us"] is None else row["latency_us"] / 1000,
        metadata_json=row["metadata"],
        client_cost_usd=_usd(row["client_cost_nano"]),
        unpriced=found.unpriced,
        price_version=found.version,
        counted_cost_usd=_usd(row["cost_nano"]),
        counted_price_version=row["price_version"],
        adjustments=[_adjustment(one) for one in found.adjustments],
        **shown,
    )


def _adjustment(one: Adjustment) -> pb.EventAdjustment:
    return pb.EventAdjustment(
        old_price_version=one.old_version,
        new_price_version=one.new_version,
        **{_in_usd(name): usd(nano) for name, nano in one.nanos.items()},
    )


def _in_usd(name: str) -> str:
    return name.replace("_nano", "_usd")


def _usd(nano: int | None) -> str | None:
    return None if nano is None else usd(nano)
