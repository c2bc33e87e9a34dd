"""The document and the page for people, as the gateway serves them."""

from __future__ import annotations

import json
import re

import pytest

from services.gateway.http.openapi import document, rendered
from tests.gateway.conftest import Platform

pytestmark = pytest.mark.rpc

DOCUMENT = document()


async def test_the_gateway_serves_the_document_and_the_page(platform: Platform) -> None:
    served = await platform.http.get("/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.content == rendered()
    page = await platform.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy


async def test_the_page_shows_every_route_and_asks_nothing_of_others(platform: Platform) -> None:
    page = (await platform.http.get("/docs")).text
    for path, entries in DOCUMENT["paths"].items():
        assert path in page
        for entry in entries.values():
            assert f'id="{entry["operationId"]}"' in page
    for loading in ("<script", "<link", "<img", "src=", "@import", "url(", "style="):
        assert loading not in page
    assert set(re.findall(r'href="([^"]*)"', page)) <= {"/openapi.json"} | {
        f"#{tag['name']}" for tag in DOCUMENT["tags"]
    }
    assert json.dumps(DOCUMENT["info"]["title"]).strip('"') in page
