"""A service's own REST handlers: by operation, and pages that no operation describes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class RestApp:
    """What a service answers over HTTP, to be mounted under the process's one ``Edge``.

    Attributes:
        handlers: by the operation's full name, ``/package.Service/Method``; route, permission and
            success status are the contract's.
        pages: public GET pages by path, such as ``/docs``.
    """

    handlers: Mapping[str, Handler] = field(default_factory=dict)
    pages: Mapping[str, Handler] = field(default_factory=dict)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; ``value`` is what msgspec encodes."""
    return Response(
        msgspec.json.encode(value), status, dict(headers or {}), media_type="application/json"
    )
