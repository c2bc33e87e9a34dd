"""How often something may be tried: a sliding window of moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.errors import RateLimited


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``most`` attempts of one subject within ``window``."""

    name: str
    most: int
    window: timedelta


@dataclass(frozen=True, slots=True)
class Admission:
    """What is kept of a subject's attempts after one more; ``retry_at`` where it was refused."""

    moments: tuple[datetime, ...]
    retry_at: datetime | None


class TooManyAttempts(RateLimited):
    code = "too_many_attempts"
    title = "Too many attempts; try again later"


def admit(limit: Limit, moments: Sequence[datetime], now: datetime) -> Admission:
    """Count an attempt, unless the window is full: a refused one does not prolong the wait."""
    recent = tuple(moment for moment in sorted(moments) if moment > now - limit.window)
    if len(recent) < limit.most:
        return Admission((*recent, now), None)
    return Admission(recent, recent[-limit.most] + limit.window)
