"""Which addresses are on the public Internet."""

from __future__ import annotations

import ipaddress

UNICAST = ipaddress.ip_network("2000::/3")  # the rest of IPv6 is private, reserved, or stands for IPv4
SIX_TO_FOUR = ipaddress.ip_network("2002::/16")  # an IPv4 address is in it, which may be private


def is_public(address: str) -> bool:
    """Whether ``address`` is one host's on the public Internet, and names no address of another network."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in UNICAST or ip in SIX_TO_FOUR):
        return False
    return ip.is_global and not ip.is_multicast
