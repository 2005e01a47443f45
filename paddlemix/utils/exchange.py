# SPDX-License-Identifier: Apache-2.0
"""One HTTP request and its answer on a socket of our own, so that one time limit holds for all of it.

The usual libraries look a host up themselves, follow the proxies of the environment and wait anew for each byte; none
lets a caller connect to the address that was checked, or end a server that sends a header a second.
"""

import contextlib
import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator

from paddlemix.utils import addresses
from paddlemix.utils.addresses import Address, Endpoint
from paddlemix.utils.errors import DataError
from paddlemix.utils.shown import shown

_CONNECT_SECONDS = 3.0
"""For one of the host's addresses; the next one gets its turn then."""
_HEADER_BYTES = 256 * 1024
"""Status lines and headers together, also of any number of "100 Continue"."""
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"User-Agent": "paddlemix", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


class Deadline:
    """The moment at which an exchange ends, whatever it waits for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left; TimeoutError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Wire(io.RawIOBase):
    """A socket to read from, whose every wait ends at the deadline. ``room``: bytes that may still come, if limited."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline
        self.room: int | None = _HEADER_BYTES

    def readable(self) -> bool:
        """True: this is the reading side."""
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        """Fill ``target`` with what is there; TimeoutError at the deadline."""
        self._sock.settimeout(self._deadline.left())
        if self.room is None:
            return self._sock.recv_into(target)
        if self.room <= 0:
            raise http.client.HTTPException("headers without end")
        count = self._sock.recv_into(target[: self.room])
        self.room -= count
        return count


class _Line:
    """What http.client asks of a socket. Closing it closes nothing: the body is read after that."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline
        self.wire = _Wire(sock, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.wire)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def close(self) -> None:
        pass


def get(
    address: Address, deadline: Deadline, max_bytes: int, *, private: bool = False, proxy: Address | None = None
) -> bytes | str:
    """The body of an answer with status 200, or where a redirect points to (a text, still to be checked).

    The host is looked up once and all its addresses must be public unless ``private``. DataError names the address and
    what is wrong: it cannot be reached, is late, answers with another status, or sends more than ``max_bytes``.

    With a ``proxy`` the connection goes there. A name that only the proxy can look up is left to its rules.
    """
    try:
        endpoints = _endpoints(address, deadline, private, proxy)
        with _connected(address, endpoints, deadline, proxy) as sock:
            target = address.target if proxy is None or address.scheme == "https" else _whole(address)
            return _exchange(address, target, _Line(sock, deadline), max_bytes)
    except TimeoutError as error:
        raise DataError(f"{shown(address.text)}: not complete after {deadline.seconds:g} s") from error
    except ssl.SSLError as error:
        raise DataError(f"{shown(address.text)}: TLS failed ({error.reason or 'no agreement'})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{shown(address.text)}: {_reason(error)}; check the address or download the file") from error


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the transfer broke off"
    if isinstance(error, OSError):
        return f"the server cannot be reached ({error.strerror or type(error).__name__})"
    return f"the answer is not HTTP ({type(error).__name__})"


def _endpoints(address: Address, deadline: Deadline, private: bool, proxy: Address | None) -> list[Endpoint]:
    if proxy is None:
        return addresses.lookup(address, deadline.left(), private=private)
    with contextlib.suppress(addresses.NotFoundError):
        addresses.lookup(address, deadline.left(), private=private)
    return addresses.lookup(proxy, deadline.left(), private=True)


def _whole(address: Address) -> str:
    return f"{address.scheme}://{address.host_header}{address.target}"


@contextlib.contextmanager
def _connected(
    address: Address, endpoints: list[Endpoint], deadline: Deadline, proxy: Address | None
) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(_connect(endpoints, deadline))
        if address.scheme == "https":
            if proxy is not None:
                _tunnel(address, _Line(sock, deadline))
            trust = _trust()  # reading the certificates takes a while, which belongs to the limit
            sock.settimeout(deadline.left())
            sock = stack.enter_context(trust.wrap_socket(sock, server_hostname=address.host))
        yield sock


def _connect(endpoints: list[Endpoint], deadline: Deadline) -> socket.socket:
    """A connection to the first of the checked addresses that takes one."""
    for number, endpoint in enumerate(endpoints):
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(_CONNECT_SECONDS, deadline.left()))
            sock.connect(endpoint.place)
            return sock
        except OSError:
            sock.close()
            if number == len(endpoints) - 1:
                raise
    raise OSError


def _tunnel(address: Address, line: _Line) -> None:
    """Ask the proxy at the other end for a connection to the host."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    line.sendall(f"CONNECT {host}:{address.port} HTTP/1.1\r\nHost: {host}:{address.port}\r\n\r\n".encode())
    response = http.client.HTTPResponse(line, method="CONNECT")  # type: ignore[arg-type]
    response.begin()
    if response.status != 200:
        raise DataError(f"{shown(address.text)}: the proxy answers {response.status} {shown(response.reason)}")


@functools.cache
def _trust() -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # a Python without a system store has none of its own
    return context


def _exchange(address: Address, target: str, line: _Line, max_bytes: int) -> bytes | str:
    connection = http.client.HTTPConnection(address.host, address.port)
    connection.sock = line
    connection.request("GET", target, headers={"Host": address.host_header, **_HEADERS})
    with connection.getresponse() as response:
        location = response.getheader("location")
        if response.status in _REDIRECTS and location:
            return location.encode("latin-1", "replace").decode("utf-8", "replace")
        if response.status != 200:
            raise DataError(f"{shown(address.text)}: the server answers {response.status} {shown(response.reason)}")
        line.wire.room = None
        return _body(address, response, max_bytes)


def _body(address: Address, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    too_large = f"{shown(address.text)}: larger than the limit of {max_bytes} bytes"
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise DataError(too_large)
    body = bytearray()
    # Nothing is decompressed, so a small answer cannot unfold in memory.
    while block := response.read1(64 * 1024):
        body += block
        if len(body) > max_bytes:
            raise DataError(too_large)
    if expected is not None and len(body) < expected:
        raise http.client.IncompleteRead(b"", expected - len(body))
    return bytes(body)


def notice_loss(connection: socket.socket, seconds: int) -> None:
    """End a connection whose other machine answers nothing for about ``seconds``, where the system can do that.

    The two systems do it among themselves, so the other program may be silent for longer.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, seconds // 2)),
        ("TCP_KEEPINTVL", max(1, seconds // 6)),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 1000 * seconds),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
