"""Only public addresses are visited: real servers on loopback, under names that a stand-in for the resolver knows."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_tools import refused
from test_wire import has_ipv6

import tools
from offline import publicweb, webpage

PRIVATE = "127.0.0.9"
OWN = {ip_address("127.0.0.1"), ip_address("::1")}


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALLOW_PRIVATE_HOSTS", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OFFLINE_WEB_DELAY_MS", "0")
    monkeypatch.setattr(webpage, "_offline", False)


class Names:
    """What each name leads to, look-up by look-up; one that has no more answers does not resolve."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def look_up(self, host: str, port: object, *_: object, **__: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if not self.answers.get(host):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.answers[host].pop(0).split()
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.look_up)
    return names


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the test's servers were on the internet; every other address is what it is."""
    really = publicweb.is_public

    def is_public(address: IPv4Address | IPv6Address) -> bool:
        return address in OWN or really(address)

    monkeypatch.setattr(publicweb, "is_public", is_public)


class Site:
    """A server that answers `answers[path]`, else a short text, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.requests: list[dict[str, str]] = []
        self.port = 0

    def redirect(self, path: str, location: str, *headers: str) -> None:
        lines = ["HTTP/1.1 302 Found", f"Location: {location}", "Content-Length: 0", *headers]
        self.answers[path] = "\r\n".join(lines) + "\r\n\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                path = start.split()[1]
                self.requests.append({"path": path} | dict(line.lower().split(": ", 1) for line in lines))
                page = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nArrived."
                writer.write(self.answers.get(path, page).encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the visitor has left
        finally:
            writer.close()

    @property
    def paths(self) -> list[str]:
        return [request["path"] for request in self.requests]


Open = Callable[..., Awaitable[Site]]


@pytest.fixture
async def open_site() -> AsyncIterator[Open]:
    visits: set[asyncio.Task[None]] = set()
    servers: list[asyncio.Server] = []

    async def start(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Site:
        site = Site()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visits.add(asyncio.create_task(site.serve(reader, writer)))

        servers.append(await asyncio.start_server(accept, host, 0, ssl=tls))
        site.port = servers[-1].sockets[0].getsockname()[1]
        return site

    yield start
    for server in servers:
        server.close()
    for visit in visits:
        visit.cancel()
    await asyncio.gather(*visits, return_exceptions=True)


@pytest.fixture
async def site(open_site: Open) -> Site:
    return await open_site()


async def refused_as_not_public(url: str) -> None:
    error = await refused(url)
    assert str(error) == (
        f"{url} leads to an address that is not public, which only a worker.py with ALLOW_PRIVATE_HOSTS=1 visits; "
        "use another page."
    )
    assert error.retryable is False


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.9.9", "192.168.1.1"),
        *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
        *("224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.9"),
        *("::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:100.64.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1", "2001:0:7f00:1::", "2001:db8::1"),
        *("100::1", "3fff::1", "4000::1"),
    ],
)
def test_an_address_that_does_not_mean_the_same_machine_everywhere_is_not_public(address: str) -> None:
    assert not publicweb.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.215.14", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8"],
)
def test_an_address_on_the_internet_is_public(address: str) -> None:
    assert publicweb.is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0", "localhost", "LocalHost"),
        *("someone:secret@127.0.0.1", "93.184.215.14@127.0.0.1", "169.254.169.254", "192.168.0.1"),
        *(
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[fe80::1%1]",
            "[64:ff9b::7f00:1]",
            "[fd00:ec2::254]",
        ),
    ],
)
async def test_however_it_is_written_an_address_that_is_not_public_is_refused(site: Site, host: str) -> None:
    await refused_as_not_public(f"http://{host}:{site.port}/")
    assert site.requests == []


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [PRIVATE, f"127.0.0.1 {PRIVATE}", f"{PRIVATE} 127.0.0.1", "127.0.0.1 fe80::1", "127.0.0.1 ::ffff:7f00:9"],
)
@pytest.mark.usefixtures("loopback_is_public")
async def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(
    site: Site, names: Names, addresses: str
) -> None:
    names.answers["mixed.example"] = [addresses]
    await refused_as_not_public(f"http://mixed.example:{site.port}/")
    assert site.requests == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [("shop.example", "shop.example"), ("SHOP.example.", "shop.example."), ("bücher.example", "xn--bcher-kva.example")],
)
@pytest.mark.usefixtures("loopback_is_public")
async def test_the_connection_goes_to_the_address_that_was_checked_without_a_second_look_up(
    site: Site, names: Names, written: str, meant: str
) -> None:
    names.answers[meant] = ["127.0.0.1"]  # looked up again, it does not exist
    url = f"http://{written}:{site.port}/a%2Fb/%C3%BC?q=1%262"
    assert "Arrived." in await tools.visit_webpage(url)
    assert names.asked == [meant]
    assert [(request["path"], request["host"]) for request in site.requests] == [
        ("/a%2Fb/%C3%BC?q=1%262", f"{meant}:{site.port}")
    ]


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_redirect_to_what_is_not_public_is_refused(site: Site, names: Names) -> None:
    names.answers = {"shop.example": ["127.0.0.1"], "inside.example": [PRIVATE]}
    site.redirect("/", f"http://inside.example:{site.port}/secret")
    await refused_as_not_public(f"http://shop.example:{site.port}/")
    assert site.paths == ["/"]


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_redirect_to_the_same_name_is_checked_anew(site: Site, names: Names) -> None:
    names.answers["shop.example"] = ["127.0.0.1", "127.0.0.1", PRIVATE]
    site.redirect("/", "/second")
    site.redirect("/second", "/third")
    await refused_as_not_public(f"http://shop.example:{site.port}/")
    assert site.paths == ["/", "/second"]


@pytest.mark.usefixtures("loopback_is_public")
async def test_relative_redirects_stay_with_the_name(site: Site, names: Names) -> None:
    names.answers["shop.example"] = ["127.0.0.1", "127.0.0.1"]
    site.redirect("/", "second")
    assert "Arrived." in await tools.visit_webpage(f"http://shop.example:{site.port}/")
    assert {request["host"] for request in site.requests} == {f"shop.example:{site.port}"}


@pytest.mark.usefixtures("loopback_is_public")
async def test_another_name_at_the_same_address_gets_neither_cookie_nor_password(site: Site, names: Names) -> None:
    names.answers = {"shop.example": ["127.0.0.1"] * 2, "other.example": ["127.0.0.1"]}
    site.redirect("/", "/second", "Set-Cookie: key=secret")
    site.redirect("/second", f"http://other.example:{site.port}/third")
    await tools.visit_webpage(f"http://me:secret@shop.example:{site.port}/")
    second, third = site.requests[1:]
    assert (second["cookie"], "authorization" in second) == ("key=secret", True)
    assert third.keys() & {"cookie", "authorization"} == set()


@pytest.mark.skipif(not has_ipv6(), reason="no ::1")
@pytest.mark.usefixtures("loopback_is_public")
async def test_a_kind_of_address_that_does_not_connect_gives_way_to_the_other(open_site: Open, names: Names) -> None:
    for host in ("127.0.0.1", "::1"):
        site = await open_site(host)
        names.answers["shop.example"] = ["::1 127.0.0.1"]
        assert "Arrived." in await tools.visit_webpage(f"http://shop.example:{site.port}/")


async def test_a_name_that_does_not_exist_may_be_tried_again(names: Names) -> None:
    url = "http://nowhere.example/"
    error = await refused(url)
    assert str(error) == (
        f"{url} could not be reached (Name or service not known); try again later or use another page."
    )
    assert error.retryable is True


async def test_a_look_up_that_never_ends_is_given_up_and_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_: object, **__: object) -> list[tuple[Any, ...]]:
        over.wait(timeout=20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(publicweb, "LOOKUP_TIMEOUT_S", 0.1)
    try:
        async with asyncio.timeout(webpage.PAGE_DEADLINE_S / 3):
            error = await refused("http://slow.example/")
    finally:
        over.set()
    assert "slow.example was not looked up in time" in str(error)
    assert error.retryable is True


async def test_the_offline_site_is_visited_without_looking_it_up(names: Names) -> None:
    assert "backoff" in await tools.visit_webpage("https://offline.example/retries")
    assert names.asked == []


# --- the way out ------------------------------------------------------------------------------------------


async def test_private_hosts_are_visited_when_they_are_allowed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{site.port}/"
    for value in ("", "0", "no"):
        monkeypatch.setenv("ALLOW_PRIVATE_HOSTS", value)
        await refused_as_not_public(url)
    monkeypatch.setenv("ALLOW_PRIVATE_HOSTS", "1")
    assert "Arrived." in await tools.visit_webpage(url)


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_proxy_which_would_look_names_up_itself_is_used_only_when_private_hosts_are_allowed(
    site: Site, open_site: Open, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await open_site()
    url = f"http://shop.example:{site.port}/"
    names.answers["shop.example"] = ["127.0.0.1"]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    await tools.visit_webpage(url)
    assert (site.paths, proxy.paths) == (["/"], [])
    monkeypatch.setenv("ALLOW_PRIVATE_HOSTS", "1")
    await tools.visit_webpage(url)
    assert (site.paths, proxy.paths) == (["/"], [url])


# --- https ------------------------------------------------------------------------------------------------


class Tls:
    """A server's certificate for shop.example and blog.example, which the client trusts; the names it was asked for."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.names: list[str | None] = []
        context.set_servername_callback(lambda _, name, __: self.names.append(name))


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tls:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl command to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout {key} -out {certificate}"
    alternatives = ["-addext", "subjectAltName=DNS:shop.example,DNS:blog.example"]
    subprocess.run([*command.split(), *alternatives], check=True, capture_output=True, timeout=60)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return Tls(context)


@pytest.mark.usefixtures("loopback_is_public")
async def test_a_certificate_is_checked_against_the_name_and_not_the_address(
    open_site: Open, names: Names, tls: Tls
) -> None:
    site = await open_site(tls=tls.context)
    names.answers = {"shop.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    assert "Arrived." in await tools.visit_webpage(f"https://shop.example:{site.port}/")
    error = await refused(f"https://other.example:{site.port}/")
    assert "certificate is not valid for 'other.example'" in str(error)
    assert tls.names == ["shop.example", "other.example"]
    assert [request["host"] for request in site.requests] == [f"shop.example:{site.port}"]


@pytest.mark.usefixtures("loopback_is_public")
async def test_no_connection_is_used_for_another_name_at_the_same_address(
    open_site: Open, names: Names, tls: Tls
) -> None:
    site = await open_site(tls=tls.context)
    names.answers = {"shop.example": ["127.0.0.1"], "blog.example": ["127.0.0.1"]}
    async with httpx.AsyncClient(transport=publicweb.PublicWeb()) as client:
        for name in ("shop.example", "blog.example"):
            assert (await client.get(f"https://{name}:{site.port}/")).text == "Arrived."
    assert tls.names == ["shop.example", "blog.example"]
