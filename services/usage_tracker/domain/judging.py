"""Judging: which events are taken, and what they are once the defaults are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple
from uuid import UUID, uuid5

import msgspec
import xxhash

from services.usage_tracker.domain.events import (
    Event,
    Rejection,
    foreign,
    invalid_value,
    missing_field,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_AHEAD = timedelta(minutes=5)
MAX_METADATA_BYTES = 16_384
MAX_LATENCY_MS = 2_000_000_000
MAX_COST_USD = 1_000_000_000
TYPE_NEEDS = {
    "api_call": ("model",),
    "mcp_tool": ("mcp_server", "tool"),
    "session": ("session_id",),
}


class Row(NamedTuple):
    """One event as it is recorded.

    Ids are their 16 bytes, ``at`` microseconds since 1970, ``latency_us`` microseconds,
    ``client_cost_nano`` nano-dollars, ``metadata`` JSON. ``digest`` is that of all from ``at`` to
    ``metadata``, which the client said or left to a default: two rows of one identity and one
    digest tell of the same event.
    """

    event_id: bytes
    org_id: bytes
    team_id: bytes | None
    at: int
    event_type: str
    project_id: bytes | None
    user_id: bytes | None
    user_ref: str | None
    model: str | None
    provider: str | None
    service_tier: str | None
    mcp_server: str | None
    tool: str | None
    session_id: str | None
    request_id: str | None
    decision_id: str | None
    status: str
    error_type: str | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    latency_us: int | None
    client_cost_nano: int | None
    metadata: bytes | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class Project:
    """What an event takes from its project."""

    project_id: UUID
    org_id: UUID
    team_id: UUID | None


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What a caller may write to.

    Attributes:
        orgs: every open organization of the caller, and whether it may send events there.
        projects: those that the events name, as far as they exist.
        bound: the project of a project's key.
    """

    orgs: Mapping[UUID, bool]
    projects: Mapping[UUID, Project]
    bound: UUID | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges the events of one caller at one time.

    ``name_event`` gives the id of an event that has none, by its organization.
    """

    tenancy: Tenancy
    now: datetime
    raw_retention: timedelta
    name_event: Callable[[UUID], UUID] | None = None

    def judge(self, event: Event) -> Row | Rejection:
        """The row to record, or why there is none: shape first, then tenant, then time."""
        try:
            return self._row(event)
        except Refused as refused:
            return refused.rejection

    def _row(self, event: Event) -> Row:
        event_id_in = self._identity(event)
        if event.timestamp is None:
            raise Refused(missing_field("timestamp"))
        event_type = _event_type(event)
        latency_us = _latency_us(event.latency_ms)
        cost_nano = _cost_nano(event.cost_usd)
        metadata = encoded_metadata(event.metadata) if event.metadata is not None else None
        org, project = self.tenant(event)
        user_id, user_ref = user_of(event.user_id, org)
        said = (
            self._at(event.timestamp),
            event_type,
            project.project_id.bytes if project else None,
            user_id,
            user_ref,
            event.model,
            event.provider,
            event.service_tier,
            event.mcp_server,
            event.tool,
            event.session_id,
            event.request_id,
            event.decision_id,
            event.status or "ok",
            event.error_type,
            event.input_tokens or 0,
            event.output_tokens or 0,
            event.cache_read_tokens or 0,
            event.cache_write_5m_tokens or 0,
            event.cache_write_1h_tokens or 0,
            latency_us,
            cost_nano,
            metadata,
        )
        team = project.team_id.bytes if project and project.team_id else None
        digest = xxhash.xxh3_128_digest(_pack(said))
        return Row(event_id_in(org).bytes, org.bytes, team, *said, digest)

    def _identity(self, event: Event) -> Callable[[UUID], UUID]:
        given = _uuid("event_id", event.event_id)
        if given is not None:
            return lambda _: given
        if self.name_event is None:
            raise Refused(missing_field("event_id"))
        return self.name_event

    def _at(self, timestamp: datetime) -> int:
        age = self.now - timestamp
        if age > self.raw_retention:
            days = self.raw_retention.days
            raise Refused(Rejection("too_old", "timestamp", f"is more than {days} days ago"))
        if -age > MAX_AHEAD:
            minutes = MAX_AHEAD.seconds // 60
            raise Refused(
                Rejection("in_future", "timestamp", f"is more than {minutes} minutes ahead")
            )
        return microseconds(timestamp)

    def tenant(self, event: Event) -> tuple[UUID, Project | None]:
        """The organization and project that the event is of.

        Raises:
            Refused: there is none that the caller may write to.
        """
        asked_org = _uuid("org_id", event.org_id)
        asked_project = _uuid("project_id", event.project_id)
        bound = self.tenancy.bound
        if bound is not None and asked_project not in (None, bound):
            raise Refused(foreign("project_id"))
        project_id = bound or asked_project
        project = self.tenancy.projects.get(project_id) if project_id else None
        org = self._org(asked_org, project)
        if project_id is not None and (project is None or project.org_id != org):
            raise Refused(foreign("project_id"))
        return org, project

    def _org(self, asked: UUID | None, project: Project | None) -> UUID:
        orgs = self.tenancy.orgs
        if asked is not None:
            if asked not in orgs:
                raise Refused(foreign("org_id"))
            org = asked
        elif project is not None and project.org_id in orgs:
            org = project.org_id
        elif len(orgs) == 1:
            (org,) = orgs
        elif not orgs:
            raise Refused(_denied("needs an open organization"))
        else:
            raise Refused(missing_field("org_id", "is required with more than one organization"))
        if not orgs[org]:
            raise Refused(_denied("needs the permission events:write"))
        return org


def _denied(message: str) -> Rejection:
    return Rejection("permission_denied", "org_id", message)


class Refused(Exception):
    """An event is not taken."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.code)
        self.rejection = rejection


_pack = msgspec.msgpack.Encoder().encode
_json_sorted = msgspec.json.Encoder(order="sorted").encode


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(us: int) -> datetime:
    """The time of so many microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)


_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def parse_uuid(text: str | None) -> UUID | None:
    """The id in its usual form, 8-4-4-4-12 digits; None where the text is none."""
    return UUID(text) if text is not None and _UUID.fullmatch(text) else None


def _uuid(name: str, text: str | None) -> UUID | None:
    found = parse_uuid(text)
    if found is None and text is not None:
        raise Refused(invalid_value(name, "is not a uuid"))
    return found


def _event_type(event: Event) -> str:
    if event.event_type is None:
        raise Refused(missing_field("event_type"))
    for name in TYPE_NEEDS[event.event_type]:
        if getattr(event, name) is None:
            raise Refused(missing_field(name, f"is required for {event.event_type}"))
    return event.event_type


def user_of(text: str | None, org: UUID) -> tuple[bytes | None, str | None]:
    """The user's id, and the client's own name of the user where it is no uuid."""
    if text is None:
        return None, None
    known = parse_uuid(text)
    return (known.bytes, None) if known else (uuid5(org, text).bytes, text)


_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_MAX_DIGITS = 60


def _scaled(name: str, literal: str, largest: int, digits: int) -> int:
    """A decimal number times ten to the power of ``digits``, half-even from what is written."""
    if len(literal) > _MAX_DIGITS or not _NUMBER.fullmatch(literal):
        raise Refused(invalid_value(name, "is not a decimal number"))
    number = Decimal(literal)
    if not 0 <= number <= largest:
        raise Refused(invalid_value(name, f"must lie between 0 and {largest}"))
    rounded = number.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)
    return int(rounded.scaleb(digits))


def _latency_us(raw: msgspec.Raw) -> int | None:
    literal = bytes(raw).decode()
    if literal == "null":
        return None
    return _scaled("latency_ms", literal, MAX_LATENCY_MS, 3)


def _cost_nano(raw: msgspec.Raw) -> int | None:
    literal = bytes(raw).decode()
    if literal == "null":
        return None
    if literal.startswith('"') and literal.endswith('"'):
        literal = literal[1:-1]
    return _scaled("cost_usd", literal, MAX_COST_USD, 9)


def encoded_metadata(metadata: dict[str, object]) -> bytes:
    """Metadata as JSON with its keys in order.

    Raises:
        Refused: it is too large or too deep.
    """
    try:
        encoded = _json_sorted(metadata)
    except RecursionError:
        raise Refused(invalid_value("metadata", "is nested too deeply")) from None
    if len(encoded) > MAX_METADATA_BYTES:
        raise Refused(
            invalid_value("metadata", f"is larger than {MAX_METADATA_BYTES} bytes of JSON")
        )
    return encoded
