"""A stranger meets every route and verb with the ids of another organization."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.common.plain import PLAIN
from tests.e2e.tenant import Tenant, bearer, created, register, session_of, tenant

pytestmark = pytest.mark.e2e

VERBS = ("get", "post", "put", "patch", "delete")


@dataclass
class Victim:
    """What the stranger knows of somebody else's organization: every id there is.

    Attributes:
        rows: the id of a row of the victim's in each collection, by the path of the collection.
    """

    tenant: Tenant
    rows: dict[str, str]

    @property
    def ids(self) -> set[str]:
        who = self.tenant
        return {*self.rows.values(), *who.projects, who.owner.id}

    def path(self, template: str, others: dict[str, str] | None = None) -> str:
        """The route with the victim's ids in it, but for ``others`` by their parameter."""
        parts = template.split("/")
        return "/".join(
            (others or {}).get(part[1:-1], self.rows["/".join(parts[:place])])
            if part.startswith("{")
            else part
            for place, part in enumerate(parts)
        )

    def ids_in(self, template: str) -> dict[str, str]:
        """Its ids by the parameters of the route."""
        parts = template.split("/")
        return {
            part[1:-1]: self.rows["/".join(parts[:place])]
            for place, part in enumerate(parts)
            if part.startswith("{")
        }

    def event(self) -> dict[str, Any]:
        """An event for the victim's project."""
        return {
            "event_id": str(uuid4()),
            "timestamp": datetime.now(UTC).isoformat(),
            "event_type": "api_call",
            "model": "claude-haiku-4-5",
            "org_id": self.tenant.org_id,
            "project_id": self.tenant.projects[0],
        }

    def body(self, name: str, entry: dict[str, Any]) -> Any:
        """A valid body, the document's example, with the victim's ids where ids go."""
        events = {"POST /v1/events": {"events": [self.event()]}, "POST /v1/track": self.event()}
        if name in events or "requestBody" not in entry:
            return events.get(name)
        example = entry["requestBody"]["content"]["application/json"]["example"]
        return example | {field: known for field, known in self.known.items() if field in example}

    @property
    def known(self) -> dict[str, str]:
        """Its ids by the name of the field or parameter that takes them."""
        return {
            "org_id": self.tenant.org_id,
            "project_id": self.tenant.projects[0],
            "user_id": self.rows["/orgs/{org_id}/members"],
            "api_key_id": self.rows["/auth/api-keys"],
            # There are no teams yet; an id that nothing has is as foreign as any.
            "team_id": str(uuid4()),
        }


# Routes that concern the caller alone and name nobody else.
OWN = {
    "GET /auth/me",
    "PATCH /auth/me",
    "POST /auth/logout",
    "POST /auth/change-password",
    "GET /auth/sessions",
    "DELETE /auth/sessions",
    "GET /auth/api-keys",
    "POST /auth/api-keys",
    "GET /orgs",
    "POST /orgs",
    "GET /v1/metrics",
}


# Ids that the client makes itself, of things that the platform keeps no rows of.
OWN_NAMES = {"event_id", "session_id", "request_id", "decision_id"}
# Here an id is only a name: whose an event is, who is made a member, and teams, which have no rows
# yet.
NAMES_ANYBODY = {
    ("POST /projects", "team_id"),
    ("PATCH /projects/{id}", "team_id"),
    ("POST /v1/events", "user_id"),
    ("POST /v1/track", "user_id"),
    ("POST /orgs/{org_id}/members", "user_id"),
}


def with_a_row_of_each(who: Tenant) -> Victim:
    """The tenant with its ids, one of each kind of row."""
    member = register(who.owner.address)
    added = {"user_id": member.id, "role": "member"}
    created(who.owner.client, f"/orgs/{who.org_id}/members", added)
    path = f"/projects/{who.projects[0]}/api-keys"
    rows = {
        "/orgs": who.org_id,
        "/orgs/{org_id}/members": member.id,
        "/projects": who.projects[0],
        "/projects/{project_id}/api-keys": created(who.owner.client, path, {"name": "app"})["id"],
        "/auth/sessions": who.owner.client.get("/auth/sessions").json()["sessions"][0]["id"],
        "/auth/api-keys": who.key["id"],
        "/v1/sessions": session_of(who.client, who.projects[0]),
    }
    return Victim(who, rows)


@pytest.fixture(scope="module")
def victim(address: str) -> Victim:
    return with_a_row_of_each(tenant(address))


@pytest.fixture(scope="module")
def stranger(address: str) -> Tenant:
    return tenant(address)


@pytest.fixture(scope="module")
def strangers(address: str, stranger: Tenant) -> Iterator[list[httpx.Client]]:
    """The stranger with each kind of credential: a session, a key, the key of a project."""
    path = f"/projects/{stranger.projects[0]}/api-keys"
    scopes = ["events:write", "analytics:read", "metrics:read", "project:read"]
    key = created(stranger.owner.client, path, {"name": "narrow", "scopes": scopes})["key"]
    with bearer(address, key) as narrow:
        yield [stranger.owner.client, stranger.client, narrow]


def operations(address: str) -> list[tuple[str, dict[str, Any]]]:
    """("GET /orgs/{id}", its OpenAPI entry) of every operation that needs a credential."""
    document = httpx.get(f"{address}/openapi.json").json()
    return [
        (f"{verb.upper()} {path}", entry)
        for path, entries in document["paths"].items()
        for verb, entry in entries.items()
        if verb in VERBS and entry.get("security") != []
    ]


def anywhere(template: str) -> str:
    """The route with ids that nothing has."""
    return re.sub(r"{\w+}", lambda _: str(uuid4()), template)


def attempt(client: httpx.Client, victim: Victim, name: str, entry: dict[str, Any]):
    """The operation with the victim's ids in path, query and body."""
    verb, template = name.split(" ")
    named = {p["name"] for p in entry.get("parameters", []) if p.get("in") == "query"}
    params = {k: v for k, v in victim.known.items() if k in named}
    body = victim.body(name, entry)
    return client.request(verb, victim.path(template), params=params, json=body)


def test_every_route_answers_a_stranger_with_403_or_404(address, victim, strangers):
    answers = {}
    for credential in strangers:
        for name, entry in operations(address):
            if name in OWN:
                continue
            answer = attempt(credential, victim, name, entry)
            answers[name] = answer.status_code
            assert refused(name, credential is strangers[2], answer), (name, answer.text)
            assert not victim.ids & leaked(answer), name
    assert len(answers) >= 14


def refused(name: str, of_project: bool, answer: httpx.Response) -> bool:
    """Whether it is a 403 or a 404.

    The key of a project can name no other one: an event that does is wrong by itself.
    """
    if of_project and name in ("POST /v1/events", "POST /v1/track"):
        return answer.status_code == 422 and "foreign" in answer.json()["code"]
    return answer.status_code in (403, 404)


def ids_asked(document: dict[str, Any], entry: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The names of the ids that an operation takes in its query, and anywhere in its body."""
    query = {p["name"] for p in entry.get("parameters", []) if p.get("in") == "query"}
    body: set[str] = set()

    def walk(schema: Any) -> None:
        if isinstance(schema, list):
            for inner in schema:
                walk(inner)
        elif isinstance(schema, dict):
            if "$ref" in schema:
                walk(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
            body.update(schema.get("properties", {}))
            walk([*schema.values()])

    walk(entry.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema"))
    return {n for n in query if n.endswith("_id")}, {n for n in body if n.endswith("_id")}


def test_every_id_that_an_operation_takes_is_one_that_is_tried_here(address, victim):
    document = httpx.get(f"{address}/openapi.json").json()
    asked = [ids_asked(document, entry) for _, entry in operations(address)]
    named = set.union(*(query | body for query, body in asked))
    assert named - OWN_NAMES <= {*victim.known}, "give the new id a row of the victim's"


def test_one_foreign_id_among_ones_own_is_a_404_or_shows_nothing(address, victim, stranger):
    document = httpx.get(f"{address}/openapi.json").json()
    own = with_a_row_of_each(stranger)
    tried = 0
    for name, entry in operations(address):
        query, body = ids_asked(document, entry)
        template = name.split(" ")[1]
        in_path = {*own.ids_in(template)} if template.count("{") > 1 else set()
        for place in sorted((in_path | query | body) - OWN_NAMES):
            if (name, place) not in NAMES_ANYBODY:
                answer = attempt_with_one(stranger.owner.client, own, victim, name, entry, place)
                assert nothing_of(victim, answer), (name, place, answer.text)
                tried += 1
    assert tried >= 20


def attempt_with_one(client, own: Victim, victim: Victim, name: str, entry, place: str):
    """The operation with one's own ids, but for the victim's in one place."""
    verb, template = name.split(" ")
    foreign = {place: (victim.ids_in(template) | victim.known)[place]}
    named = {p.get("name") for p in entry["parameters"] if p.get("in") == "query"}
    params = {k: v for k, v in ({"org_id": own.tenant.org_id} | foreign).items() if k in named}
    body = own.body(name, entry)
    if isinstance(body, dict) and place not in template:
        events = body.get("events", [body])
        for event in events:
            event.update(foreign)
    return client.request(verb, own.path(template, foreign), params=params, json=body)


def nothing_of(victim: Victim, answer: httpx.Response) -> bool:
    """Whether it was refused, or read without anything of the victim's in it."""
    if answer.request.method == "GET" and answer.status_code == 200:
        return not victim.ids & leaked(answer) and not answer.json().get("rows")
    return answer.status_code in (403, 404)


def test_a_key_may_not_use_auth(address, stranger):
    for name, _ in operations(address):
        verb, path = name.split(" ")
        if path.startswith("/auth"):
            answer = stranger.client.request(verb, anywhere(path), json={})
            assert answer.status_code in (403, 422), (name, answer.status_code)


def test_lists_show_a_stranger_nothing_of_it(address, victim, stranger):
    lists = [name for name, entry in operations(address) if is_list(name, entry)]
    assert {"GET /orgs", "GET /projects", "GET /auth/sessions", "GET /auth/api-keys"} <= {*lists}
    for name in [*lists, "GET /auth/me"]:
        answer = stranger.owner.client.get(name.removeprefix("GET "))
        assert answer.status_code == 200, (name, answer.text)
        assert not victim.ids & leaked(answer), name


def is_list(name: str, entry: dict[str, Any]) -> bool:
    """Whether it answers with pages of what the caller has, wherever that is."""
    required = {p.get("name"): p.get("required") for p in entry["parameters"]}
    return name.startswith("GET") and "page_token" in required and not any(required.values())


def test_events_for_a_foreign_project_are_named_and_not_counted(victim, stranger):
    for field in ("org_id", "project_id"):
        event = victim.event()
        event.pop("org_id" if field == "project_id" else "project_id")
        good = {k: v for k, v in event.items() if k != field} | {"event_id": str(uuid4())}
        answer = stranger.client.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 404, answer.text
        assert [r["field"] for r in answer.json()["rejected"]] == [field]
        answer = stranger.client.post("/v1/events", json={"events": [good, event]})
        assert answer.status_code == 202, answer.text
        assert [(r["index"], r["field"]) for r in answer.json()["rejected"]] == [(1, field)]
    totals = victim.tenant.client.get("/analytics/usage", params={"granularity": "all"}).json()
    # That of its own session.
    assert totals["totals"]["events"] == 1


def test_the_key_of_a_project_reaches_no_other_project(address, victim):
    who = victim.tenant
    path = f"/projects/{who.projects[0]}/api-keys"
    scopes = ["events:write", "analytics:read", "project:read"]
    key = created(who.owner.client, path, {"name": "narrow", "scopes": scopes})["key"]
    with bearer(address, key) as narrow:
        assert narrow.get(f"/projects/{who.projects[0]}").status_code == 200
        assert narrow.get(f"/projects/{who.projects[1]}").status_code == 404
        listed = narrow.get("/projects").json()["projects"]
        assert [p["id"] for p in listed] == [who.projects[0]]
        event = victim.event() | {"project_id": who.projects[1]}
        answer = narrow.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 422
        assert answer.json()["rejected"][0]["code"] == "foreign_project"
        other = {"granularity": "all", "project_id": who.projects[1]}
        assert narrow.get("/analytics/usage", params=other).status_code == 404


def test_without_or_with_a_bad_credential_every_guarded_route_is_a_401(address):
    for name, _ in operations(address):
        verb, path = name.split(" ")
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "mwu_nonsense"}):
            url = address + anywhere(path)
            answer = httpx.request(verb, url, headers=headers, content=b"{", verify=PLAIN)
            assert answer.status_code == 401, (name, headers, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


def leaked(answer: httpx.Response) -> set[str]:
    """Every string in the answer's body, the path that the caller wrote left out."""
    if not answer.content:
        return set()
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name != "instance":
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            found.add(value)

    walk(json.loads(answer.content))
    return found
