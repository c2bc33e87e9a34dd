"""What a handler raises, as a status that says what the caller may know."""

from __future__ import annotations

from common.errors import MindWeaveError
from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler
from common.rpc.metadata import RETRY_PUSHBACK, STATUS_DETAILS
from common.rpc.status import status_code, status_of
from common.telemetry import Telemetry

# A server that has judged a call has judged it: only what never reached one is tried again, else
# each service between would multiply the tries.
_DO_NOT_RETRY = (RETRY_PUSHBACK, "-1")


class Errors:
    """Turns errors into statuses. Of one that nobody expected only the correlation id goes out."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._log = telemetry.log

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        log = self._log

        async def guarded(exchange: Exchange) -> bytes:
            try:
                return await handler(exchange)
            except MindWeaveError as error:
                if error.status == MindWeaveError.status:
                    log.exception("a call failed", operation=operation.name)
                    return _answer(exchange, _unexpected(exchange))
                return _answer(exchange, error)
            except Exception:
                log.exception("a call failed", operation=operation.name)
                return _answer(exchange, _unexpected(exchange))

        return guarded


def _unexpected(exchange: Exchange) -> MindWeaveError:
    return MindWeaveError(f"Something went wrong here; report {exchange.call.correlation_id}.")


def _answer(exchange: Exchange, error: MindWeaveError) -> bytes:
    exchange.code = status_code(error)
    status = status_of(error, exchange.call.correlation_id)
    exchange.context.set_code(exchange.code)
    exchange.context.set_details(status.message)
    exchange.trailing = [(STATUS_DETAILS, status.SerializeToString()), _DO_NOT_RETRY]
    return b""
