"""What travels beside a call. Only the kit sets and reads it; what it does not know it ignores."""

from __future__ import annotations

CALLER = "x-mindweave-caller"
PRINCIPAL = "authorization"
IDEMPOTENCY_KEY = "idempotency-key"
IF_MATCH = "if-match"
IP = "x-mindweave-ip"
USER_AGENT = "x-mindweave-user-agent"
ACTING_FOR = "x-mindweave-acting-for"

# In answers.
ETAG = "x-mindweave-etag"
REPLAYED = "x-mindweave-replayed"
STATUS_DETAILS = "grpc-status-details-bin"
RETRY_PUSHBACK = "grpc-retry-pushback-ms"

BEARER = "Bearer "

# A service calls these two before it has a token of its own, or can judge one.
WITHOUT_CALLER = frozenset(
    {
        "/mindweave.auth.v1.AuthService/IssueServiceToken",
        "/mindweave.auth.v1.AuthService/GetJwks",
    }
)
