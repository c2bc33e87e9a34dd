"""Proto to domain and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from common.exact import exact
from common.identity.call import current_call
from common.rpc.fields import moment, timestamp
from mindweave.analytics.v1 import analytics_pb2 as pb
from mindweave.analytics.v1 import analytics_pb2_grpc as pb_grpc
from services.analytics.actions import Asked, Dashboard, Reports
from services.analytics.domain.measures import DIMENSIONS, quantile_ms, usd

if TYPE_CHECKING:
    from services.analytics.store import Row

M = TypeVar("M", bound=Message)
_COUNTS = (
    "events",
    "errors",
    "unpriced_events",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
)


class AnalyticsServicer(pb_grpc.AnalyticsServiceServicer):
    """Answers from the roll-ups."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        asked = _asked(request)
        page, token = await self._reports.windows(current_call(), asked)
        return pb.GetUsageResponse(
            granularity=asked.granularity,
            rows=[_fill(pb.UsageRow(), _labels(row, page.start), _usage(row)) for row in page.rows],
            totals=_fill(pb.UsageTotals(), _usage(page.totals)),
            fresh_until=_timestamp(page.fresh_until),
            next_page_token=token,
        )

    async def GetCosts(self, request: pb.GetCostsRequest, context: Any) -> pb.GetCostsResponse:
        asked = _asked(request)
        page, token = await self._reports.windows(current_call(), asked)
        return pb.GetCostsResponse(
            granularity=asked.granularity,
            rows=[_fill(pb.CostsRow(), _labels(row, page.start), _costs(row)) for row in page.rows],
            totals=_fill(pb.CostsTotals(), _costs(page.totals)),
            fresh_until=_timestamp(page.fresh_until),
            next_page_token=token,
        )

    async def GetDashboard(
        self, request: pb.GetDashboardRequest, context: Any
    ) -> pb.GetDashboardResponse:
        org = request.org_id if request.HasField("org_id") else None
        period = request.period if request.HasField("period") else "24h"
        kept, store = await self._reports.dashboard(current_call(), org, period)
        if isinstance(kept, bytes):
            return pb.GetDashboardResponse.FromString(kept)
        answer = _dashboard(kept)
        await store(answer.SerializeToString())
        return answer


def _asked(request: pb.GetUsageRequest | pb.GetCostsRequest) -> Asked:
    given = {field.name: value for field, value in request.ListFields()}
    return Asked(
        org_id=given.get("org_id"),
        start=moment(request.start) if "start" in given else None,
        end=moment(request.end) if "end" in given else None,
        granularity=given.get("granularity", "day"),
        group_by=tuple(request.group_by),
        filters={name: given[name] for name in DIMENSIONS if name in given},
        page_size=request.page_size,
        page_token=request.page_token,
    )


def _fill(target: M, *groups: Mapping[str, object]) -> M:
    for group in groups:
        for name, value in group.items():
            setattr(target, name, value)
    return target


def _labels(row: Row, start: datetime) -> dict[str, object]:
    shown: dict[str, object] = {d: v for d, v in row.dimensions.items() if v is not None}
    shown["start"] = row.start or start
    return shown


def _usage(row: Row) -> dict[str, object]:
    sums = row.sums
    measures: dict[str, object] = {m: exact(m, sums[m]) for m in _COUNTS}
    measures["cost_usd"] = usd(sums["cost_nano"])
    if sums["latency_count"] > 0:
        measures["latency_ms_avg"] = sums["latency_sum_us"] / sums["latency_count"] / 1000
        measures["latency_ms_p95"] = quantile_ms(row.bins, 0.95)
    return measures


def _costs(row: Row) -> dict[str, object]:
    return {
        f"{kind}_usd": usd(row.sums[f"{kind}_nano"])
        for kind in ("input", "output", "cache_read", "cache_write", "cost")
    }


def _point(row: Row) -> pb.SeriesPoint:
    names = ("events", "input_tokens", "output_tokens", "errors")
    measures: dict[str, object] = {name: exact(name, row.sums[name]) for name in names}
    return _fill(
        pb.SeriesPoint(cost_usd=usd(row.sums["cost_nano"])), measures, {"start": row.start}
    )


def _dashboard(dashboard: Dashboard) -> pb.GetDashboardResponse:
    totals = dashboard.totals
    return pb.GetDashboardResponse(
        period=dashboard.period,
        totals=_fill(pb.UsageTotals(), _usage(totals)),
        previous=_fill(pb.UsageTotals(), _usage(dashboard.previous)),
        series=[_point(row) for row in dashboard.series],
        top_models=_top(dashboard.top["models"], totals.sums),
        top_projects=_top(dashboard.top["projects"], totals.sums),
        top_users=_top(dashboard.top["users"], totals.sums),
        top_tools=_top(dashboard.top["tools"], totals.sums),
        fresh_until=_timestamp(dashboard.fresh_until),
    )


def _timestamp(at: datetime | None) -> Timestamp | None:
    return None if at is None else timestamp(at)


def _top(rows: Sequence[Row], totals: Mapping[str, int]) -> list[pb.TopItem]:
    measure = "cost_nano" if any(row.sums["cost_nano"] for row in rows) else "events"
    whole = totals[measure]
    return [
        pb.TopItem(
            key=row.key,
            events=row.sums["events"],
            cost_usd=usd(row.sums["cost_nano"]),
            share=row.sums[measure] / whole if whole else 0.0,
        )
        for row in rows
    ]
