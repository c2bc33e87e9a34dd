"""The document's entry of one operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from common.http.body import JSON_TYPES, MAX_BODY
from common.rpc.contract import Operation, Route, contract_comments, operations
from services.gateway.http.openapi.schemas import Schemas
from services.gateway.http.openapi.standing import (
    LIMITED,
    PROBLEMS,
    SECURITY,
    TRACED,
    Json,
    headers,
    refer,
)
from services.gateway.http.routes import (
    MERGE_PATCH,
    clearable_fields,
    path_fields,
    route_of,
    versioned_operations,
)
from services.gateway.http.shapes import Field, fields_of

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MEANINGS = {200: "Done.", 201: "Created.", 202: "Taken.", 204: "Done; there is no content."}


def entry(operation: Operation, schemas: Schemas) -> Json:
    """The operation object, without a body or answer where its service serves it by itself."""
    route = route_of(operation)
    made: Json = {
        "operationId": operation_id(operation),
        "tags": [operation.service],
        "summary": operation.summary.partition(". ")[0].rstrip(".") + ".",
        "description": _description(operation),
        "security": [] if operation.public else SECURITY,
    }
    if not operation.public:
        made["x-mindweave-permission"] = operation.permission
    parameters = [*_parameters(operation, route, schemas)]
    if parameters:
        made["parameters"] = parameters
    if not operation.raw:
        if route.body:
            made["requestBody"] = _body(operation, route, schemas)
        made["responses"] = {str(operation.success_status): _success(operation, route, schemas)}
        made["responses"] |= problems(operation)
    return made


def operation_id(operation: Operation) -> str:
    """Unique in the document: "auth_create_api_key"."""
    return f"{operation.service}_{_WORDS.sub('_', operation.method).lower()}"


def problems(operation: Operation) -> Json:
    """The problems that an operation may answer with."""
    return {str(status): refer("responses", PROBLEMS[status][0]) for status in _statuses(operation)}


def success(operation: Operation, content: Json | None, *more: str) -> Json:
    """The answer of a success."""
    made: Json = {
        "description": _MEANINGS[operation.success_status],
        "headers": headers(*TRACED, *LIMITED, *more),
    }
    if content is not None:
        made["content"] = content
    return made


def _statuses(operation: Operation) -> list[int]:
    route = route_of(operation)
    found = {422, 429, 500, 503, 504}
    if not operation.public:
        found |= {401, 403}
    elif route.verb == "POST" and operation.idempotent:
        # It takes a secret: a password, a token.
        found.add(401)
    if path_fields(route) or operation.tenant != "none":
        found.add(404)
    if route.body:
        found |= {408, 413, 415}
    if _in_query(operation, route):
        found.add(414)
    if not operation.idempotent:
        found.add(409)
    if operation.full_name in versioned_operations():
        found.add(412)
    return sorted(found)


def _description(operation: Operation) -> str:
    if operation.public:
        return f"{operation.summary} Needs no credential."
    return f"{operation.summary} Needs the permission `{operation.permission}`."


def _parameters(operation: Operation, route: Route, schemas: Schemas) -> Iterator[Json]:
    fields = fields_of(operation.request)
    in_path = path_fields(route)
    for name in in_path:
        yield _parameter(fields[name], "path", schemas)
    for field in _in_query(operation, route):
        yield _parameter(field, "query", schemas)
    if not operation.idempotent:
        yield refer("parameters", "IdempotencyKey")
    if operation.full_name in versioned_operations():
        yield refer("parameters", "IfMatch")
    yield refer("parameters", "CorrelationId")


def _in_query(operation: Operation, route: Route) -> list[Field]:
    if route.body or operation.raw:
        return []
    in_path = path_fields(route)
    fields = fields_of(operation.request).values()
    return [field for field in fields if field.name not in in_path and field.kind != "mask"]


def _parameter(field: Field, place: str, schemas: Schemas) -> Json:
    schema = schemas.parameter(field)
    made: Json = {
        "name": field.name,
        "in": place,
        "required": place == "path" or field.required,
        "schema": schema,
    }
    comment = contract_comments().get(field.full_name)
    if comment:
        made["description"] = comment
    if field.repeated:
        made |= {"style": "form", "explode": False}
    if place == "path" or field.repeated:
        made["example"] = schemas.example_named(field.name, schema)
    return made


def _body(operation: Operation, route: Route, schemas: Schemas) -> Json:
    patch = route.verb == "PATCH"
    schema = schemas.request(
        operation.request,
        hidden=path_fields(route),
        partial=patch,
        clearable=clearable_fields(operation) if patch else (),
    )
    content = {"schema": schema, "example": schemas.example(schema)}
    types = (*JSON_TYPES, MERGE_PATCH) if patch else JSON_TYPES
    told = "A merge patch (RFC 7396): fields that are named change. " if patch else ""
    return {
        "required": True,
        "description": f"{told}At most {MAX_BODY} bytes; may be sent gzip- or zstd-encoded.",
        "content": dict.fromkeys(types, content),
    }


def _success(operation: Operation, route: Route, schemas: Schemas) -> Json:
    more = ["ETag"] if _has_etag(operation, route) else []
    if not operation.idempotent:
        more.append("Idempotent-Replayed")
    if operation.success_status == 204:
        return success(operation, None, *(m for m in more if m != "ETag"))
    shown = operation.response
    if route.response_body:
        shown = fields_of(shown)[route.response_body].inner
    schema = schemas.answer(shown)
    content: dict[str, Any] = {"schema": schema, "example": schemas.example(schema)}
    return success(operation, {"application/json": content}, *more)


def _has_etag(operation: Operation, route: Route) -> bool:
    """Whether the answer shows something that a PATCH with If-Match can change."""
    patched = {route_of(operations()[name]).template for name in versioned_operations()}
    if route.verb in ("GET", "PATCH"):
        return route.template in patched
    collection = f"{route.template}/{{"
    return route.verb == "POST" and any(
        t.startswith(collection) and t.count("/") == route.template.count("/") + 1 for t in patched
    )
