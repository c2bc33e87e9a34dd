"""What users see of each edge while its callee does not answer: docs/fallbacks.md, as requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import httpx

from tests.common.plain import PLAIN
from tests.e2e.faults.watching import ANSWER_SECONDS, is_refusal, until
from tests.e2e.tenant import PASSWORD, Tenant, User, bearer, created, register, tenant

WORKS, REFUSED = "works", "503"
USAGE = "/analytics/usage?org_id={org}"
# Often enough that each process of those that share the calls was asked.
OFTEN = 12


@dataclass
class Cast:
    """Whoever asks: known to every cache but for the credentials that nobody has shown yet."""

    address: str
    who: Tenant
    member: User
    unseen_project: str
    unseen_session: httpx.Client
    unseen_key: httpx.Client
    opening_key: str

    @property
    def owner(self) -> httpx.Client:
        return self.who.owner.client

    def send_event(self, key: httpx.Client, project: str | None = None) -> httpx.Response:
        event = {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "project_id": project or self.who.projects[0],
        }
        return key.post("/v1/events", json={"events": [event]})


def cast_of(address: str) -> Cast:
    """A new organization; what a cache may keep of it was asked for in every process."""
    who, member = tenant(address, projects=2), register(address)
    owner = who.owner.client
    created(owner, f"/orgs/{who.org_id}/members", {"user_id": member.id, "role": "member"})
    login = {"email": who.owner.email, "password": PASSWORD}
    session = logged_in(address, login).json()
    key = created(owner, "/auth/api-keys", {"name": "unseen", "scopes": ["events:write"]})
    found = Cast(
        address,
        who,
        member,
        who.projects[1],
        bearer(address, session["access_token"]),
        bearer(address, key["key"]),
        str(uuid4()),
    )
    for client in (owner, who.client, found.unseen_session, found.unseen_key):
        client.timeout = ANSWER_SECONDS
    for _ in range(OFTEN):
        for path in ("/orgs/{org}", "/projects/{project}", "/orgs/{org}/members", USAGE):
            assert get(path)(found).is_success
        assert send(found).is_success
    return found


@dataclass(frozen=True)
class Row:
    """One row of the table: the edge, what a user asks, and what becomes of it."""

    edge: str
    does: str
    send: Callable[[Cast], httpx.Response]
    seen: str


def get(path: str) -> Callable[[Cast], httpx.Response]:
    def ask(cast: Cast) -> httpx.Response:
        org_id, project_id = cast.who.org_id, cast.who.projects[0]
        return cast.owner.get(path.format(org=org_id, project=project_id))

    return ask


def rename(path: str) -> Callable[[Cast], httpx.Response]:
    def ask(cast: Cast) -> httpx.Response:
        org_id, project_id = cast.who.org_id, cast.who.projects[0]
        body = {"name": f"Renamed {uuid4()}"}
        return cast.owner.patch(path.format(org=org_id, project=project_id), json=body)

    return ask


def all_refused(rows: Sequence[Row], cast: Cast) -> None:
    """Returns once each that is to be refused is; they are asked together: some take their time."""
    refused = [row for row in rows if row.seen == REFUSED]
    with ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(lambda row: until(lambda: is_refusal(row.send(cast))), refused))


def logged_in(address: str, body: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{address}/auth/login", json=body, timeout=ANSWER_SECONDS, verify=PLAIN)


def log_in(cast: Cast) -> httpx.Response:
    body = {"email": cast.who.owner.email, "password": PASSWORD}
    return logged_in(cast.address, body)


def send(cast: Cast) -> httpx.Response:
    return cast.send_event(cast.who.client)


def open_org(cast: Cast) -> httpx.Response:
    headers = {"Idempotency-Key": cast.opening_key}
    return cast.owner.post("/orgs", json={"name": "Opened"}, headers=headers)


def remove_member(cast: Cast) -> httpx.Response:
    return cast.owner.delete(f"/orgs/{cast.who.org_id}/members/{cast.member.id}")


# By callee. Rows that work show that an outage stays where it is.
ROWS: dict[str, list[Row]] = {
    "auth": [
        Row("gateway → auth", "log in", log_in, REFUSED),
        Row(
            "gateway → auth",
            "a session that was never shown",
            lambda cast: cast.unseen_session.get("/orgs"),
            REFUSED,
        ),
        Row("gateway → auth", "a session that was", get("/projects/{project}"), WORKS),
        Row("project → auth", "list keys", get("/projects/{project}/api-keys"), REFUSED),
        Row("team → auth", "list members", get("/orgs/{org}/members"), REFUSED),
        Row("team → auth", "remove a member", remove_member, WORKS),
        Row(
            "usage_tracker → auth",
            "a key that was never shown",
            lambda cast: cast.send_event(cast.unseen_key),
            REFUSED,
        ),
        Row("usage_tracker → auth", "a key that was", send, WORKS),
    ],
    "team": [
        Row("gateway → team", "list members", get("/orgs/{org}/members"), REFUSED),
        Row("account → team", "open an organization", open_org, REFUSED),
        Row("account → team", "rename an organization", rename("/orgs/{org}"), REFUSED),
        Row("account → team", "read an organization", get("/orgs/{org}"), WORKS),
        Row("project → team", "rename a project", rename("/projects/{project}"), REFUSED),
        Row("project → team", "read a project", get("/projects/{project}"), WORKS),
        Row("analytics → team", "read usage", get(USAGE), WORKS),
        Row("usage_tracker → team", "send", send, REFUSED),
    ],
    "project": [
        Row("gateway → project", "read a project", get("/projects/{project}"), REFUSED),
        Row("gateway → project", "rename a project", rename("/projects/{project}"), REFUSED),
        Row("gateway → account", "read an organization", get("/orgs/{org}"), WORKS),
        Row(
            "usage_tracker → project",
            "send for a project that was never named",
            lambda c: c.send_event(c.who.client, c.unseen_project),
            REFUSED,
        ),
        Row(
            "usage_tracker → project",
            "send for one that was",
            send,
            WORKS,
        ),
    ],
    "account": [
        Row("gateway → account", "read an organization", get("/orgs/{org}"), REFUSED),
        Row("gateway → account", "rename an organization", rename("/orgs/{org}"), REFUSED),
        Row("gateway → project", "read a project", get("/projects/{project}"), WORKS),
    ],
    "analytics": [
        Row("gateway → analytics", "read usage", get(USAGE), REFUSED),
        Row("usage_tracker → analytics", "send", send, WORKS),
    ],
}
