# SPDX-License-Identifier: Apache-2.0
"""Which network addresses may be read: an address is taken apart once, looked up once, and every answer is checked.

What is checked is what is connected to. The text of a host (127.1, 0x7f000001, full-width digits, a name whose answer
changes) is never judged, only the numbers that the resolver gives for it.
"""

import ipaddress
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass
from typing import Any

from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import shown

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?\.?")
_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""What stays as it is in the path and the query of a request (RFC 3986, and % because they come quoted)."""


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# IANA's registries of special-purpose addresses. They stand here and are not left to ``is_global``, which changed
# between Python versions and calls NAT64, 6to4, multicast and 192.0.0.8 global.
_SPECIAL = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
)  # fmt: skip
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""The part of IPv6 that is given out for public use; loopback, unique-local, link-local and NAT64 lie outside."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def free_ports(count: int) -> list[int]:
    """So many different ports of this machine that nobody listens at."""
    found = [socket.socket() for _ in range(count)]
    try:
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
    finally:
        for one in found:
            one.close()


@dataclass(frozen=True)
class Address:
    """An http(s) address in parts. ``host`` is ASCII without brackets, ``target`` the quoted path and query."""

    text: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """The host as a request names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class Endpoint:
    """What a socket is opened with and connected to: numbers only."""

    family: int
    place: tuple[Any, ...]


def parse(text: str) -> Address:
    """Take an address apart. DataError for another scheme, user and password, blanks, and what is no host or port."""
    if "\\" in text or any(ord(letter) <= 32 or ord(letter) == 127 for letter in text):
        raise DataError(f'"{shown(text)}": not an address (it holds a backslash, a blank or a control character)')
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname or "", parts.port
        target = urllib.parse.quote(parts.path or "/", safe=_SAFE)
        target += "?" + urllib.parse.quote(parts.query, safe=_SAFE) if parts.query else ""
    except ValueError as error:
        raise DataError(f"{shown(text)}: not an address ({error}); check the host and the port in it") from error
    if parts.scheme not in PORTS:
        raise DataError(f'{shown(text)}: only http and https addresses can be read, not "{shown(parts.scheme, 40)}"')
    if "@" in parts.netloc:
        raise DataError(f"{shown(text)}: expected a host name without user and password")
    if "[" in parts.netloc and ":" not in host:  # Python 3.11 and later refuse it themselves
        raise DataError(f"{shown(text)}: brackets in a host are for IPv6 addresses")
    port = PORTS[parts.scheme] if port is None else port
    if port == 0:
        raise DataError(f"{shown(text)}: port 0 is none; leave it out or give the real one")
    return Address(text, parts.scheme, _ascii_host(host, text), port, target)


def redirected(address: Address, location: str) -> Address:
    """The address that a redirect of ``address`` leads to, checked like the first. DataError when it is none."""
    try:
        target = urllib.parse.urljoin(address.text, location)
    except ValueError as error:
        raise DataError(f"{shown(location)}: not an address ({error})") from error
    return parse(target)


def _ascii_host(host: str, text: str) -> str:
    """The host in the one spelling that is looked up, sent and compared with the certificate."""
    try:
        return str(ipaddress.IPv6Address(host)) if ":" in host and "%" not in host else _name(host)
    except (ValueError, UnicodeError) as error:
        raise DataError(f'{shown(text)}: "{shown(host)}" is not a host name or an IP address') from error


def _name(host: str) -> str:
    name = host if host.isascii() else host.encode("idna").decode("ascii")
    if not _HOST.fullmatch(name) or any(not 0 < len(part) < 64 for part in name.removesuffix(".").split(".")):
        raise ValueError(host)
    return name


class NotFoundError(DataError):
    """The resolver does not know the host."""


def lookup(address: Address, seconds: float, *, private: bool = False) -> list[Endpoint]:
    """Where the host is, asked once. DataError when one of the answers is no public address, unless ``private``."""
    found = _resolve(address, seconds)
    if not found:
        raise DataError(f"{shown(address.text)}: the host {address.host} has no address")
    for endpoint in found:
        if not private and not is_public(str(endpoint.place[0])):
            raise DataError(
                f"{shown(address.text)}: the host is at {endpoint.place[0]}, which is not a public address; addresses "
                "of this machine and of private networks are not read. Download the image and give its path"
            )
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its spelling alone: localhost, or an address of the loopback network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet. IPv4 inside IPv6 (mapped, NAT64) is judged by itself."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL_IPV6:
            return False
    return not any(ip in network for network in _SPECIAL if network.version == ip.version)


def _resolve(address: Address, seconds: float) -> list[Endpoint]:
    """The resolver's answer. It has no time limit of its own, so it runs beside and is left alone when it is late."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    worker = threading.Thread(target=ask, daemon=True)
    worker.start()
    worker.join(max(0.0, seconds))
    if not answers:
        raise DataError(f"{shown(address.text)}: the host {address.host} was not found in time; check the network")
    if isinstance(answers[0], Exception):
        reason = getattr(answers[0], "strerror", None) or "no such name"
        raise NotFoundError(
            f"{shown(address.text)}: the host {address.host} cannot be found ({reason}); check the address"
        )
    return [Endpoint(family, place) for family, _, _, _, place in answers[0]]
