"""HTTP without TLS, as all of it is here."""

from __future__ import annotations

import ssl

# Trusts nobody. Without it each client reads the list of authorities, 30 ms of processor time.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
