"""Internet addresses: as limits count them, and as this process reaches them."""

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


def reachable(host: str) -> str:
    """Where this process finds what listens on ``host``."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host
    return "127.0.0.1" if everywhere else host
