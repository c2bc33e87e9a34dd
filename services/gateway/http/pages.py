"""The public pages of the gateway."""

from __future__ import annotations

from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from common.http.app import Handler
from services.gateway.http.docs_page import content_security_policy, render
from services.gateway.http.openapi import document, rendered


def pages() -> dict[str, Handler]:
    """``/openapi.json`` and ``/docs``, made once, when somebody first asks for them."""
    described, policy = cache(rendered), content_security_policy()
    shown = cache(lambda: render(document()))

    async def openapi(_: Request) -> Response:
        return Response(described(), media_type="application/json")

    async def docs(_: Request) -> Response:
        headers = {"Content-Security-Policy": policy}
        return Response(shown(), headers=headers, media_type="text/html")

    return {"/openapi.json": openapi, "/docs": docs}
