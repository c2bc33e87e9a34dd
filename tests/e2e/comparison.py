"""Reads the platform's answers page by page and names every difference from the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from tests.e2e.oracle import DIMENSIONS, Key, Measures, Oracle
from tests.e2e.paging import listed

USAGE = (
    "events",
    "errors",
    "unpriced_events",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_usd",
)
COSTS = ("input_usd", "output_usd", "cache_read_usd", "cache_write_usd", "cost_usd")
# The stated error of the latency sketch, and of the rounding of a latency to a microsecond.
P95_ERROR = Decimal("0.0101")

Grouping = tuple[str, tuple[str, ...]]
GROUPINGS: tuple[Grouping, ...] = (
    *(("all", (dimension,)) for dimension in DIMENSIONS),
    ("minute", ()),
    ("hour", ("model",)),
    ("day", ("project_id", "status")),
    ("month", ("event_type",)),
    ("all", ("model", "project_id", "user_id", "status")),
    ("hour", ("mcp_server", "tool")),
)


def read(
    client: httpx.Client, path: str, org_id: str, granularity: str, group_by: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The pages of one question about the eight days behind now."""
    end = datetime.now(UTC) + timedelta(minutes=10)
    params: dict[str, Any] = {
        "org_id": org_id,
        "start": (end - timedelta(days=8)).isoformat(),
        "end": end.isoformat(),
        "granularity": granularity,
        "page_size": 500,
    }
    if group_by:
        params["group_by"] = ",".join(group_by)
    while True:
        answer = client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield page
        if page["next_page_token"] is None:
            return
        params["page_token"] = page["next_page_token"]


def differences(
    client: httpx.Client,
    org_id: str,
    oracle: Oracle,
    groupings: Sequence[Grouping] = GROUPINGS,
) -> list[str]:
    """Every measure of every grouping in which the platform and the oracle differ."""
    found: list[str] = []
    total = oracle.total()
    for granularity, group_by in groupings:
        expected = oracle.rows(granularity, group_by)
        for path, measures in (("/analytics/usage", USAGE), ("/analytics/costs", COSTS)):
            label = f"{path} {granularity} by {','.join(group_by) or 'nothing'}"
            pages = list(read(client, path, org_id, granularity, group_by))
            given = [row for page in pages for row in page["rows"]]
            rows = {_key(row, granularity, group_by): row for row in given}
            if len(rows) < len(given):
                found.append(f"{label}: {len(given) - len(rows)} rows are there again")
            found += _compare_rows(label, rows, expected, measures)
            found += [
                f"{label}: {dimension} is {row[dimension]} and was not asked for"
                for row in given
                for dimension in set(DIMENSIONS) - set(group_by)
                if row[dimension] is not None
            ]
            for page in pages:
                found += _compare(f"{label} totals", page["totals"], total, measures)
    return found + session_differences(client, org_id, oracle)


def session_differences(client: httpx.Client, org_id: str, oracle: Oracle) -> list[str]:
    """Every session in which the platform and the oracle differ."""
    end = datetime.now(UTC) + timedelta(minutes=10)
    period = {"start": (end - timedelta(days=8)).isoformat(), "end": end.isoformat()}
    given = list(listed(client, "/v1/sessions", "sessions", org_id=org_id, **period))
    expected = {(key, start): (stop, sums) for key, start, stop, sums in oracle.sessions()}
    shown = {
        ((s["project_id"], s["session_id"], s["user_id"]), _moment(s["started_at"])): s
        for s in given
    }
    found = [f"session {key} is missing" for key in expected.keys() - shown.keys()]
    found += [f"session {key} is too much" for key in shown.keys() - expected.keys()]
    if len(shown) < len(given):
        found.append(f"{len(given) - len(shown)} sessions are there again")
    for key in shown.keys() & expected.keys():
        stop, sums = expected[key]
        found += _compare(f"session {key}", shown[key], sums, USAGE)
        if _moment(shown[key]["ended_at"]) != stop:
            found.append(f"session {key}: ended_at is {shown[key]['ended_at']}, not {stop}")
    return found


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _key(row: dict[str, Any], granularity: str, group_by: Sequence[str]) -> Key:
    return (None if granularity == "all" else row["start"], *(row[d] for d in group_by))


def _compare_rows(
    label: str,
    rows: dict[Key, dict[str, Any]],
    expected: dict[Key, Measures],
    measures: Sequence[str],
) -> list[str]:
    found = [f"{label}: {key} is missing" for key in expected.keys() - rows.keys()]
    found += [f"{label}: {key} is too much" for key in rows.keys() - expected.keys()]
    for key in rows.keys() & expected.keys():
        found += _compare(f"{label} {key}", rows[key], expected[key], measures)
    return found


def _compare(
    label: str, row: dict[str, Any], expected: Measures, measures: Sequence[str]
) -> list[str]:
    found = []
    for name in measures:
        wanted = getattr(expected, name)
        given = Decimal(row[name]) if name.endswith("_usd") else row[name]
        if given != wanted:
            found.append(f"{label}: {name} is {row[name]}, not {wanted}")
    if "latency_ms_avg" in row:
        found += _compare_latency(label, row, expected)
    return found


def _compare_latency(label: str, row: dict[str, Any], expected: Measures) -> list[str]:
    average, p95 = expected.latency_ms_avg, expected.latency_ms_p95
    if average is None or p95 is None:
        wrong = row["latency_ms_avg"] is not None or row["latency_ms_p95"] is not None
        return [f"{label}: a latency where none was sent"] if wrong else []
    found = []
    if abs(Decimal(str(row["latency_ms_avg"])) - average) > Decimal("0.001"):
        found.append(f"{label}: latency_ms_avg is {row['latency_ms_avg']}, not {average}")
    if abs(Decimal(str(row["latency_ms_p95"])) - p95) > p95 * P95_ERROR:
        found.append(f"{label}: latency_ms_p95 is {row['latency_ms_p95']}, not {p95}")
    return found
