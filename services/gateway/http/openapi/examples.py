"""Example values, by what a field is called and may hold."""

from __future__ import annotations

from typing import Any

UUIDS = {
    "id": "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11",
    "org_id": "0199a3f2-6a10-7c41-9d5e-3b8f0c2a7e11",
    "project_id": "0199a3f4-0b52-7a19-8c33-51d2f6e9a004",
    "team_id": "0199a3f4-4c1e-7f02-9b7a-0d6e8a3c5512",
    "user_id": "0199a3f0-91d7-7b60-a2f4-6e5c1d8b9033",
    "api_key_id": "0199a3f5-e7a8-7d33-8e21-94b0c7f1d266",
    "key_id": "0199a3f5-e7a8-7d33-8e21-94b0c7f1d266",
    "event_id": "0199a401-2f6b-7e88-b1c9-a7d35e0f4c18",
    "decision_id": "0199a401-3a90-7014-9a56-c2e8b7d1f377",
}
_TIMES = {
    "expires_at": "2030-01-01T00:00:00Z",
    "end": "2026-03-02T00:00:00Z",
    "effective_until": "2027-03-01T00:00:00Z",
    "last_at": "2026-03-01T09:30:00Z",
    "updated_at": "2026-03-01T09:30:00Z",
    "fresh_until": "2026-03-01T12:00:00Z",
}
_TIME = "2026-03-01T00:00:00Z"
_VALUES: dict[str, Any] = {
    "access_token": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIuLi4ifQ.c2lnbmF0dXJl",
    "refresh_token": "mwr_pV0s7mZ1kq4Xc9Tt2Lw8Yb",
    "token_type": "Bearer",
    "expires_in": 600,
    "email": "user@example.com",
    "password": "a phrase of several words",
    "current_password": "the phrase used until now",
    "display_name": "A User",
    "name": "Research",
    "slug": "research",
    "key": "mwp_3fK9qLx7Rz2WcN5vTb8YdH1m",
    "prefix": "mwp_3fK9",
    "ip": "192.0.2.10",
    "user_agent": "example-client/1.0",
    "kty": "OKP",
    "crv": "Ed25519",
    "alg": "EdDSA",
    "use": "sig",
    "kid": "2026-03",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "model": "claude-sonnet-4-5",
    "provider": "anthropic",
    "service_tier": "standard",
    "mcp_server": "com.example/files",
    "tool": "read_file",
    "granularity": "day",
    "period": "24h",
    "status": "ok",
    "code": "too_old",
    "field": "timestamp",
    "message": "timestamp is older than 7 days",
    "share": 0.25,
    "page_size": 50,
    "latency_ms": 812.5,
    "latency_ms_avg": 812.5,
    "latency_ms_p95": 1904.0,
    "events": 1280,
    "errors": 3,
    "unpriced_events": 0,
    "input_tokens": 48211,
    "output_tokens": 9034,
    "cache_read_tokens": 120000,
    "cache_write_tokens": 4096,
    "accepted": 2,
    "index": 2,
    "cost_usd": "0.001234500",
    "client_cost_usd": "0.001300000",
    "difference_usd": "0.000065500",
    "usd_per_million": "3.000000000",
    "prompt_over": 200000,
    "discount_bp": 500,
    "metadata": {"feature": "search"},
    "metadata_json": '{"feature":"search"}',
    "event_type": "api_call",
    "role": "member",
    "email_verified": True,
    "request_id": "req_01",
    "session_id": "session-42",
}
_LISTS: dict[str, list[Any]] = {
    "scopes": ["events:write", "analytics:read"],
    "group_by": ["model", "project_id"],
    "rejected": [],
}


def example_of(name: str, schema: dict[str, Any]) -> Any:
    """A value for a field that is neither an object nor an array of objects."""
    if schema.get("format") == "uuid":
        return UUIDS.get(name, UUIDS["id"])
    if schema.get("format") == "date-time":
        return _TIMES.get(name, _TIME)
    types = schema.get("type", "string")
    kind = types if isinstance(types, str) else types[0]
    if kind == "array":
        return _LISTS.get(name, [])
    if name in _VALUES:
        return _VALUES[name]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("pattern"):
        return "0.001234500"
    return {"integer": 0, "number": 0.0, "boolean": False, "null": None}.get(kind, "text")
