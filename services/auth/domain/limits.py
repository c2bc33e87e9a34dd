"""How often something may be tried: a sliding window of moments."""

from __future__ import annotations

import ipaddress
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


def address_group(ip: str | None) -> str:
    """Whom an address stands for: one IPv4 address, or the /64 that one IPv6 line has."""
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return "unknown"
    mapped = getattr(address, "ipv4_mapped", None)
    if address.version == 4 or mapped is not None:
        return str(mapped or address)
    return str(ipaddress.ip_network((address, 64), strict=False))
