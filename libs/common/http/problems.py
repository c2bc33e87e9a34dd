"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from common.errors import MindWeaveError

PROBLEM_TYPE = "application/problem+json"
_RETRIED = (429, 503)


class MalformedRequest(MindWeaveError):
    """The request cannot be read as HTTP means it."""

    code, status, title = "malformed_request", 400, "The request is malformed"


class MethodNotAllowed(MindWeaveError):
    """The path exists and does not take this method."""

    code, status, title = "method_not_allowed", 405, "The method is not allowed"


class RequestTimeout(MindWeaveError):
    """The body did not arrive in time."""

    code, status, title = "request_timeout", 408, "The request took too long to arrive"


class TargetTooLong(MindWeaveError):
    """The request's path and query are longer than the limit."""

    code, status, title = "target_too_long", 414, "The path and query are too long"


class HeadersTooLarge(MindWeaveError):
    """The request's header fields are larger than the limit."""

    code, status, title = "headers_too_large", 431, "The header fields are too large"


def problem(
    error: MindWeaveError,
    *,
    instance: str,
    correlation_id: str,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """The answer that tells of an error.

    Args:
        error: what happened; its detail is shown, so it holds nothing of the inside.
        instance: path of the request.
        correlation_id: names the request in every log line.
        extra: further members of the problem object, such as ``rejected``.
    """
    body: dict[str, Any] = {
        "type": f"urn:mindweave:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "errors": [
            {"pointer": f.pointer, "code": f.code, "message": f.message} for f in error.fields
        ],
        "correlation_id": correlation_id,
        **(extra or {}),
    }
    headers = {}
    if error.status in _RETRIED or error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 0)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="mindweave"'
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, error.status, headers, media_type=PROBLEM_TYPE)
