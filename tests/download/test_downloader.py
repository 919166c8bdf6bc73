from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import ipaddress
import os
import pickle
import socket
import ssl
import threading
import time
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airflow_provider_imagen import __version__
from airflow_provider_imagen.download import ssrf
from airflow_provider_imagen.download.downloader import MAX_RETRY_AFTER_SECONDS, Download, Downloader
from airflow_provider_imagen.exceptions import BadImageError, DownloadError, LinkExpiredError, UnsafeAddressError

IMAGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 4000
SIZE = len(IMAGE)
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 40
WEBP = b"RIFF\x24\x28\0\0WEBPVP8 " + bytes(range(256)) * 40
GIF = b"GIF89a\x10\0\x10\0" + bytes(range(256)) * 40
BMP = b"BM\x36\x28\0\0\0\0\0\0" + bytes(10_240)
PUBLIC = "93.184.215.14"


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Server:
    """A loopback HTTP server with one handler per path, which may send any bytes."""

    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self):
        self.routes = {}
        self.fallback = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path="/a.png", host="127.0.0.1"):
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def paths(self):
        return [request.target for request in self.requests]

    def close(self):
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain):
        with contextlib.suppress(OSError), plain:
            connection = self.tls.wrap_socket(plain, server_side=True) if self.tls else plain
            with connection, connection.makefile("rb") as incoming:
                while line := incoming.readline().decode():
                    method, target, _ = line.split()
                    headers = {}
                    while header := incoming.readline().decode().strip():
                        name, _, value = header.partition(":")
                        headers[name.lower()] = value.strip()
                    request = Request(method, target, headers)
                    self.requests.append(request)
                    if self.routes.get(target.partition("?")[0], self.fallback)(request, connection) == "close":
                        return


def respond(body=IMAGE, status=200, length=None, **headers):
    """Send a complete response; ``length`` overrides its Content-Length."""

    def send(request, connection):
        connection.sendall(head(status, {"Content-Length": len(body) if length is None else length, **headers}) + body)
        return "close" if length is not None and length > len(body) else "keep"

    return send


def head(status, headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode()


def redirect(location, status=302):
    return respond(b"", status, Location=location)


def in_turn(*responses):
    """Send one response per request, in order; the last one repeats."""
    left = list(responses)

    def send(request, connection):
        return (left.pop(0) if len(left) > 1 else left[0])(request, connection)

    return send


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other_server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost, 127.0.0.1 and cdn.example, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    hosts = [x509.DNSName("localhost"), x509.DNSName("cdn.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(path)


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(tls=context)
    server.names = []
    context.sni_callback = lambda _socket, name, _context: server.names.append(name)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
            monkeypatch.delenv(name)


@pytest.fixture
def waits():
    return []


@pytest.fixture
def make(waits):
    """Return a function that creates downloaders which record their waits instead of sleeping."""
    downloaders = []

    def make(**settings):
        downloader = Downloader(**{"allow_private_hosts": True, "sleep": waits.append, **settings})
        downloaders.append(downloader)
        return downloader

    yield make
    for downloader in downloaders:
        downloader.close()


@dataclass
class Internet:
    """``names`` maps a host to the answers of successive look-ups; ``dialled`` holds the addresses connected to."""

    names: dict[str, list[list[str]]] = field(default_factory=dict)
    looked_up: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)


@pytest.fixture
def internet(monkeypatch):
    """A name service filled by the test; connections to public addresses go to loopback instead."""

    internet = Internet()

    def getaddrinfo(host, port, *args, **kwargs):
        internet.looked_up.append(host)
        answers = internet.names.get(host)
        if answers is None:
            try:
                answers = [[str(ipaddress.ip_address(host))]]
            except ValueError:
                raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (families[ipaddress.ip_address(address).version], socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    dial = ssrf.create_connection

    def dial_loopback(address, *args, **kwargs):
        internet.dialled.append(address[0])
        with monkeypatch.context() as unpatched:
            unpatched.setattr(socket, "getaddrinfo", real)
            return dial(("127.0.0.1", address[1]), *args, **kwargs)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(ssrf, "create_connection", dial_loopback)
    return internet


# received images


def test_an_image_is_returned_with_its_type_and_host(server, make):
    server.routes["/a.png"] = respond(Content_Type="IMAGE/PNG; charset=binary")
    assert make().fetch(server.url()) == Download(IMAGE, "image/png", "127.0.0.1")


def test_an_image_without_type_or_length_is_accepted(server, make):
    def send(request, connection):
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE)
        return "close"

    server.routes["/a.png"] = send
    assert make().fetch(server.url()) == Download(IMAGE, None, "127.0.0.1")


def test_a_chunked_image_is_accepted(server, make):
    def send(request, connection):
        connection.sendall(head(200, {"Transfer-Encoding": "chunked"}))
        for start in range(0, len(IMAGE), 5000):
            piece = IMAGE[start : start + 5000]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")

    server.routes["/a.png"] = send
    downloader = make()
    assert downloader.fetch(server.url()).data == downloader.fetch(server.url()).data == IMAGE
    assert server.connections == 1


def test_connections_are_reused(server, make):
    server.routes["/a.png"] = respond()
    downloader = make()
    for _ in range(5):
        downloader.fetch(server.url())
    assert server.connections == 1


def test_closing_the_downloader_closes_its_connections(server, make):
    server.routes["/a.png"] = respond()
    with make() as downloader:
        downloader.fetch(server.url())
    downloader.fetch(server.url())
    assert server.connections == 2


def test_64_threads_fetch_at_the_same_time(server, make):
    together = threading.Barrier(64, timeout=20)

    def send(request, connection):
        together.wait()
        body = IMAGE + request.target.encode()
        connection.sendall(head(200, {"Content-Length": len(body)}) + body)

    server.fallback = send
    downloader = make()
    with ThreadPoolExecutor(64) as pool:
        images = list(pool.map(lambda number: downloader.fetch(server.url(f"/{number}")).data, range(192)))
    assert images == [IMAGE + f"/{number}".encode() for number in range(192)]
    assert server.connections == 64


# what is sent


def test_only_the_necessary_headers_are_sent(server, make):
    server.routes["/a.png"] = respond(Set_Cookie="session=1; Path=/")
    downloader = make()
    downloader.fetch(server.url())
    downloader.fetch(server.url())
    sent = {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"airflow-provider-imagen/{__version__}",
        "accept": "image/*, */*;q=0.5",
        "accept-encoding": "identity",
    }
    assert [request.method for request in server.requests] == ["GET", "GET"]
    assert [request.headers for request in server.requests] == [sent, sent]


def test_no_password_from_netrc_is_sent(server, make, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.routes["/a.png"] = respond()
    requests.get(server.url(), timeout=5)
    make().fetch(server.url())
    by_requests, by_us = server.requests
    assert "authorization" in by_requests.headers
    assert "authorization" not in by_us.headers


@pytest.mark.parametrize("location", ["/b.png?x=1", "b.png?x=1", "./c/../b.png?x=1", "//127.0.0.1:{port}/b.png?x=1"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server, make, location, status):
    server.routes["/a.png"] = redirect(location.format(port=server.port), status)
    server.routes["/b.png"] = respond()
    assert make().fetch(server.url()).data == IMAGE
    assert server.paths() == ["/a.png", "/b.png?x=1"]


def test_the_final_host_is_the_one_after_redirects(server, make):
    server.routes["/a.png"] = redirect(server.url("/b.png", host="localhost"))
    server.routes["/b.png"] = respond()
    assert make().fetch(server.url()).final_host == "localhost"


def test_redirect_loops_end(server, make):
    server.routes["/a.png"] = redirect("/a.png")
    with pytest.raises(DownloadError, match="more than 3 redirects"):
        make().fetch(server.url())
    assert len(server.requests) == 4


def test_a_redirect_without_a_target_is_an_error(server, make):
    server.routes["/a.png"] = respond(b"", 302)
    with pytest.raises(DownloadError, match="returned 302"):
        make().fetch(server.url())


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/a", "file:///etc/passwd", "http://[broken/", "http://u:p@127.0.0.1/", "//h:port/"]
)
def test_redirects_to_unsafe_urls_are_rejected(server, make, location):
    server.routes["/a.png"] = redirect(location)
    with pytest.raises(UnsafeAddressError):
        make().fetch(server.url())
    assert len(server.requests) == 1


# accepted URLs


@pytest.mark.parametrize(
    "url",
    [
        "ftp://cdn.example/a",
        "file:///etc/passwd",
        "gopher://cdn.example/",
        "cdn.example/a.png",
        "",
        "http://",
        "http:///a",
    ],
)
def test_only_http_urls_are_fetched(make, url):
    with pytest.raises(UnsafeAddressError):
        make().fetch(url)


def test_a_data_uri_is_rejected_as_such(make):
    with pytest.raises(DownloadError, match="data: URI"):
        make().fetch("data:image/png;base64,AAAA")


def test_urls_with_a_user_name_are_rejected(server, make):
    with pytest.raises(UnsafeAddressError, match="user name"):
        make().fetch(f"http://user:secret@127.0.0.1:{server.port}/a.png")
    assert server.connections == 0


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "0", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1."],
)
def test_private_hosts_are_rejected_in_every_spelling(server, make, host):
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts=False).fetch(server.url(host=host))
    assert server.connections == 0


@pytest.mark.parametrize("addresses", [["10.0.0.7"], [PUBLIC, "10.0.0.7"], ["fd00::7"], ["169.254.169.254"]])
def test_names_that_resolve_to_a_private_address_are_rejected(server, make, internet, addresses):
    internet.names["cdn.example"] = [addresses]
    with pytest.raises(UnsafeAddressError, match="private address") as caught:
        make(allow_private_hosts=False).fetch(server.url(host="cdn.example"))
    assert caught.value.host == "cdn.example"
    assert internet.dialled == []


def test_an_allowed_private_host_is_reached_on_its_port_only(server, other_server, make):
    server.routes["/a.png"] = respond()
    downloader = make(allow_private_hosts={("127.0.0.1", server.port)})

    assert downloader.fetch(server.url()).data == IMAGE
    assert downloader.fetch(server.url(host="127.1")).data == IMAGE
    with pytest.raises(UnsafeAddressError, match=r"private address 127\.0\.0\.1; .* allowed_download_hosts"):
        downloader.fetch(other_server.url())
    with pytest.raises(UnsafeAddressError):  # the same address under another name
        downloader.fetch(server.url(host="localhost"))
    assert other_server.connections == 0


def test_a_private_host_allowed_without_a_port_is_reached_on_every_port(server, other_server, make):
    server.routes["/a.png"] = other_server.routes["/a.png"] = respond()
    downloader = make(allow_private_hosts={("127.0.0.1", None)})

    assert downloader.fetch(server.url()).data == downloader.fetch(other_server.url()).data == IMAGE


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/b.png", "http://localhost:{port}/", "http://[::1]:{port}/"]
)
def test_a_redirect_away_from_an_allowed_private_host_is_rejected(server, other_server, make, target):
    server.routes["/a.png"] = redirect(target.format(port=other_server.port))
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts={("127.0.0.1", server.port)}).fetch(server.url())
    assert other_server.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fe80::1"),
        *(
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::a00:1",
            "2002:a9fe:a9fe::1",
            "0.0.0.0",
            "224.0.0.1",
        ),
    ],
)
@pytest.mark.parametrize("hosts", [True, {("cdn.example", None)}])
def test_no_setting_allows_link_local_and_metadata_addresses(server, make, internet, address, hosts):
    internet.names["cdn.example"] = [[address]]
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts=hosts).fetch(server.url(host="cdn.example"))

    internet.names["cdn.example"] = [["10.0.0.7", address]]
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts=hosts).fetch(server.url(host="cdn.example"))

    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts=True).fetch(server.url(host=literal))
    assert internet.dialled == []


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1"])
def test_no_setting_sends_a_proxy_to_link_local_addresses(server, make, internet, monkeypatch, address):
    internet.names["cdn.example"] = [[address]]
    internet.names["127.0.0.1"] = [["127.0.0.1"]]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    for host in ("cdn.example", f"[{address}]" if ":" in address else address):
        with pytest.raises(UnsafeAddressError, match="private address"):
            make(allow_private_hosts=True).fetch(f"http://{host}/a.png")
    assert server.connections == 0


def test_an_allowed_name_that_turns_link_local_is_rejected_at_the_next_connection(server, make, internet):
    internet.names["cdn.example"] = [["10.0.0.7"], ["169.254.169.254"]]
    server.routes["/a.png"] = in_turn(respond(b"", 503), respond())
    with pytest.raises(UnsafeAddressError, match=r"169\.254\.169\.254"):
        make(allow_private_hosts={("cdn.example", None)}).fetch(server.url(host="cdn.example"))
    assert internet.dialled == ["10.0.0.7"]


def test_the_connection_goes_to_the_address_that_was_checked(server, make, internet):
    """DNS rebinding, which changes a name's address after the check, has no effect."""
    internet.names["cdn.example"] = [[PUBLIC], ["127.0.0.1"]]
    server.routes["/a.png"] = respond()
    assert make(allow_private_hosts=False).fetch(server.url(host="cdn.example")).data == IMAGE
    assert internet.dialled == [PUBLIC]
    assert internet.looked_up == ["cdn.example"]
    assert server.requests[0].headers["host"] == f"cdn.example:{server.port}"


def test_a_name_that_turns_private_is_rejected_at_the_next_connection(server, make, internet):
    internet.names["cdn.example"] = [[PUBLIC], ["127.0.0.1"]]
    server.routes["/a.png"] = in_turn(respond(b"", 503), respond())
    with pytest.raises(UnsafeAddressError):
        make(allow_private_hosts=False).fetch(server.url(host="cdn.example"))
    assert internet.dialled == [PUBLIC]


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/b.png", "http://intern.example:{port}/b.png"])
def test_a_redirect_into_a_private_network_is_rejected(server, other_server, make, internet, target):
    internet.names |= {"cdn.example": [[PUBLIC]], "intern.example": [["192.168.0.9"]]}
    server.routes["/a.png"] = redirect(target.format(port=other_server.port))
    with pytest.raises(UnsafeAddressError, match="private address"):
        make(allow_private_hosts=False).fetch(server.url(host="cdn.example"))
    assert other_server.connections == 0


def test_the_next_address_of_a_name_is_used_when_one_refuses_the_connection(server, make, internet, monkeypatch):
    internet.names["cdn.example"] = [["1.1.1.1", PUBLIC]]
    server.routes["/a.png"] = respond()
    dial = ssrf.create_connection

    def dial_first_in_vain(address, *args, **kwargs):
        if address[0] == "1.1.1.1":
            raise ConnectionRefusedError
        return dial(address, *args, **kwargs)

    monkeypatch.setattr(ssrf, "create_connection", dial_first_in_vain)
    assert make(allow_private_hosts=False).fetch(server.url(host="cdn.example")).data == IMAGE
    assert internet.dialled == [PUBLIC]


# TLS


def test_an_untrusted_certificate_is_rejected_without_a_retry(tls_server, make, waits):
    with pytest.raises(DownloadError, match="certificate is not trusted"):
        make().fetch(tls_server.url())
    assert tls_server.requests == []
    assert waits == []


def test_the_verify_setting_can_name_a_certificate(tls_server, make, certificate):
    tls_server.routes["/a.png"] = respond()
    assert make(verify=certificate).fetch(tls_server.url()).data == IMAGE


def test_the_environment_can_name_a_certificate(tls_server, make, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    tls_server.routes["/a.png"] = respond()
    assert make().fetch(tls_server.url()).data == IMAGE


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_no_certificate_is_checked_when_verify_is_false(tls_server, make):
    tls_server.routes["/a.png"] = respond()
    assert make(verify=False).fetch(tls_server.url()).data == IMAGE


def test_a_missing_ca_bundle_is_reported(tls_server, make, tmp_path):
    with pytest.raises(DownloadError, match="CA bundle"):
        make(verify=str(tmp_path / "none.pem")).fetch(tls_server.url())


def test_the_certificate_is_checked_against_the_name_not_the_address(tls_server, make, internet, certificate):
    internet.names |= {"cdn.example": [[PUBLIC]], "else.example": [[PUBLIC]]}
    tls_server.routes["/a.png"] = respond()
    downloader = make(allow_private_hosts=False, verify=certificate)
    assert downloader.fetch(tls_server.url(host="cdn.example")).data == IMAGE
    with pytest.raises(DownloadError, match="certificate is not trusted"):
        downloader.fetch(tls_server.url(host="else.example"))
    assert tls_server.names == ["cdn.example", "else.example"]
    assert internet.dialled == [PUBLIC, PUBLIC]


def test_a_redirect_from_https_to_http_is_rejected(tls_server, server, make, internet, certificate):
    internet.names["cdn.example"] = [[PUBLIC]]
    tls_server.routes["/a.png"] = redirect(server.url(host="cdn.example"))
    with pytest.raises(UnsafeAddressError, match="from https to http"):
        make(allow_private_hosts=False, verify=certificate).fetch(tls_server.url(host="cdn.example"))
    assert server.connections == 0


def test_a_redirect_from_https_to_http_is_followed_in_a_private_network(tls_server, server, make, certificate):
    tls_server.routes["/a.png"] = redirect(server.url())
    server.routes["/a.png"] = respond()
    assert make(verify=certificate).fetch(tls_server.url()).data == IMAGE


# proxies


def test_a_proxy_from_the_environment_is_used(server, make, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:word@127.0.0.1:{server.port}")
    server.fallback = respond()
    download = make(allow_private_hosts=False).fetch("http://cdn.example/a.png")
    assert (download.data, download.final_host) == (IMAGE, "cdn.example")
    assert server.paths() == ["http://cdn.example/a.png"]
    assert server.requests[0].headers["proxy-authorization"].startswith("Basic ")


def test_a_host_in_no_proxy_is_reached_directly(server, other_server, make, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{other_server.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.routes["/a.png"] = respond()
    assert make().fetch(server.url()).data == IMAGE
    assert other_server.connections == 0


def test_a_proxy_forwards_tls_without_seeing_the_url(server, tls_server, make, certificate, monkeypatch):
    def tunnel(request, connection):
        with socket.create_connection(("127.0.0.1", tls_server.port)) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(onward, connection), daemon=True)
            back.start()
            pump(connection, onward)
        return "close"

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
    server.fallback = tunnel
    tls_server.routes["/a.png"] = respond()
    downloader = make(allow_private_hosts=False, verify=certificate)
    assert downloader.fetch("https://cdn.example/a.png?sig=secret").data == IMAGE
    assert [(request.method, request.target) for request in server.requests] == [("CONNECT", "cdn.example:443")]
    assert tls_server.names == ["cdn.example"]


@pytest.mark.parametrize("host", ["10.0.0.1", "2130706433", "localhost"])
def test_requests_for_private_hosts_never_reach_a_proxy(server, make, monkeypatch, host):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    with pytest.raises(UnsafeAddressError):
        make(allow_private_hosts=False).fetch(f"http://{host}/a.png")
    assert server.connections == 0


# limits


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_content_length_over_the_limit_is_rejected_before_the_body(server, make, sent):
    server.routes["/a.png"] = respond(IMAGE[:sent], length=10**12)
    with pytest.raises(BadImageError, match="larger than 5000 bytes"):
        make(max_bytes=5000).fetch(server.url())
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", ["9" * 5000, "Infinity", "0x10", "²"])
def test_an_invalid_content_length_is_ignored(server, make, length):
    def send(request, connection):
        connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1") + IMAGE)
        return "close"

    server.routes["/a.png"] = send
    assert make(attempts=1).fetch(server.url()).data == IMAGE


def test_an_endless_body_is_stopped_at_the_limit(server, make):
    sent = []

    def send(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(IMAGE)
            sent.append(len(IMAGE))

    server.routes["/a.png"] = send
    with pytest.raises(BadImageError, match="larger than 1000000 bytes"):
        make(max_bytes=1_000_000).fetch(server.url())
    assert sum(sent) < 30_000_000  # what fits into the buffers of both sockets
    assert len(server.requests) == 1


def test_a_body_exactly_at_the_limit_is_accepted(server, make):
    server.routes["/a.png"] = respond()
    assert make(max_bytes=len(IMAGE)).fetch(server.url()).data == IMAGE


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compression_bomb_does_not_pass_the_limit(server, make, encoding, pack):
    bomb = pack(bytes(50_000_000))
    server.routes["/a.png"] = respond(bomb, Content_Encoding=encoding)
    with pytest.raises(BadImageError, match="decompressed body is larger than 1000000 bytes"):
        make(max_bytes=1_000_000).fetch(server.url())


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def two_gzip_members(data):
    return gzip.compress(data[:5000]) + gzip.compress(data[5000:])


@pytest.mark.parametrize(
    "body", [IMAGE, JPEG, b"<svg xmlns='http://www.w3.org/2000/svg'/>"], ids=["png", "jpeg", "svg"]
)
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", two_gzip_members),
        ("gzip", zlib.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("deflate", gzip.compress),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("gzip, gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
        ("gzip, aws-chunked", gzip.compress),
        ("utf-8, gzip", gzip.compress),
        ("none", gzip.compress),
        ("gzip", lambda data: gzip.compress(data) + bytes(512)),
    ],
)
def test_unrequested_compression_is_decoded(server, make, encoding, pack, body):
    server.routes["/a.png"] = respond(pack(body), Content_Encoding=encoding)
    assert make().fetch(server.url()).data == body


@pytest.mark.parametrize("body", [IMAGE, JPEG, WEBP, GIF, BMP], ids=["png", "jpeg", "webp", "gif", "bmp"])
@pytest.mark.parametrize(
    "encoding",
    [
        *("identity", "none", "null", "utf-8", "UTF-8", "aws-chunked", "binary", "base64", "image/png", "8bit", ","),
        *("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "gzip, gzip", "gzip,deflate,br", "aws-chunked,gzip"),
        ", ".join(["gzip"] * 20),
    ],
)
def test_a_false_content_encoding_is_ignored(server, make, encoding, body):
    server.routes["/a.png"] = respond(body, Content_Encoding=encoding)
    assert make().fetch(server.url()).data == body


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_corrupt_compressed_body_is_a_bad_image(server, make, encoding, pack):
    server.routes["/a.png"] = respond(pack(IMAGE)[:-9], Content_Encoding=encoding)
    with pytest.raises(BadImageError, match="compressed body is corrupt"):
        make().fetch(server.url())


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(50_000_000)))),
        ("gzip", gzip.compress(bytes(900_000)) * 16),
        ("none", gzip.compress(bytes(50_000_000))),
        ("deflate", raw_deflate(bytes(50_000_000))),
    ],
)
def test_no_kind_of_compression_passes_the_limit(server, make, encoding, bomb):
    server.routes["/a.png"] = respond(bomb, Content_Encoding=encoding)
    with pytest.raises(BadImageError, match="decompressed body is larger than 1000000 bytes"):
        make(max_bytes=1_000_000).fetch(server.url())


@pytest.mark.parametrize(
    "stated", ["image/svg+xml", "text/html", "application/xhtml+xml", "application/json", "text/xml"]
)
def test_an_svg_is_accepted_under_any_content_type(server, make, stated):
    body = b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>"
    server.routes["/a.png"] = respond(body, Content_Type=stated)
    assert make().fetch(server.url()).data == body


def drip(first):
    """Send ``first``, then single bytes forever."""

    def send(request, connection):
        connection.sendall(first)
        while True:
            time.sleep(0.02)
            connection.sendall(b"x")

    return send


@pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", head(200, {"Content-Length": 10**6}), b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["status line", "headers", "body", "body of unknown length"],
)
def test_a_dripping_server_is_abandoned_after_the_total_timeout(server, make, first):
    server.routes["/a.png"] = drip(first)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"not complete after 0\.4 s"):
        make(total_timeout_seconds=0.4, read_timeout_seconds=0.3).fetch(server.url())
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", head(200, {"Content-Length": 10**6})])
def test_the_total_timeout_applies_behind_a_proxy(server, make, monkeypatch, first):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    server.fallback = drip(first)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"not complete after 0\.4 s"):
        make(allow_private_hosts=False, total_timeout_seconds=0.4, read_timeout_seconds=0.3).fetch(
            "http://cdn.example/a"
        )
    assert time.monotonic() - started < 2
    assert server.paths() == ["http://cdn.example/a"]


@pytest.mark.parametrize("interim", [(100,), (102,), (103,), (199,), (103, 100, 102, 103)])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_interim_responses_are_never_the_outcome(server, tls_server, make, certificate, interim, scheme):
    origin = tls_server if scheme == "https" else server

    def send(request, connection):
        for status in interim:
            connection.sendall(head(status, {"Link": "</a.css>; rel=preload", "Content-Length": 7}))
        return respond(request.target.encode() + IMAGE)(request, connection)

    origin.fallback = send
    downloader = make(verify=certificate)
    for path in ("/1.png", "/2.png", "/3.png"):
        assert downloader.fetch(origin.url(path)).data == path.encode() + IMAGE
    assert origin.connections == 1
    assert len(origin.requests) == 3


def test_interim_responses_may_precede_redirects_and_errors(server, make):
    def early(send):
        return lambda request, connection: connection.sendall(head(103, {})) or send(request, connection)

    server.routes["/a.png"] = early(redirect("/b.png"))
    server.routes["/b.png"] = in_turn(*map(early, [respond(b"", 503), respond()]))
    assert make().fetch(server.url()).data == IMAGE
    server.routes["/gone.png"] = early(respond(b"", 404))
    with pytest.raises(LinkExpiredError):
        make().fetch(server.url("/gone.png"))


def test_a_connection_that_switches_protocols_is_closed(server, make):
    def switch(request, connection):
        connection.sendall(head(101, {"Upgrade": "h2c"}) + response_bytes(b"of another protocol"))

    server.routes["/a.png"] = in_turn(switch, respond())
    assert make().fetch(server.url()).data == IMAGE
    assert server.connections == 2


def response_bytes(body):
    return head(200, {"Content-Length": len(body)}) + body


@pytest.mark.parametrize("status", [100, 102, 103])
@pytest.mark.parametrize("pause", [0, 0.05])
def test_endless_interim_responses_end_at_the_total_timeout(server, make, status, pause):
    def send(request, connection):
        while True:
            connection.sendall(head(status, {}))
            time.sleep(pause)

    server.routes["/a.png"] = send
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"not complete after 0\.5 s|connection failed"):  # Python 3.14 counts them
        make(total_timeout_seconds=0.5, read_timeout_seconds=0.3).fetch(server.url())
    assert time.monotonic() - started < 3


def test_a_silent_server_is_retried_after_the_read_timeout(server, make, waits):
    silent = threading.Event()
    server.routes["/a.png"] = in_turn(lambda request, connection: silent.wait(10), respond())
    started = time.monotonic()
    assert make(read_timeout_seconds=0.2).fetch(server.url()).data == IMAGE
    assert time.monotonic() - started < 2
    assert len(waits) == 1
    silent.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_but_active_server_is_waited_for(server, tls_server, make, certificate, monkeypatch, scheme):
    """Short polling intervals do not count as silence."""
    monkeypatch.setattr(ssrf, "_POLL_SECONDS", 0.02)

    def send(request, connection):
        whole = head(200, {"Content-Length": SIZE}) + IMAGE
        for start, end in [(0, 20), (20, 500), (500, None)]:
            time.sleep(0.1)
            connection.sendall(whole[start:end])

    slow = {"http": server, "https": tls_server}[scheme]
    slow.routes["/a.png"] = send
    assert make(verify=certificate, attempts=1).fetch(slow.url()).data == IMAGE


def test_no_attempt_starts_without_enough_time_left(server, make, waits):
    server.routes["/a.png"] = respond(b"", 503, Retry_After=20)
    with pytest.raises(DownloadError, match="returned 503"):
        make(total_timeout_seconds=10).fetch(server.url())
    assert len(server.requests) == 1
    assert waits == []


def test_waits_count_towards_the_total_timeout(server, make):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    server.routes["/a.png"] = respond(b"", 503, Retry_After=20)
    with pytest.raises(DownloadError, match="3 attempts"):
        make(total_timeout_seconds=50, sleep=sleep, clock=lambda: now[0], attempts=9).fetch(server.url())
    assert 40 <= now[0] < 50


# retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 524])
def test_transient_failures_are_retried(server, make, waits, status):
    server.routes["/a.png"] = in_turn(respond(b"no", status), respond(b"no", status), respond())
    assert make().fetch(server.url()).data == IMAGE
    assert len(server.requests) == 3
    first, second = waits
    assert 0.5 <= first <= 1.5
    assert 1 <= second <= 2


def test_attempts_are_limited_and_counted(server, make, waits):
    server.routes["/a.png"] = respond(b"no", 502)
    with pytest.raises(DownloadError, match=r"returned 502 \(4 attempts\)") as caught:
        make().fetch(server.url())
    assert len(server.requests) == 4
    assert len(waits) == 3
    assert (type(caught.value), caught.value.status, caught.value.host) == (DownloadError, 502, "127.0.0.1")
    assert caught.value.retry_helps


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [("7", 7, 7), ("0", 0.5, 1.5), ("99999", MAX_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS), ("soon", 0.5, 1.5)],
)
def test_retry_after_is_honoured_up_to_a_limit(server, make, waits, asked, least, most):
    server.routes["/a.png"] = in_turn(respond(b"", 429, Retry_After=asked), respond())
    make().fetch(server.url())
    assert least <= waits[0] <= most


def test_retry_after_may_be_a_date(server, make, waits):
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)
    date = later.strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.routes["/a.png"] = in_turn(respond(b"", 503, Retry_After=date), respond())
    make().fetch(server.url())
    assert 15 <= waits[0] <= 20


def test_a_refused_connection_is_retried(make, waits):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError, match=r"connection failed .* \(4 attempts\)"):
        make().fetch(f"http://127.0.0.1:{port}/a.png")
    assert len(waits) == 3


def test_an_unresolvable_name_is_retried(make, internet, waits):
    with pytest.raises(DownloadError, match=r"name cannot be resolved \(4 attempts\)"):
        make(allow_private_hosts=False).fetch("http://cdn.example/a.png")
    assert len(waits) == 3


def test_a_connection_dropped_without_a_response_is_retried(server, make):
    server.routes["/a.png"] = in_turn(lambda request, connection: "close", respond())
    assert make().fetch(server.url()).data == IMAGE


def test_an_empty_body_is_retried_and_finally_a_bad_image(server, make):
    server.routes["/a.png"] = in_turn(respond(b""), respond())
    server.routes["/b.png"] = respond(b"")
    assert make().fetch(server.url()).data == IMAGE
    with pytest.raises(BadImageError, match="empty"):
        make().fetch(server.url("/b.png"))


@pytest.mark.parametrize("status", [400, 402, 405, 406, 416, 418, 451, 304])
def test_other_error_statuses_are_not_retried(server, make, status):
    server.routes["/a.png"] = respond(b"no", status)
    with pytest.raises(DownloadError, match=f"returned {status}") as caught:
        make().fetch(server.url())
    assert type(caught.value) is DownloadError
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_expired_url_is_not_retried(server, make, status):
    server.routes["/a.png"] = respond(b"gone", status)
    with pytest.raises(LinkExpiredError, match=f"127.0.0.1.* {status}") as caught:
        make().fetch(server.url())
    assert caught.value.status == status
    assert len(server.requests) == 1


def test_the_error_for_an_expired_url_says_when_it_expired(server, make):
    server.routes["/a.png"] = respond(b"", 403)
    epoch = int(time.time())
    with pytest.raises(LinkExpiredError, match=r"expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC, 2:00:0\d h ago"):
        make().fetch(server.url(f"/a.png?Expires={epoch - 7200}"))
    with pytest.raises(LinkExpiredError, match="valid until"):
        make().fetch(server.url(f"/a.png?Expires={epoch + 7200}"))


# truncated bodies


def truncated_chunks(request, connection):
    """Send a body in chunks, but hang up before the last one."""
    connection.sendall(head(200, {"Transfer-Encoding": "chunked", "ETag": '"one"'}))
    connection.sendall(b"%x\r\n%s\r\n" % (700_000, IMAGE[:700_000]))
    return "close"


TRUNCATED = respond(IMAGE[:600_000], length=SIZE, ETag='"one"')


@pytest.mark.parametrize(
    "cut", [TRUNCATED, truncated_chunks, respond(b"", length=SIZE)], ids=["half", "chunks", "nothing"]
)
def test_a_truncated_body_is_downloaded_again_from_the_start(server, make, waits, cut):
    server.routes["/a.png"] = in_turn(cut, respond(ETag='"one"'))
    assert make().fetch(server.url()).data == IMAGE
    assert [request.headers.get("range") for request in server.requests] == [None, None]
    assert len(waits) == 1


def test_a_truncated_body_behind_a_redirect_is_downloaded_again_from_the_start(server, make):
    server.routes["/a.png"] = redirect("/b.png?sig=1")
    server.routes["/b.png"] = in_turn(TRUNCATED, respond())
    assert make().fetch(server.url()).data == IMAGE
    assert server.paths() == ["/a.png", "/b.png?sig=1"] * 2


def test_a_body_is_downloaded_after_several_truncations_and_a_failure(server, make):
    server.routes["/a.png"] = in_turn(TRUNCATED, respond(b"", 503), truncated_chunks, respond())
    assert make().fetch(server.url()).data == IMAGE
    assert len(server.requests) == 4


def test_a_body_that_changed_after_a_truncation_keeps_nothing_of_the_first_one(server, make):
    changed = IMAGE[::-1]
    server.routes["/a.png"] = in_turn(TRUNCATED, respond(changed, ETag='"two"'))
    assert make().fetch(server.url()).data == changed


def test_an_unrequested_partial_response_is_an_error(server, make):
    server.routes["/a.png"] = respond(IMAGE[:10], 206, Content_Range=f"bytes 0-9/{SIZE}")
    with pytest.raises(DownloadError, match="206"):
        make().fetch(server.url())
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [TRUNCATED, truncated_chunks], ids=["half", "chunks"])
def test_a_body_that_is_always_truncated_is_an_error(server, make, cut):
    server.routes["/a.png"] = cut
    with pytest.raises(DownloadError, match=r"truncated \(4 attempts\)") as caught:
        make().fetch(server.url())
    assert type(caught.value) is DownloadError
    assert len(server.requests) == 4


def test_the_size_limit_applies_per_attempt(server, make):
    server.routes["/a.png"] = in_turn(truncated_chunks, respond())
    assert make(max_bytes=SIZE).fetch(server.url()).data == IMAGE


# not an image


@pytest.mark.parametrize(
    ("body", "content_type", "named"),
    [
        (b"<!DOCTYPE html><title>Sorry</title>", "text/html", "HTML"),
        (b"\n <HTML><body>Sorry", "image/png", "HTML"),
        (b"Sorry", "text/html; charset=utf-8", "HTML"),
        (b'{"error": "gone"}', "application/json", "JSON"),
        (b'{"error": "gone"}', "application/octet-stream", "JSON"),
        (b'"gone"', "application/problem+json", "JSON"),
    ],
)
def test_a_document_is_not_an_image(server, make, body, content_type, named):
    server.routes["/a.png"] = respond(body, Content_Type=content_type)
    with pytest.raises(BadImageError, match=f"{named} .*instead of an image"):
        make().fetch(server.url())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (IMAGE, "text/html"),
        (IMAGE, "application/json"),
        (b'<?xml version="1.0"?><svg/>', "image/svg+xml"),
        (b"<svg/>", "image/svg+xml"),
    ],
)
def test_an_image_is_accepted_under_any_content_type(server, make, body, content_type):
    server.routes["/a.png"] = respond(body, Content_Type=content_type)
    assert make().fetch(server.url()).data == body


# cancellation


def test_a_fetch_stops_between_chunks(server, make):
    stop = threading.Event()

    def send(request, connection):
        connection.sendall(head(200, {"Content-Length": 60_000_000}))
        for _ in range(60):
            connection.sendall(bytes(1_000_000))
            stop.set()

    server.routes["/a.png"] = send
    with pytest.raises(DownloadError, match="cancelled") as caught:
        make(cancelled=stop).fetch(server.url())
    assert caught.value.retry_helps
    assert len(server.requests) == 1


def test_a_fetch_stops_while_the_server_is_silent(server, make):
    stop = threading.Event()

    def send(request, connection):
        stop.set()
        time.sleep(30)

    server.routes["/a.png"] = send
    started = time.monotonic()
    with pytest.raises(DownloadError, match="cancelled"):
        make(cancelled=stop).fetch(server.url())
    assert time.monotonic() - started < 5


def test_a_fetch_stops_before_another_attempt(server, make, waits):
    stop = threading.Event()

    def send(request, connection):
        stop.set()
        respond(b"", 503)(request, connection)

    server.routes["/a.png"] = send
    with pytest.raises(DownloadError, match="cancelled"):
        make(cancelled=stop).fetch(server.url())
    assert (len(server.requests), waits) == (1, [])


def test_a_wait_between_attempts_ends_on_cancellation(server, make):
    stop = threading.Event()
    server.routes["/a.png"] = respond(b"", 503, Retry_After=20)
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(DownloadError, match="cancelled"):
        make(cancelled=stop, sleep=None).fetch(server.url())
    assert time.monotonic() - started < 10
    assert len(server.requests) == 1


def test_a_fetch_stops_after_an_interrupted_wait(server, make):
    stop = threading.Event()
    server.routes["/a.png"] = respond(b"", 503)
    with pytest.raises(DownloadError, match="cancelled"):
        make(cancelled=stop, sleep=lambda seconds: stop.set()).fetch(server.url())
    assert len(server.requests) == 1


# error messages

SECRET = "".join(["hid", "den"])  # so that the lines of this file, which tracebacks quote, do not hold it


@pytest.mark.parametrize(
    "send",
    [
        respond(b"", 403),
        respond(b"", 500),
        respond(b"", 418),
        respond(b""),
        respond(b"{}"),
        respond(IMAGE[:1000], length=SIZE),
        redirect(f"/{SECRET}?signature={SECRET}"),
        redirect(f"ftp://{SECRET}/{SECRET}?signature={SECRET}"),
        redirect(f"http://[{SECRET}/?signature={SECRET}"),
        lambda request, connection: "close",
        lambda request, connection: connection.sendall(f"{SECRET} rubbish\r\n\r\n".encode()),
        lambda request, connection: time.sleep(1),
    ],
)
def test_no_error_shows_a_urls_path_or_query(server, make, send):
    server.fallback = send
    with pytest.raises(DownloadError) as caught:
        make(read_timeout_seconds=0.2, attempts=2).fetch(server.url(f"/{SECRET}/a.png?signature={SECRET}"))
    assert caught.value.host in ("127.0.0.1", None)
    assert_shows_no_secret(caught.value)


def test_the_error_of_a_refused_connection_does_not_show_the_url(make):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError) as caught:
        make(attempts=1).fetch(f"http://127.0.0.1:{port}/{SECRET}?signature={SECRET}")
    assert_shows_no_secret(caught.value)


def test_the_error_of_a_rejected_address_does_not_show_the_url(make):
    with pytest.raises(UnsafeAddressError) as caught:
        make(allow_private_hosts=False).fetch(f"http://localhost/{SECRET}?signature={SECRET}")
    assert_shows_no_secret(caught.value)


def assert_shows_no_secret(error):
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(vars(pickle.loads(pickle.dumps(error))))
    while error is not None:
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__
