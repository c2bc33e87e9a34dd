"""The public pages of the gateway."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from common.http.app import Handler
from services.gateway.http.docs_page import content_security_policy, render
from services.gateway.http.openapi import document, rendered


def pages() -> dict[str, Handler]:
    """``/openapi.json`` and ``/docs``, made once."""
    described, shown, policy = rendered(), render(document()), content_security_policy()

    async def openapi(_: Request) -> Response:
        return Response(described, media_type="application/json")

    async def docs(_: Request) -> Response:
        return Response(shown, headers={"Content-Security-Policy": policy}, media_type="text/html")

    return {"/openapi.json": openapi, "/docs": docs}
