"""What every operation shares: problems, header fields, credentials, health."""

from __future__ import annotations

from typing import Any

from common.http.problems import PROBLEM_TYPE
from services.gateway.http.openapi.examples import UUIDS

Json = dict[str, Any]

SECURITY_SCHEMES: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access token of POST /auth/login, or an API key (mwu_… or mwp_…).",
    },
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An API key (mwu_… or mwp_…).",
    },
}
SECURITY: list[Json] = [{"bearer": []}, {"api_key": []}]

HEADERS: Json = {
    "X-Correlation-Id": {
        "description": "Names this request in logs and events; the caller's own where it sent one.",
        "schema": {"type": "string", "maxLength": 128},
    },
    "traceparent": {
        "description": "The W3C trace context of this request.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": 'Quota and window in seconds, such as "requests";q=2000;w=1.',
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": 'What remains, and seconds to the next window: "requests";r=1999;t=1.',
        "schema": {"type": "string"},
    },
    "X-RateLimit-Limit": {
        "description": "Requests in a window.",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Remaining": {
        "description": "Requests left in this window.",
        "schema": {"type": "integer"},
    },
    "X-RateLimit-Reset": {
        "description": "Seconds to the next window.",
        "schema": {"type": "integer"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "ETag": {
        "description": "The version of the resource, for If-Match.",
        "schema": {"type": "string"},
        "example": '"3"',
    },
    "Idempotent-Replayed": {
        "description": "`true` where this is the first answer to the same Idempotency-Key again.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "WWW-Authenticate": {"schema": {"type": "string"}, "example": 'Bearer realm="mindweave"'},
}
TRACED = ("X-Correlation-Id", "traceparent")
LIMITED = (
    "RateLimit-Policy",
    "RateLimit",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
)

PARAMETERS: Json = {
    "CorrelationId": {
        "name": "X-Correlation-Id",
        "in": "header",
        "description": "A name for this request in logs and events: up to 128 letters, digits and"
        " . _ : -; one is made where it is absent or another.",
        "schema": {"type": "string"},
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key and body within 24 h: the first answer again. The same key"
        " and another body: 422 `idempotency_key_reused`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": "The ETag that the resource must still have; another one is a 412.",
        "schema": {"type": "string"},
        "example": '"3"',
    },
}

PROBLEM: Json = {
    "description": "Problem details (RFC 9457).",
    "type": "object",
    "required": [
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "code",
        "errors",
        "correlation_id",
    ],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What happened, and what to change."},
        "instance": {"type": "string", "description": "The path of the request."},
        "code": {"type": "string", "description": "What happened, for programs."},
        "errors": {
            "type": "array",
            "description": "One for each wrong field or parameter.",
            "items": {"$ref": "#/components/schemas/FieldProblem"},
        },
        "correlation_id": {"type": "string"},
    },
}
FIELD_PROBLEM: Json = {
    "type": "object",
    "required": ["pointer", "code", "message"],
    "properties": {
        "pointer": {
            "type": "string",
            "description": "JSON pointer (RFC 6901) into the body, or / and a parameter's name.",
        },
        "code": {"type": "string"},
        "message": {"type": "string"},
    },
}

# Name, code and meaning of each problem, by status.
PROBLEMS: dict[int, tuple[str, str, str]] = {
    401: ("Unauthenticated", "unauthenticated", "No credential, or one that is not valid now."),
    403: ("PermissionDenied", "permission_denied", "The caller may not do this."),
    404: ("NotFound", "not_found", "It does not exist, or the caller may not know that it does."),
    408: ("RequestTimeout", "request_timeout", "The body did not arrive in time."),
    409: ("Conflict", "conflict", "The state of things forbids it."),
    412: ("PreconditionFailed", "precondition_failed", "The resource has another ETag now."),
    413: ("PayloadTooLarge", "payload_too_large", "The body is too large."),
    414: ("TargetTooLong", "target_too_long", "The path and query are too long."),
    415: ("UnsupportedMediaType", "unsupported_media_type", "Another content type or encoding."),
    422: (
        "Invalid",
        "missing_field",
        "The request's shape is wrong; `errors` names each field, `code` what they share.",
    ),
    429: ("RateLimited", "rate_limited", "Too many requests."),
    500: ("InternalError", "internal", "Something went wrong here."),
    503: ("Unavailable", "unavailable", "A part that is needed is down or full."),
    504: ("DeadlineExceeded", "deadline_exceeded", "The answer did not come in time."),
}


def refer(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def headers(*names: str) -> Json:
    return {name: refer("headers", name) for name in names}


def problem_responses() -> Json:
    """``components.responses``: one for each status in ``PROBLEMS``."""
    made: Json = {}
    for status, (name, code, meaning) in PROBLEMS.items():
        shown = [*TRACED, *LIMITED]
        if status in (429, 503):
            shown.append("Retry-After")
        if status == 401:
            shown.append("WWW-Authenticate")
        made[name] = {
            "description": meaning,
            "headers": headers(*shown),
            "content": {
                PROBLEM_TYPE: {
                    "schema": refer("schemas", "Problem"),
                    "example": _example(status, code, meaning),
                }
            },
        }
    return made


def _example(status: int, code: str, meaning: str) -> Json:
    wrong = {"pointer": "/name", "code": "missing_field", "message": "is required"}
    return {
        "type": f"urn:mindweave:problem:{code}",
        "title": meaning.rstrip(".").partition(";")[0],
        "status": status,
        "detail": meaning,
        "instance": "/orgs",
        "code": code,
        "errors": [wrong] if status == 422 else [],
        "correlation_id": UUIDS["event_id"],
    }


def platform_paths() -> Json:
    """Routes that no proto describes; all are public."""
    service = {
        "type": "object",
        "required": ["name", "ready", "version", "parts"],
        "properties": {
            "name": {"type": "string"},
            "ready": {"type": "boolean"},
            "version": {"type": "string"},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "ready", "detail", "lag"],
                    "properties": {
                        "name": {"type": "string"},
                        "ready": {"type": "boolean"},
                        "detail": {"type": "string"},
                        "lag": {"type": ["integer", "null"], "minimum": 0},
                    },
                },
            },
        },
    }
    readiness = {
        "type": "object",
        "required": ["status", "services"],
        "properties": {
            "status": {"type": "string", "enum": ["ok", "unavailable"]},
            "services": {"type": "array", "items": service},
        },
    }
    alive = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string", "enum": ["ok"]}},
    }
    unready = _page("What is missing.", "application/json", readiness, TRACED)
    unready["headers"] |= headers("Retry-After")
    dead = _page("What only a new process can help.", "application/json", readiness, TRACED)
    return {
        "/health/live": _get("get_liveness", "Whether the process runs.", alive, {"503": dead}),
        "/health/ready": _get(
            "get_readiness", "Whether every part can do its work.", readiness, {"503": unready}
        ),
        "/openapi.json": _limited("get_openapi", "This document.", "application/json", "object"),
        "/docs": _limited("get_docs", "This document, to read.", "text/html", "string"),
    }


def _get(operation_id: str, summary: str, schema: Json, more: Json | None = None) -> Json:
    answer = _page(summary, "application/json", schema, TRACED)
    return _public(operation_id, summary, {"200": answer, **(more or {})})


def _limited(operation_id: str, summary: str, kind: str, value: str) -> Json:
    answer = _page(summary, kind, {"type": value}, (*TRACED, *LIMITED))
    return _public(
        operation_id, summary, {"200": answer, "429": refer("responses", PROBLEMS[429][0])}
    )


def _public(operation_id: str, summary: str, responses: Json) -> Json:
    return {
        "get": {
            "operationId": operation_id,
            "tags": ["platform"],
            "summary": summary,
            "security": [],
            "responses": responses,
        }
    }


def _page(description: str, kind: str, schema: Json, shown: tuple[str, ...]) -> Json:
    return {
        "description": description,
        "headers": headers(*shown),
        "content": {kind: {"schema": schema}},
    }
