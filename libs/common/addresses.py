"""Internet addresses as limits count them."""

from __future__ import annotations

import ipaddress


def address_line(host: str) -> str:
    """The line that an address comes from: an IPv6 network of 64 bits is one caller's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
