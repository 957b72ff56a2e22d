"""The public web: httpx's own transport, kept away from all that only this machine or its network should reach.

A client with the transport `PublicWeb` looks a host up once, at every redirect anew, refuses it if any of its
addresses is not public, and connects to an address that was checked: looked up again, the name could lead elsewhere.
A client with a transport of its own uses no proxy, which would look names up by itself.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

LOOKUP_TIMEOUT_S = 5.0

GLOBAL_UNICAST = ip_network("2000::/3")  # of IPv6, all else being local, reserved, or IPv4 in disguise
NAT64 = ip_network("64:ff9b::/96")  # but this is how a network without IPv4 reaches the web: judged by its last 32 bits
NOT_PUBLIC = [  # whatever Python's `is_global` says, which depends on its version
    ip_network("192.0.0.0/24"),  # for protocols, and Oracle's metadata service
    ip_network("168.63.129.16"),  # Azure's services to a machine, seen only from there
    ip_network("2002::/16"),  # 6to4, any IPv4 address in disguise
    ip_network("3fff::/20"),  # for documentation
]


class NotPublicError(httpx.ConnectError):
    """A host has an address that is not public."""


class PublicWeb(httpx.AsyncHTTPTransport):
    """Connects to public addresses only. Raises `NotPublicError`, and what httpx raises."""

    def __init__(self) -> None:
        # No connection is kept: httpx would use it for any name at its address, whatever name was proved on it.
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode()
        failure: httpx.TransportError = httpx.ConnectError(f"{host} has no address")
        for address in await _checked_addresses(host):
            direct = httpx.Request(
                request.method,
                request.url.copy_with(host=str(address)),
                headers=request.headers,  # the name is in them
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": host},  # whose certificate it must be
            )
            try:
                return await super().handle_async_request(direct)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure


async def _checked_addresses(host: str) -> list[IPv4Address | IPv6Address]:
    """The first address of each kind, IPv4 first, since IPv6 more often leads nowhere. All of the host's are public."""
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:  # a timeout is one, too
        raise httpx.ConnectError(error.strerror or f"{host} was not looked up in time") from None
    addresses = [ip_address(where[0]) for *_, where in found]
    if not all(map(is_public, addresses)):
        raise NotPublicError(f"{host} has an address that is not public")
    first = {address.version: address for address in reversed(addresses)}
    return [first[version] for version in sorted(first)]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether anyone on the internet would reach the same machine at `address`."""
    if address in NAT64:
        address = IPv4Address(address.packed[-4:])
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    if any(address in network for network in NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast
