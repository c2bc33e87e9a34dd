"""What is asked of analytics: which organization, which range, which page."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast, get_args
from uuid import UUID

from redis.exceptions import RedisError

from common.errors import FieldError, Invalid, NotFound
from common.paging import decode_token, encode_token, page_size
from services.analytics.domain.ranges import PERIODS, Granularity, check_buckets, pieces, widen
from services.analytics.domain.windows import partition_of
from services.analytics.store import Query, Row

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.clock import Clock
    from common.identity.call import Call
    from common.telemetry import Telemetry
    from services.analytics.store import RollupStore

_UUIDS = frozenset({"project_id", "team_id", "user_id", "api_key_id"})
_TOP = {"models": "model", "projects": "project_id", "users": "user_id", "tools": "tool"}
DASHBOARD_SECONDS = 300
# Seconds; the second is the goal.
AGES = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOP_ITEMS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the caller put it; times in UTC."""

    org_id: str | None
    start: datetime | None
    end: datetime | None
    granularity: str
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of rows; ``start`` is the range's, for rows without a time of their own."""

    rows: Sequence[Row]
    totals: Row
    fresh_until: datetime | None
    start: datetime


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The last period beside the one before; ``top`` by models, projects, users and tools."""

    period: str
    totals: Row
    previous: Row
    series: Sequence[Row]
    top: Mapping[str, Sequence[Row]]
    fresh_until: datetime | None


class Reports:
    """Answers questions for one caller at a time."""

    def __init__(
        self, store: RollupStore, clock: Clock, cache: Redis, windows_partitions: int
    ) -> None:
        self._store = store
        self._clock = clock
        self._cache = cache
        self._partitions = windows_partitions

    async def windows(self, call: Call, asked: Asked) -> tuple[Page, str | None]:
        """One page of rows and the token of the next.

        Raises:
            Invalid: the range, the granularity, the page token or the organization is wrong.
            NotFound: the caller may not know the organization or project.
        """
        query = self._query(call, asked)
        result = await self._store.query(query)
        token = encode_token(result.rows[-1].key) if result.more else None
        return Page(result.rows, result.totals, result.fresh_until, query.start), token

    async def dashboard(
        self, call: Call, org_id: str | None, period: str
    ) -> tuple[Dashboard | bytes, Callable[[bytes], Awaitable[None]]]:
        """The cached answer, or a new one with the function that caches it for five minutes."""
        org = call.organization(org_id)
        project = call.principal.project_id
        key = f"analytics:dashboard:{org}:{project}:{period}"

        async def keep(answer: bytes) -> None:
            try:
                await self._cache.set(key, answer, ex=DASHBOARD_SECONDS)
            except (RedisError, OSError) as error:
                _log.warning("the dashboard cache is down: %s", error)

        try:
            kept = await self._cache.get(key)
        except (RedisError, OSError) as error:
            _log.warning("the dashboard cache is down: %s", error)
            kept = None
        if kept is not None:
            return cast("bytes", kept), keep
        return await self._dashboard(call, org, period), keep

    async def _dashboard(self, call: Call, org: UUID, period: str) -> Dashboard:
        now = self._clock.now()
        start = now - PERIODS[period]

        def asked(low: datetime, high: datetime, granularity: str) -> Query:
            return self._query(call, Asked(str(org), low, high, granularity, page_size=500))

        unit = "hour" if period == "24h" else "day"
        series = await self._store.query(asked(start, now, unit))
        whole = asked(start, now, "all")
        previous = await self._store.query(asked(start - PERIODS[period], start, "all"))
        top = {
            name: await self._store.top(whole, dimension, TOP_ITEMS)
            for name, dimension in _TOP.items()
        }
        return Dashboard(
            period, series.totals, previous.totals, series.rows, top, series.fresh_until
        )

    def _query(self, call: Call, asked: Asked) -> Query:
        org = call.organization(asked.org_id)
        end = asked.end or self._clock.now()
        start = asked.start or end - timedelta(days=1)
        start, end = widen(start, end)
        granularity = _granularity(asked.granularity)
        check_buckets(start, end, granularity)
        after = decode_token(asked.page_token, 1)
        return Query(
            part=partition_of(org, self._partitions),
            org_id=org,
            granularity=granularity,
            pieces=pieces(start, end, granularity),
            start=start,
            end=end,
            group_by=asked.group_by,
            filters=_filters(call, asked.filters),
            after=after[0] if after else None,
            limit=page_size(asked.page_size),
        )


class Freshness:
    """Tells in metrics how old the windows of each partition are, as who asks is told.

    A partition that tells nothing is as old as the watch over it.

    Args:
        store: the windows.
        clock: by which they are old.
        partitions: of ``usage.windows``.
        skew: how far the clocks of ingest may be from each other; it is no age.
        telemetry: the service's.
    """

    def __init__(
        self,
        store: RollupStore,
        clock: Clock,
        partitions: int,
        skew: timedelta,
        telemetry: Telemetry,
    ) -> None:
        self._store = store
        self._clock = clock
        self._skew = skew
        self._partitions = partitions
        self._since: datetime | None = None
        self._ages = telemetry.histogram(
            "mindweave_windows_age_seconds",
            "Age of what the windows of a partition show, looked at every few seconds.",
            buckets=AGES,
        ).of()
        self._until = telemetry.gauge(
            "mindweave_windows_fresh_until_seconds",
            "Unix time: what was accepted before is in the windows of the partition.",
            ["partition"],
        )

    async def look(self) -> None:
        """Look once.

        Raises:
            Unavailable: the database does not answer.
        """
        found = await self._store.fresh_until()
        now = self._clock.now()
        self._since = self._since or now
        for part in range(self._partitions):
            until = self._since
            if part in found:
                until = found[part] + self._skew
                self._until.of(partition=str(part)).set(until.timestamp())
            self._ages.observe(max(0.0, (now - until).total_seconds()))


def _filters(call: Call, asked: Mapping[str, str]) -> dict[str, str | UUID]:
    for name, value in asked.items():
        if "\x00" in value:
            raise Invalid(
                f"{name} holds a NUL character.",
                fields=[FieldError(f"/{name}", "invalid_value", "holds a NUL character")],
            )
    filters = {name: UUID(v) if name in _UUIDS else v for name, v in asked.items()}
    bound = call.principal.project_id
    if bound is not None:
        if filters.get("project_id", bound) != bound:
            raise NotFound
        filters["project_id"] = bound
    return filters


def _granularity(name: str) -> Granularity:
    if name not in get_args(Granularity):
        raise Invalid(f"granularity is one of {', '.join(get_args(Granularity))}.")
    return cast("Granularity", name)
