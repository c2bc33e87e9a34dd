"""Errors that callers see: what happened, in words that say what to change.

A service's domain errors derive from these. The kit's interceptor turns them into gRPC statuses
and the gateway into problem details; no service maps an error itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field. ``pointer`` is a JSON pointer (RFC 6901) into the body or a parameter."""

    pointer: str
    code: str
    message: str


class MindWeaveError(Exception):
    """An error with a stable ``code`` (snake_case), an HTTP ``status`` and a safe ``detail``."""

    code = "internal"
    status = 500
    title = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        fields: Sequence[FieldError] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.code = code or type(self).code
        self.fields = tuple(fields)
        self.retry_after = retry_after


class Unauthenticated(MindWeaveError):
    """No credential, or one that is not valid any more."""

    code, status, title = "unauthenticated", 401, "Authentication is needed"


class PermissionDenied(MindWeaveError):
    """The caller is known and may not do this."""

    code, status, title = "permission_denied", 403, "Not permitted"


class NotFound(MindWeaveError):
    """It does not exist, or the caller may not know that it does."""

    code, status, title = "not_found", 404, "Not found"


class Conflict(MindWeaveError):
    """The state of things forbids it."""

    code, status, title = "conflict", 409, "Conflict"


class PreconditionFailed(MindWeaveError):
    """If-Match names another version than the current one."""

    code, status, title = "precondition_failed", 412, "The resource has changed"


class PayloadTooLarge(MindWeaveError):
    """The body or a part of it is larger than the limit."""

    code, status, title = "payload_too_large", 413, "The body is too large"


class UnsupportedMediaType(MindWeaveError):
    """The content type or encoding is not one that this route takes."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class Invalid(MindWeaveError):
    """The request's shape is wrong; ``fields`` names each field.

    Its code, where none is given, is the one that all its fields share.
    """

    code, status, title = "invalid", 422, "The request is not valid"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        fields: Sequence[FieldError] = (),
        retry_after: float | None = None,
    ) -> None:
        shared = {field.code for field in fields}
        if code is None and len(shared) == 1:
            code = shared.pop()
        super().__init__(detail, code=code, fields=fields, retry_after=retry_after)


class RateLimited(MindWeaveError):
    """Too many requests; ``retry_after`` is in seconds."""

    code, status, title = "rate_limited", 429, "Too many requests"


class Unavailable(MindWeaveError):
    """A part that is needed is down or full; ``retry_after`` is in seconds."""

    code, status, title = "unavailable", 503, "Temporarily unavailable"


class DeadlineExceeded(MindWeaveError):
    """The answer did not come in time."""

    code, status, title = "deadline_exceeded", 504, "The deadline has passed"


class NotReady(Exception):
    """What a process depends on did not come up in time; the message names it."""
