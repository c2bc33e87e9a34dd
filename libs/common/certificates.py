"""What a failure to connect says of the server's certificate."""

from __future__ import annotations

import ssl


def refusal(error: BaseException | None) -> str | None:
    """Why the certificate was refused; None where something else went wrong."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None
