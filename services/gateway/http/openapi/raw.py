"""The entries of routes that usage_tracker serves by itself, as api.md has them."""

from __future__ import annotations

from common.http.problems import PROBLEM_TYPE
from common.rpc.contract import Operation
from services.gateway.http.openapi.examples import UUIDS
from services.gateway.http.openapi.paths import problems, success
from services.gateway.http.openapi.schemas import Schemas
from services.gateway.http.openapi.standing import LIMITED, TRACED, Json, headers, refer
from services.gateway.http.shapes import fields_of

_EVENT = {
    "event_id": UUIDS["event_id"],
    "timestamp": "2026-03-01T11:58:03.120Z",
    "event_type": "api_call",
    "model": "claude-sonnet-4-5",
    "provider": "anthropic",
    "input_tokens": 1200,
    "output_tokens": 340,
    "cache_read_tokens": 8000,
    "latency_ms": 812.5,
    "status": "ok",
}
_REJECTED = {
    "index": 1,
    "code": "too_old",
    "field": "timestamp",
    "message": "is older than raw events are kept",
}
_MAX_COST_USD = 1_000_000_000
# What each type of event cannot do without.
_NEEDED = {"api_call": ("model",), "mcp_tool": ("mcp_server", "tool"), "session": ("session_id",)}


def complete(operation: Operation, made: Json, schemas: Schemas) -> None:
    """Add to an entry what a route served by hand takes and answers."""
    _COMPLETE[operation.method](operation, made, schemas)


def _send_events(operation: Operation, made: Json, schemas: Schemas) -> None:
    schema = schemas.request(operation.request)
    made["description"] += (
        " Each event is judged by itself: the good ones are kept, the bad ones named by their"
        " index. An event seen before counts as accepted. The answer comes when the broker has the"
        " batch."
    )
    made["requestBody"] = {
        "required": True,
        "description": "1 to 10,000 events; at most 10 MB (10,000,000 bytes) after decompression;"
        " may be sent gzip- or zstd-encoded.",
        "content": {"application/json": {"schema": schema, "example": {"events": [_EVENT]}}},
    }
    answered = {"accepted": 1, "accepted_at": "2026-03-01T11:58:03.480211Z"}
    made["responses"] = {
        "202": success(
            operation,
            {
                "application/json": {
                    "schema": schemas.answer(operation.response),
                    "example": {**answered, "rejected": [_REJECTED]},
                }
            },
        ),
        **problems(operation),
        "422": _none_accepted(),
    }


def _track(operation: Operation, made: Json, schemas: Schemas) -> None:
    schema = schemas.request(fields_of(operation.request)["event"].inner)
    made["description"] += (
        " The event may leave out `event_id`; with an Idempotency-Key it is made from the key, so"
        " that a repeat counts once."
    )
    made["parameters"] = [refer("parameters", "IdempotencyKey"), *made["parameters"]]
    example = {name: value for name, value in _EVENT.items() if name != "event_id"}
    made["requestBody"] = {
        "required": True,
        "description": "One event; may be sent gzip- or zstd-encoded.",
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    answer = schemas.answer(operation.response)
    content = {"application/json": {"schema": answer, "example": schemas.example(answer)}}
    made["responses"] = {"202": success(operation, content), **problems(operation)}


def _health(operation: Operation, made: Json, schemas: Schemas) -> None:
    schema = schemas.answer(operation.response)
    content = {"application/json": {"schema": schema, "example": {"status": "ok"}}}
    down = success(
        operation,
        {"application/json": {"schema": schema, "example": {"status": "unavailable"}}},
        "Retry-After",
    )
    down["description"] = "Events are not taken now."
    made["responses"] = {"200": success(operation, content), **problems(operation), "503": down}


def _metrics(operation: Operation, made: Json, _: Schemas) -> None:
    content = {"text/plain": {"schema": {"type": "string"}}}
    made["responses"] = {"200": success(operation, content), **problems(operation)}


def _none_accepted() -> Json:
    return {
        "description": "The body's shape is wrong, or every event was rejected: `rejected` then"
        " names each.",
        "headers": headers(*TRACED, *LIMITED),
        "content": {
            PROBLEM_TYPE: {
                "schema": {
                    "allOf": [
                        refer("schemas", "Problem"),
                        {
                            "type": "object",
                            "properties": {
                                "rejected": {
                                    "type": "array",
                                    "items": refer("schemas", "usage_tracker.RejectedEvent"),
                                }
                            },
                        },
                    ]
                }
            }
        },
    }


def amend(schemas: Schemas) -> None:
    """Add what the proto's rules cannot say, once every entry is made."""
    batch = schemas.components["usage_tracker.SendEventsRequest"]
    batch["properties"]["events"]["items"] = {
        "allOf": [refer("schemas", "usage_tracker.UsageEvent"), {"required": ["event_id"]}]
    }
    event = schemas.components["usage_tracker.UsageEvent"]
    money = event["properties"]["cost_usd"]
    money |= {"type": ["number", "string", "null"], "minimum": 0, "maximum": _MAX_COST_USD}
    event["allOf"] = [
        {
            "if": {"properties": {"event_type": {"const": kind}}, "required": ["event_type"]},
            "then": {
                "required": list(names),
                "properties": {name: {"type": "string"} for name in names},
            },
        }
        for kind, names in _NEEDED.items()
    ]


_COMPLETE = {
    "SendEvents": _send_events,
    "Track": _track,
    "GetHealth": _health,
    "GetMetrics": _metrics,
}
