"""One call on the server while it passes the interceptors, and what an interceptor is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from common.identity.call import Call
from common.rpc.contract import Operation


class Exchange:
    """A request and what becomes of it.

    ``message`` is the request once it has been parsed. ``code`` is the status that goes out, and
    ``trailing`` the metadata that goes with it.
    """

    __slots__ = ("body", "call", "code", "context", "message", "metadata", "trailing")

    def __init__(
        self, body: bytes, context: grpc.aio.ServicerContext[Any, Any], call: Call
    ) -> None:
        self.body = body
        self.context = context
        self.call = call
        self.metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.message: Message | None = None
        self.code = grpc.StatusCode.OK
        self.trailing: list[tuple[str, str | bytes]] = []

    @property
    def request(self) -> Message:
        """The parsed request.

        Raises:
            LookupError: it has not been parsed yet.
        """
        if self.message is None:
            raise LookupError("the request has not been parsed yet")
        return self.message


# Gives the serialized answer.
Handler = Callable[[Exchange], Awaitable[bytes]]

# Judges a call or notes something on it; raises what forbids it. Most have nothing to wait for,
# and then the call does not pay for it.
Check = Callable[[Exchange], Awaitable[None] | None]


class Interceptor(Protocol):
    """Stands around the handlers of operations."""

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        """``handler`` within this interceptor; called once for each operation, at start."""
        ...


class Judge(Protocol):
    """Judges calls before their handlers."""

    def check(self, operation: Operation) -> Check | None:
        """What each call of the operation has to pass; called once for each, at start."""
        ...
