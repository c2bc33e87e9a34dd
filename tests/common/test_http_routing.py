"""Routes by path."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import Response

from common.http.routing import Endpoint, RouteTable, decode_percent

pytestmark = pytest.mark.unit


async def handler(_: Request) -> Response:
    return Response()


def table(*routes: str) -> RouteTable:
    split = [route.split(" ") for route in routes]
    return RouteTable((verb, Endpoint(path, handler)) for verb, path in split)


def test_a_path_leads_to_its_endpoint_with_decoded_parameters() -> None:
    routes = table("GET /orgs/{id}", "PATCH /orgs/{org_id}/members/{user_id}", "GET /orgs")
    found = routes.match("PATCH", "/orgs/a%20b/members/%C3%A9%2F")
    assert found is not None
    assert found.endpoint is not None
    assert found.endpoint.template == "/orgs/{org_id}/members/{user_id}"
    assert found.parameters == {"org_id": "a b", "user_id": "é/"}


def test_a_literal_wins_over_a_parameter_however_it_is_written() -> None:
    routes = table("GET /auth/{id}", "GET /auth/me")
    for path in ("/auth/me", "/auth/%6de", "/auth/%6D%65"):
        found = routes.match("GET", path)
        assert found is not None
        assert found.parameters == {}


@pytest.mark.parametrize("path", ["/", "", "/org", "/orgs/", "//orgs", "/orgs/a/", "/orgs//b", "*"])
def test_an_unknown_path_leads_nowhere(path: str) -> None:
    assert table("GET /orgs", "GET /orgs/{id}", "GET /orgs/{id}/b").match("GET", path) is None


def test_another_method_is_told_which_there_are() -> None:
    found = table("GET /orgs", "POST /orgs").match("PUT", "/orgs")
    assert found is not None
    assert (found.endpoint, found.allow) == (None, "GET, HEAD, OPTIONS, POST")


def test_head_leads_where_get_does() -> None:
    found = table("GET /orgs").match("HEAD", "/orgs")
    assert found is not None
    assert found.endpoint is not None


def test_a_parameter_that_cannot_be_decoded_is_named() -> None:
    found = table("GET /orgs/{id}").match("GET", "/orgs/%ff")
    assert found is not None
    assert (found.parameters, found.undecodable) == ({}, ("id",))


def test_one_route_has_one_endpoint() -> None:
    with pytest.raises(ValueError, match="routed twice"):
        table("GET /orgs/{id}", "GET /orgs/{org_id}")


@pytest.mark.parametrize("path", ["/a/{id=*}", "/a/x{id}", "/a/{id}:verb", "/a/**"])
def test_a_template_is_made_of_literals_and_names(path: str) -> None:
    with pytest.raises(ValueError, match="literal or"):
        table(f"GET {path}")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("abc", "abc"), ("a%20b", "a b"), ("%e2%82%ac", "€"), ("", ""), ("%00", "\x00"),
        ("%", None), ("%4", None), ("%zz", None), ("a%", None), ("%ff", None), ("%C0%AF", None),
        ("%ED%A0%80", None), ("é", None), ("% 20", None), ("%+1", None),
    ],
)  # fmt: skip
def test_percent_encoding_means_utf8_or_nothing(text: str, meaning: str | None) -> None:
    assert decode_percent(text) == meaning


def test_whoever_asks_for_methods_is_told_of_those_of_other_processes_too() -> None:
    routes = RouteTable(
        [("POST", Endpoint("/v1/events", handler))],
        [("GET", "/v1/events"), ("POST", "/v1/events"), ("GET", "/v1/sessions")],
    )
    found = routes.match("PUT", "/v1/events")
    assert found is not None
    assert (found.endpoint, found.allow) == (None, "GET, HEAD, OPTIONS, POST")
    assert routes.match("GET", "/v1/events") is None
    assert routes.match("PUT", "/v1/sessions") is None
