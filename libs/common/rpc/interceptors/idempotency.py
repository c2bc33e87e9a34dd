"""The repeat of a call is answered as the call was, and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from common.database.idempotency import Answer, AnswerExists
from common.errors import Unavailable
from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler
from common.rpc.metadata import IDEMPOTENCY_KEY, REPLAYED

# Subject, operation, key and hash of the request, as ``common.database`` finds answers by them.
FindAnswer = Callable[[str, str, str, bytes], Awaitable[Answer | None]]


class Idempotency:
    """Answers a repeat from the service's own records.

    Args:
        find_answer: looks in the service's database; None for a service that has none.
    """

    def __init__(self, find_answer: FindAnswer | None) -> None:
        self._find_answer = find_answer

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        find_answer = self._find_answer
        if operation.idempotent or find_answer is None:
            return handler

        async def find(exchange: Exchange) -> bytes | None:
            call = exchange.call
            answer = await find_answer(
                call.principal.subject,
                call.operation,
                call.idempotency_key or "",
                call.request_hash,
            )
            if answer is None:
                return None
            exchange.trailing.append((REPLAYED, "1"))
            call.etag = answer.etag
            return answer.message

        async def once(exchange: Exchange) -> bytes:
            call = exchange.call
            call.idempotency_key = exchange.metadata.get(IDEMPOTENCY_KEY)
            if not call.idempotency_key:
                return await handler(exchange)
            if call.principal.kind == "anonymous":
                # All of them are one subject; their addresses tell them apart.
                call.idempotency_key = f"{call.ip} {call.idempotency_key}"
            request = exchange.request.SerializeToString(deterministic=True)
            call.request_hash = hashlib.sha256(request).digest()
            answered = await find(exchange)
            if answered is not None:
                return answered
            try:
                return await handler(exchange)
            except AnswerExists:
                answered = await find(exchange)
            if answered is None:
                raise Unavailable("The same request is being answered.", retry_after=1)
            return answered

        return once
