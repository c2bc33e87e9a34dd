"""The whole document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

from common.rpc.contract import Operation, contract_comments, operations
from services.gateway.http.openapi import raw
from services.gateway.http.openapi.paths import entry
from services.gateway.http.openapi.schemas import Schemas
from services.gateway.http.openapi.standing import (
    FIELD_PROBLEM,
    HEADERS,
    PARAMETERS,
    PROBLEM,
    SECURITY,
    SECURITY_SCHEMES,
    Json,
    platform_paths,
    problem_responses,
)
from services.gateway.http.routes import route_of

_DESCRIPTION = """\
Metering, pricing, analysis and governance of what organizations do with language models and MCP \
tools.

Numbers are JSON numbers; money is a decimal string in USD with nine decimals; times are RFC 3339 \
in UTC; ids are UUIDs. Every field is present in an answer, null where there is none. Field names \
are snake_case; an unknown field or parameter is refused by name. A request is judged in this \
order: 401, 413 and 415, 422, 404 or 403, then 409 and 412. Lists answer `next_page_token`, to be \
sent as `page_token`."""


def document() -> Json:
    """The OpenAPI 3.1 document as a JSON object."""
    schemas = Schemas()
    schemas.components |= {"Problem": PROBLEM, "FieldProblem": FIELD_PROBLEM}
    routed = [o for o in operations().values() if o.route is not None]
    paths: Json = {}
    for operation in routed:
        route = route_of(operation)
        made = entry(operation, schemas)
        if operation.raw:
            raw.complete(operation, made, schemas)
        paths.setdefault(route.template, {})[route.verb.lower()] = made
    raw.amend(schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MindWeave",
            "version": version("mindweave"),
            "description": _DESCRIPTION,
        },
        "servers": [{"url": "/"}],
        "security": SECURITY,
        "tags": _tags(routed),
        "paths": paths | platform_paths(),
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": problem_responses(),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


@cache
def rendered() -> bytes:
    """The document as the text that is served and kept in ``docs/api``."""
    return (json.dumps(document(), indent=2, ensure_ascii=False) + "\n").encode()


def _tags(routed: Iterable[Operation]) -> list[dict[str, Any]]:
    described = {o.service: contract_comments().get(o.grpc_service, "") for o in routed}
    tags = [{"name": name, "description": text} for name, text in described.items()]
    return [*tags, {"name": "platform", "description": "Health and documentation."}]
