# SPDX-License-Identifier: Apache-2.0
"""What may be fetched, from where, and for how long. Nothing here leaves the loopback interface."""

import errno
import ipaddress
import socket
import threading
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest

from paddlemix.utils import addresses, exchange, files
from paddlemix.utils.errors import ConfigError, DataError
from tests.local_server import LocalServer

PUBLIC = "93.184.215.14"
"""Any address of the public internet; the sockets of these tests never reach it."""


# ---- a server on the loopback interface -------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_CONNECT(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_response(200 if self.path.startswith("safe") else 403)
        self.end_headers()
        self.close_connection = False

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        path, _, rest = self.path.strip("/").partition("/")
        moved = {"jump": f"/jump/{int(rest) - 1}" if path == "jump" and int(rest) > 1 else "/ok", "to": rest}
        self.send_response(302 if path in moved else 404 if path == "none" else 200)
        if path in moved:
            self.send_header("Location", moved[path])
        if path == "short":
            self.send_header("Content-Length", "11")
        if path == "announced":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        self.wfile.write(b"y" * (100_000 if path == "big" else 10))


@pytest.fixture(scope="module")
def server():
    server = LocalServer(_Answers)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(server):
    server.asked.clear()
    return f"http://127.0.0.1:{server.server_port}"


def test_fetch_gives_the_content_also_after_three_redirects(site):
    assert files.fetch(f"{site}/ok", private=True) == b"y" * 10
    assert files.fetch(f"{site}/jump/3", private=True) == b"y" * 10


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("jump/4", "more than 3 redirects"),
        ("to/file:///etc/passwd", "leads to .*only http and https"),
        ("to/http://a:b@127.0.0.1/", "without user and password"),
        ("to/http://[::1/x", "not an address"),
        ("none", "the server answers 404 Not Found"),
        ("big", "larger than the limit of 50000 bytes"),
        ("announced", "larger than the limit of 50000 bytes"),
        ("short", "the transfer broke off"),
    ],
)
def test_fetch_refuses_with_address_and_reason(site, path, text):
    with pytest.raises(DataError, match=text) as caught:
        files.fetch(f"{site}/{path}", max_bytes=50_000, private=True)
    assert str(caught.value).startswith(f"{site}/{path}")


def test_the_path_arrives_quoted_and_the_host_with_its_port(site, server):
    files.fetch(f"{site}/图片/a%20b.png?q=ü&r=1", private=True)
    path, headers = server.asked[-1]
    assert path == "/%E5%9B%BE%E7%89%87/a%20b.png?q=%C3%BC&r=1"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"


def test_a_server_that_is_not_there_is_told():
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(DataError, match="cannot be reached"):
            files.fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/x", private=True)


# ---- where a host may be ----------------------------------------------------------------------------------------


class Net:
    """A resolver of our own and a count of what it was asked; sockets are real ones that may only go to loopback."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.connected: list[tuple] = []

    def getaddrinfo(self, host, port, **rest):
        self.asked.append(host)
        try:
            found = [socket.inet_ntoa(socket.inet_aton(host))]  # all spellings that the C library reads
        except OSError:
            try:
                found = [str(ipaddress.IPv6Address(host))]
            except ValueError:
                found = self.names.get(host.removesuffix("."), [])
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0))
            if ":" in ip
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in found
        ]

    def socket(self, family, kind):
        net = self

        class Watched(socket.socket):
            def connect(self, place):
                net.connected.append(place)
                if not place[0].startswith("127."):
                    raise OSError(errno.ENETUNREACH, "Network is unreachable")
                super().connect(place)

        return Watched(family, kind)


@pytest.fixture
def net(monkeypatch):
    found = Net()
    monkeypatch.setattr(addresses, "socket", SimpleNamespace(getaddrinfo=found.getaddrinfo, SOCK_STREAM=1))
    monkeypatch.setattr(exchange, "socket", SimpleNamespace(socket=found.socket, SOCK_STREAM=1))
    found.names = {
        "localhost": ["127.0.0.1"],
        "localhost.localdomain": ["127.0.0.1", "::1"],
        "ip6-localhost": ["::1"],
        "metadata.google.internal": ["169.254.169.254"],
        "127.0.0.1.nip.io": ["127.0.0.1"],
        "mixed.example": [PUBLIC, "10.0.0.1"],
        "mixed6.example": [PUBLIC, "fd00::1"],
        "good.example": [PUBLIC],
        "good.com": [PUBLIC],
    }
    return found


LOOPBACK = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.0.0.1", "0177.0.0.1", "017700000001",
    "0x7f.1", "0177.1", "127.000.000.001", "127.127.127.127", "0", "0.0.0.0", "0x0", "00",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2002:7f00:1::1]",
    "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[fc00::1]", "[fd12:3456::1]", "[fec0::1]",
    "[ff02::1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[64:ff9b::a00:1]", "[2002:a00:1::]",
    "[2001:db8::1]", "[3fff::1]", "[100::1]", "[5f00::1]",
    "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost", "127.0.0.1.nip.io",
    "１２７.0.0.1", "①②⑦.0.0.1", "127。0。0。1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "loc\u00adalhost", "127.0.0.1.",
    "10.0.0.1", "10.1", "0xa.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "0300.0250.0.1", "100.64.0.1",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "metadata.google.internal",
    "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "mixed.example", "mixed6.example",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
@pytest.mark.parametrize("port", ["", ":8080"])
def test_no_spelling_of_a_private_host_is_connected_to(net, host, port):
    with pytest.raises(DataError):
        files.fetch(f"http://{host}{port}/latest/meta-data")
    assert net.connected == []


@pytest.mark.parametrize("host", LOOPBACK)
def test_no_redirect_leads_to_a_private_host(net, host, monkeypatch):
    real = exchange.get

    def get(address, *rest, **options):
        return f"//{host}/x" if address.host == "good.example" else real(address, *rest, **options)

    monkeypatch.setattr(exchange, "get", get)
    with pytest.raises(DataError, match=r"good.example/"):
        files.fetch("http://good.example/")
    assert net.connected == []


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "gopher://127.0.0.1/x",
        "/etc/passwd",
        "http:///x",
        "http://",
        "http:127.0.0.1",
        "http://user:secret@host/x",
        "http://good.com@127.0.0.1/",
        "http://good.com\\@127.0.0.1/",
        "http://127.0.0.1\\@good.com/",
        "http://ho st/",
        "http://host/\nx",
        "http://good.com\t/",
        "http://good.com\x7f/",
        "http://[::1/x",
        "http://::1]/x",
        "http://[v1.x]/",
        "http://[good.com]/",
        "http://good.com:99999/",
        "http://good.com:0/",
        "http://good.com:x/",
        "http://good.com:-1/",
        "http://good.com:٣/",
        "http://a..b/",
        "http://.good.com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 200}com/",
        "http://good.com%00.evil/",
        "http://good%2ecom/",
        "http://\ud800.com/",
        "http://xn--/",
        "http://ℌ\uff0fost/",
    ],
)
def test_what_is_no_address_is_refused_without_a_connection(net, address):
    with pytest.raises(DataError):
        files.fetch(address)
    assert net.connected == []


@pytest.mark.parametrize(
    "ip",
    [PUBLIC, "1.1.1.1", "8.8.8.8", "172.32.0.1", "192.0.1.1", "2606:4700::1", "2a00::1", "::ffff:8.8.8.8",
     "64:ff9b::808:808", "2001:4860:4860::8888"],
)  # fmt: skip
def test_a_public_address_is_one(ip):
    assert addresses.is_public(ip)


def test_what_python_calls_private_is_not_public():
    # Blocks of every size around the borders of IANA's tables: a second opinion, where Python has one.
    for text in ("0.0.0.0", "10.255.255.255", "127.255.255.255", "169.254.0.0", "172.31.255.255", "192.168.255.255"):
        first = int(ipaddress.IPv4Address(text))
        for number in range(max(0, first - 300), first + 300):
            ip = ipaddress.IPv4Address(number)
            assert ip.is_global or not addresses.is_public(str(ip)), ip


def test_the_checked_address_is_the_one_that_is_connected_to(net, server, monkeypatch):
    # A name whose second answer is another one (rebinding) is asked once only.
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    monkeypatch.setattr(net, "names", SimpleNamespace(get=lambda name, _: answers.pop(0)))
    monkeypatch.setattr(addresses, "is_public", lambda ip: ip == "127.0.0.1")
    server.asked.clear()
    assert files.fetch(f"http://rebinding.example:{server.server_port}/ok") == b"y" * 10
    assert net.asked == ["rebinding.example"]
    assert net.connected == [("127.0.0.1", server.server_port)]
    assert server.asked[0][1]["Host"] == f"rebinding.example:{server.server_port}"


def test_a_redirect_is_looked_up_and_checked_anew(net, server, monkeypatch):
    net.names |= {"first.example": ["127.0.0.1"], "second.example": ["127.0.0.2"]}
    monkeypatch.setattr(addresses, "is_public", lambda ip: ip == "127.0.0.1")
    place = f"http://second.example:{server.server_port}/ok"
    with pytest.raises(DataError, match=r"first.example.* leads to .*second.example.*127\.0\.0\.2, which is not"):
        files.fetch(f"http://first.example:{server.server_port}/to/{place}")
    assert net.connected == [("127.0.0.1", server.server_port)]


def test_an_address_that_does_not_answer_gives_way_to_the_next(net, server):
    net.names["two.example"] = ["10.255.0.1", "127.0.0.1"]
    assert files.fetch(f"http://two.example:{server.server_port}/ok", private=True) == b"y" * 10
    assert [place[0] for place in net.connected] == ["10.255.0.1", "127.0.0.1"]


def test_proxies_of_the_environment_are_not_asked(net, server, site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, site)
    with pytest.raises(DataError, match="cannot be reached"):
        files.fetch("http://good.example/x")
    assert server.asked == []
    assert net.connected == [(PUBLIC, 80)]


@pytest.fixture
def names(monkeypatch):
    """The names that certificates were asked for; the connections stay plain."""
    found = []

    def wrap_socket(sock, server_hostname):
        found.append(server_hostname)
        return sock

    monkeypatch.setattr(exchange, "_trust", lambda: SimpleNamespace(wrap_socket=wrap_socket))
    return found


def test_the_proxy_that_is_named_for_it_is_asked(net, server, site, monkeypatch, names):
    monkeypatch.setenv("PADDLEMIX_FETCH_PROXY", site)
    assert files.fetch("http://only-the-proxy.example/ok?a=b") == b"y" * 10  # nobody here knows the name
    assert server.asked[-1][0] == "http://only-the-proxy.example/ok?a=b"
    assert server.asked[-1][1]["Host"] == "only-the-proxy.example"
    assert files.fetch("https://safe.example/ok") == b"y" * 10
    assert [path for path, _ in server.asked[-2:]] == ["safe.example:443", "/ok"]
    assert names == ["safe.example"]
    with pytest.raises(DataError, match="the proxy answers 403"):
        files.fetch("https://other.example/ok")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "[::1]", "localhost", "10.0.0.1", "mixed.example"])
def test_a_proxy_is_not_asked_for_a_host_that_is_known_to_be_private(net, server, site, monkeypatch, host):
    monkeypatch.setenv("PADDLEMIX_FETCH_PROXY", site)
    for scheme in ("http", "https"):
        with pytest.raises(DataError, match="not a public address"):
            files.fetch(f"{scheme}://{host}/ok")
    assert server.asked == []


@pytest.mark.parametrize(
    "value", ["proxy:80", "https://proxy", "http://a:b@proxy", "http://proxy/x", "socks5://proxy", "x"]
)
def test_a_proxy_of_another_form_is_named_as_the_variable(monkeypatch, value):
    monkeypatch.setenv("PADDLEMIX_FETCH_PROXY", value)
    with pytest.raises(ConfigError, match="environment variable PADDLEMIX_FETCH_PROXY"):
        files.fetch("http://good.example/x")


def test_tls_is_asked_for_the_name_and_not_for_the_number(net, server, names):
    net.names["safe.example"] = ["127.0.0.1"]
    server.asked.clear()
    assert files.fetch(f"https://Safe.example:{server.server_port}/ok", private=True) == b"y" * 10
    assert names == ["safe.example"]
    assert server.asked[0][1]["Host"].startswith("safe.example")


def test_the_certificates_are_checked():
    context = exchange._trust()
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"
    assert context.get_ca_certs()


# ---- how long it may take ---------------------------------------------------------------------------------------


class Slow:
    """A socket that gives ``pieces``, each after ``seconds`` of a clock that nobody waits for."""

    def __init__(self, pieces, seconds: float) -> None:
        self.pieces, self.seconds, self.now, self.timeout = iter(pieces), seconds, 0.0, None
        self.rest = b""

    def monotonic(self) -> float:
        return self.now

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def settimeout(self, seconds) -> None:
        assert seconds > 0
        self.timeout = seconds

    def connect(self, place) -> None:
        self.wait(0.1)

    def sendall(self, data) -> None:
        self.wait(0.1)

    def wait(self, seconds: float) -> None:
        self.now += min(seconds, self.timeout)
        if seconds > self.timeout:
            raise TimeoutError

    def recv_into(self, target) -> int:
        self.wait(self.seconds)
        whole = self.rest or next(self.pieces, b"")
        piece, self.rest = whole[: len(target)], whole[len(target) :]
        target[: len(piece)] = piece
        return len(piece)


def forever(*pieces: bytes):
    while True:
        yield from pieces


def after(head: bytes, pieces):
    yield head
    yield from pieces


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TRICKS = {
    "nothing at all": (forever(b"x"), 60.0),
    "the status byte by byte": (forever(b"H"), 0.9),
    "headers byte by byte": (after(HEAD, forever(b"X")), 0.9),
    "a header a second": (after(HEAD, (b"X-%d: 1\r\n" % number for number in range(99))), 1.0),
    "100 Continue without end": (forever(b"HTTP/1.1 100 Continue\r\n\r\n"), 0.5),
    "the body byte by byte": (after(HEAD + b"\r\n", forever(b"x")), 0.9),
    "the size of a chunk byte by byte": (after(CHUNKED, forever(b"0")), 0.9),
    "an extension of a chunk without end": (after(CHUNKED + b"1;", forever(b"a")), 0.9),
    "chunks of a byte": (after(CHUNKED, forever(b"1\r\nx\r\n")), 0.9),
    "the trailer byte by byte": (after(CHUNKED + b"0\r\n", forever(b"X")), 0.9),
}


def slow_fetch(monkeypatch, pieces, seconds: float, url: str = "http://good.example/x") -> tuple[Slow, str]:
    sock = Slow(pieces, seconds)
    monkeypatch.setattr(exchange, "time", sock)
    monkeypatch.setattr(exchange, "socket", SimpleNamespace(socket=lambda *kind: sock, SOCK_STREAM=1))
    with pytest.raises(DataError) as caught:
        files.fetch(url, max_bytes=1000, timeout=10.0)
    return sock, str(caught.value)


@pytest.mark.parametrize("trick", TRICKS)
def test_the_limit_holds_for_the_whole_exchange(net, monkeypatch, trick):
    sock, text = slow_fetch(monkeypatch, *TRICKS[trick])
    assert "not complete after 10 s" in text
    assert sock.now <= 10.0 + 1e-6


def test_redirects_share_one_limit(net, monkeypatch):
    pieces = forever(b"HTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n")
    sock, text = slow_fetch(monkeypatch, pieces, 4.0)
    assert "not complete after 10 s" in text
    assert sock.now <= 10.0 + 1e-6


def test_the_limit_holds_while_certificates_are_read_and_keys_agreed(net, monkeypatch):
    def wrap_socket(sock, server_hostname):
        sock.wait(60.0)  # a server that never says hello

    def trust():
        sock.now += 9.0
        return SimpleNamespace(wrap_socket=wrap_socket)

    sock = Slow(forever(b"x"), 0.0)
    monkeypatch.setattr(exchange, "_trust", trust)
    monkeypatch.setattr(exchange, "time", sock)
    monkeypatch.setattr(exchange, "socket", SimpleNamespace(socket=lambda *kind: sock, SOCK_STREAM=1))
    with pytest.raises(DataError, match="not complete after 10 s"):
        files.fetch("https://good.example/x", timeout=10.0)
    assert sock.now <= 10.0 + 1e-6


@pytest.mark.parametrize("piece", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"])
def test_headers_without_end_are_given_up_also_when_they_come_fast(net, monkeypatch, piece):
    _, text = slow_fetch(monkeypatch, forever(piece), 0.0)
    assert "the answer is not HTTP" in text


def test_a_resolver_that_never_answers_is_not_waited_for(monkeypatch):
    released = threading.Event()
    silent = SimpleNamespace(getaddrinfo=lambda *rest, **options: released.wait(60), SOCK_STREAM=1)
    monkeypatch.setattr(addresses, "socket", silent)
    with pytest.raises(DataError, match="was not found in time"):
        files.fetch("http://good.example/x", timeout=0.05)
    released.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 4000 + b"\r\n\r\nx",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        CHUNKED + b"zz\r\nx",
        CHUNKED + b"5\r\nx",
        CHUNKED + b"5\r\nxxxxx\r\n",
        CHUNKED + b"ffffffffffffffff\r\nxx",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
        b"HTTP/1.1 302 Found\r\n\r\n",
    ],
)
def test_an_answer_of_odd_form_is_an_error_of_ours(net, monkeypatch, answer):
    _, text = slow_fetch(monkeypatch, iter([answer]), 0.0)
    assert text.startswith("http://good.example/x")
