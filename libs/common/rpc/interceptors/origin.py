"""Where a call comes from: its correlation id, and the user's address and program."""

from __future__ import annotations

from common.rpc.exchange import Exchange
from common.rpc.metadata import IP, USER_AGENT
from common.telemetry import CORRELATION_HEADER, accepted_correlation_id, bind_correlation_id


def note_origin(exchange: Exchange) -> None:
    """Bind the correlation id for everything that follows from the call."""
    offered, call = exchange.metadata, exchange.call
    call.correlation_id = accepted_correlation_id(offered.get(CORRELATION_HEADER))
    bind_correlation_id(call.correlation_id)
    call.ip = offered.get(IP)
    call.user_agent = offered.get(USER_AGENT)
