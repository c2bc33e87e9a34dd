"""The version that a caller expects, and the one it is told."""

from __future__ import annotations

from common.errors import PreconditionFailed
from common.rpc.exchange import Exchange
from common.rpc.metadata import ETAG, IF_MATCH


def note_expected_version(exchange: Exchange) -> None:
    """Hand If-Match to the handler.

    Raises:
        PreconditionFailed: it is no version of ours, so that no row has it.
    """
    expected = exchange.metadata.get(IF_MATCH)
    if expected is not None:
        if not expected.isdecimal():
            raise PreconditionFailed
        exchange.call.if_match = int(expected)


def tell_version(exchange: Exchange) -> None:
    """Send the ETag that the handler has set."""
    if exchange.call.etag is not None:
        exchange.trailing.append((ETAG, str(exchange.call.etag)))
