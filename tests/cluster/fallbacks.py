"""The rows of docs/fallbacks.md, played on the cluster: users see what the page says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster import kubernetes
from tests.cluster.kubernetes import kubectl, objects, wait_until_ready
from tests.cluster.running import demand, until
from tests.e2e.faults.rows import (
    REFUSED,
    ROWS,
    WORKS,
    Cast,
    Row,
    cast_of,
    get,
    log_in,
    rename,
    send,
)
from tests.e2e.faults.watching import is_refusal

USAGE = get("/analytics/usage?org_id={org}")
DASHBOARD = get("/analytics/dashboard?org_id={org}&period=24h")
PROJECT = get("/projects/{project}")


@contextmanager
def scaled_to_nothing(kind: str, *names: str) -> Iterator[None]:
    """No pod of these while the block runs."""
    found = {o["metadata"]["name"]: o["spec"]["replicas"] for o in objects(kind)}
    for name in names:
        kubectl("scale", kind, name, "--replicas=0")
    for name in names:
        until(f"{name} is away", lambda name=name: not _pods(name))
    try:
        yield
    finally:
        for name in names:
            kubectl("scale", kind, name, f"--replicas={found[name]}")


def _pods(name: str) -> list[kubernetes.Object]:
    return objects("pods", f"app.kubernetes.io/name={name}")


@contextmanager
def without_database(name: str) -> Iterator[None]:
    """One service's database ends its connections and takes none while the block runs."""
    _sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    _sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        yield
    finally:
        _sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def _sql(statement: str) -> None:
    command = ("psql", "-h", "/var/run/postgresql", "-U", "postgres", "-c", statement)
    kubectl("exec", "postgresql-0", "--", *command)


@dataclass(frozen=True)
class Outage:
    """What is away, how, and what users see of it."""

    what: str
    begin: Callable[[], object]
    rows: list[Row]


SERVERS = [
    Outage(
        "the cache",
        lambda: scaled_to_nothing("statefulset", "cache"),
        [
            Row("auth → cache", "log in", log_in, WORKS),
            Row("analytics → cache", "the dashboard", DASHBOARD, WORKS),
            Row("usage_tracker → cache", "send", send, WORKS),
        ],
    ),
    Outage(
        "the broker",
        lambda: scaled_to_nothing("statefulset", "kafka"),
        [
            Row("usage_tracker → broker", "send", send, REFUSED),
            Row("project → broker", "rename a project", rename("/projects/{project}"), WORKS),
            Row("analytics → broker", "read usage", USAGE, WORKS),
        ],
    ),
    Outage(
        "project's database",
        lambda: without_database("project"),
        [
            Row("project → PostgreSQL", "rename", rename("/projects/{project}"), REFUSED),
            Row("project → PostgreSQL", "read a project", PROJECT, REFUSED),
            Row("account → PostgreSQL", "read an organization", get("/orgs/{org}"), WORKS),
            Row("usage_tracker → project", "send for a known project", send, WORKS),
        ],
    ),
    Outage(
        "usage_tracker's database",
        lambda: without_database("usage_tracker"),
        [
            Row("usage_tracker → PostgreSQL", "send", send, WORKS),
            Row("analytics → PostgreSQL", "read usage", USAGE, WORKS),
        ],
    ),
]


def outages() -> list[Outage]:
    """Each service that others call, and each server."""
    services = [
        Outage(name, lambda name=name: scaled_to_nothing("deployment", name), rows)
        for name, rows in ROWS.items()
    ]
    return [*services, *SERVERS]


def played(outage: Outage) -> int:
    """Begin an outage, see what the page says, end it, see that all works; the number of rows."""
    cast = cast_of(f"http://{kubernetes.address()}")
    with outage.begin():
        # First what works by what is remembered: that ends after some time.
        for row in outage.rows:
            if row.seen == WORKS:
                answer = row.send(cast)
                demand(answer.is_success, (outage.what, row, answer.status_code, answer.text))
        for row in outage.rows:
            if row.seen == REFUSED:
                until(f"{outage.what}: {row.does} is refused", lambda row=row: _refused(row, cast))
    wait_until_ready()
    for row in outage.rows:
        if row.seen == REFUSED:
            until(f"{outage.what} is back: {row.does}", lambda row=row: row.send(cast).is_success)
    return len(outage.rows)


def _refused(row: Row, cast: Cast) -> bool:
    return is_refusal(row.send(cast))
