"""What a failure to connect says of the server's certificate."""

from __future__ import annotations

import ssl

# OpenSSL's codes where none of the trusted authorities has signed, or its certificate is missing.
_NOT_TRUSTED = frozenset({2, 18, 19, 20, 21})


def refusal(error: BaseException | None, setting: str) -> str | None:
    """Why the certificate was refused; None where something else went wrong.

    Args:
        error: what came of the attempt to connect.
        setting: names the authorities that are trusted; told of where that is what is wrong.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _NOT_TRUSTED:
                return f"{error.verify_message}; {setting} names the authorities that are trusted"
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None
