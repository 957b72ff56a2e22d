"""The tools against real servers that misbehave, and the search engines cut off at their HTTP client."""

import asyncio
import errno
import gzip
import os
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import tools
from nexum_agents import ToolError
from offline import reading, webpage

MEGABYTE = 1024 * 1024

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Answer], Awaitable[str]]


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOW_PRIVATE_HOSTS", "1")  # the servers are on loopback
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OFFLINE_WEB_DELAY_MS", "0")
    monkeypatch.setattr(webpage, "_offline", False)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts HTTP servers on free ports; what a server answers is written by the test, byte by byte."""
    servers: list[asyncio.Server] = []
    visitors: set[asyncio.Task[None]] = set()

    async def start(answer: Answer) -> str:
        async def visitor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
                await answer(request.split()[1].decode(), writer)
            except ConnectionError:
                pass  # the tool hung up on the server, as it should
            finally:
                writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visitors.add(asyncio.create_task(visitor(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for task in visitors:
        task.cancel()
    await asyncio.gather(*visitors, return_exceptions=True)


def page(
    body: bytes | str = b"", content_type: str | None = "text/html", status: str = "200 OK", **headers: str
) -> Answer:
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"Content-Type: {content_type}"] if content_type else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode()

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"\r\n\r\n" + content)
        await writer.drain()

    return answer


def article(text: str, title: str = "A title") -> str:
    return f"<!doctype html><html><head><title>{title}</title></head><body><p>{text}</p></body></html>"


async def refused(url: str) -> ToolError:
    with pytest.raises(ToolError) as caught:
        await tools.visit_webpage(url)
    sentence = str(caught.value)
    assert sentence.startswith(url)
    assert sentence.endswith("use another page.")
    assert "\n" not in sentence
    return caught.value


# --- pages that can be read -------------------------------------------------------------------------------


async def test_a_page_is_returned_with_its_title_and_readable_text(serve: Serve) -> None:
    url = await serve(page(article("Hello, durable world.", "Greetings\n to all")))
    assert await tools.visit_webpage(url) == "# Greetings to all\n\nHello, durable world."


async def test_menus_and_scripts_are_left_out_of_an_article(serve: Serve) -> None:
    text = "A sentence that is long enough to be the article of this page. " * 10
    menu = "<ul><li><a href='/'>Home page</a></li><li><a href='/shop'>Our shop</a></li></ul>"
    html = f"<html><body><div class='menu'>{menu}</div><article><p>{text}</p></article><script>track()</script></body>"
    read = await tools.visit_webpage(await serve(page(html)))
    assert "long enough" in read
    assert "track" not in read
    assert "Our shop" not in read


async def test_a_page_of_nothing_but_comments_is_still_read(serve: Serve) -> None:
    html = "<html><body><div class='comments'><p>What somebody said.</p></div></body></html>"
    assert "What somebody said." in await tools.visit_webpage(await serve(page(html)))


async def test_a_bare_fragment_is_still_read(serve: Serve) -> None:
    url = await serve(page("<p>just this</p>"))
    assert await tools.visit_webpage(url) == f"# {url}\n\njust this"


async def test_a_long_page_is_cut_and_says_so(serve: Serve) -> None:
    read = await tools.visit_webpage(await serve(page("word " * 4000, "text/plain")))
    assert len(read) == tools.PAGE_CHARS_MAX
    assert read.endswith("characters.]")
    assert "Cut here" in read


async def test_a_page_that_just_fits_is_not_cut(serve: Serve) -> None:
    url = await serve(page("x" * 7000, "text/plain"))
    assert await tools.visit_webpage(url) == f"# {url}\n\n" + "x" * 7000


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "application/feed+json; charset=utf-8", "application/atom+xml"]
)
async def test_text_that_is_not_html_is_returned_as_it_is(serve: Serve, content_type: str) -> None:
    url = await serve(page('{"a": "<b>ü</b>"}', content_type))
    assert await tools.visit_webpage(url) == f'# {url}\n\n{{"a": "<b>ü</b>"}}'


async def test_a_byte_order_mark_is_no_part_of_the_text(serve: Serve) -> None:
    url = await serve(page(b"\xef\xbb\xbfplain", "text/plain"))
    assert await tools.visit_webpage(url) == f"# {url}\n\nplain"


async def test_five_redirects_are_followed(serve: Serve) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        hops = int(path.strip("/"))
        onward = page(status="302 Found", Location=f"/{hops - 1}")
        await (onward if hops else page(article("Arrived at last.")))(path, writer)

    url = await serve(answer)
    assert "Arrived at last." in await tools.visit_webpage(f"{url}/5")
    assert (await refused(f"{url}/6")).retryable is False


async def test_a_compressed_page_is_unpacked(serve: Serve) -> None:
    body = gzip.compress(article("Packed tight.").encode())
    assert "Packed tight." in await tools.visit_webpage(await serve(page(body, Content_Encoding="gzip")))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=koi8-r", article("Привет, мир.").encode("koi8-r")),
        ("text/html", b'<meta charset="windows-1251">' + article("Привет, мир.").encode("cp1251")),
        ("text/html", b"\xff\xfe" + article("Привет, мир.").encode("utf-16-le")),
        ("text/html; charset=klingon-1", article("Привет, мир.").encode()),
        ("text/html", article("Привет, мир.").encode("utf-8-sig")),
        (
            'application/xhtml+xml; charset="utf-8"',
            b'<?xml version="1.0" encoding="utf-8"?>' + article("Привет, мир.").encode(),
        ),
    ],
    ids=["header", "page", "byte order mark", "unknown", "utf-8 with mark", "xhtml"],
)
async def test_a_page_is_read_in_the_charset_it_was_written_in(serve: Serve, content_type: str, body: bytes) -> None:
    assert "Привет, мир." in await tools.visit_webpage(await serve(page(body, content_type)))


async def test_a_page_of_no_declared_charset_is_read_as_browsers_do(serve: Serve) -> None:
    read = await tools.visit_webpage(await serve(page(article("Grüße – auf bald.").encode("cp1252"))))
    assert "Grüße – auf bald." in read


@pytest.mark.parametrize("where", ["header", "page"])
async def test_a_charset_that_takes_for_ever_is_none(serve: Serve, where: str) -> None:
    body = b"Hello, " + b"a" * 300_000 + b"-" + b"a" * 300_000  # some 14 s as punycode
    if where == "page":
        url = await serve(page(b"<meta charset=punycode><p>" + body, "text/html"))
    else:
        url = await serve(page(body, "text/plain; charset=punycode"))
    assert "Hello, aaaaa" in await tools.visit_webpage(url)


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "undefined", "idna", "zip", "a%00b"])
async def test_a_charset_that_no_browser_knows_is_not_used(serve: Serve, charset: str) -> None:
    url = await serve(page(rb"\x1b[31m +2ADcAA- ok", f"text/plain; charset={charset}"))
    assert await tools.visit_webpage(url) == f"# {url}\n\n\\x1b[31m +2ADcAA- ok"


# --- pages that cannot ------------------------------------------------------------------------------------


async def test_a_pdf_is_refused_by_its_type(serve: Serve) -> None:
    error = await refused(await serve(page(b"%PDF-1.7", "application/pdf")))
    assert "is application/pdf, neither text nor HTML" in str(error)
    assert error.retryable is False


@pytest.mark.parametrize("body", ["", "  \n ", "<html><body><script>render()</script></body></html>"])
async def test_a_page_without_text_is_refused(serve: Serve, body: str) -> None:
    error = await refused(await serve(page(body)))
    assert "no readable text" in str(error)
    assert error.retryable is False


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        ("404 Not Found", False),
        ("403 Forbidden", False),
        ("429 Too Many Requests", True),
        ("408 Request Timeout", True),
        ("500 Internal Server Error", True),
        ("503 Service Unavailable", True),
        ("204 No Content", False),
        ("304 Not Modified", False),
    ],
)
async def test_a_status_is_named_and_decides_whether_to_try_again(serve: Serve, status: str, retryable: bool) -> None:
    error = await refused(await serve(page("", status=status)))
    assert f"answered {status};" in str(error)
    assert error.retryable is retryable


async def test_fifty_megabytes_that_are_declared_are_refused_at_once(serve: Serve) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % (50 * MEGABYTE))
        await asyncio.Event().wait()  # not a byte of the body is ever sent

    error = await refused(await serve(answer))
    assert "larger than 2 MB" in str(error)
    assert error.retryable is False


async def test_fifty_megabytes_of_unknown_length_are_not_read_to_their_end(serve: Serve) -> None:
    sent = 0

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n")
        for _ in range(50 * 16):
            writer.write(b"x" * (MEGABYTE // 16))
            await writer.drain()
            sent += MEGABYTE // 16

    error = await refused(await serve(answer))
    assert "larger than 2 MB" in str(error)
    assert error.retryable is False
    assert sent < 25 * MEGABYTE  # what the tool read, and what fits into the sockets' buffers


@pytest.mark.parametrize("status", ["200 OK", "302 Found"])
async def test_fifty_megabytes_packed_into_a_few_are_never_unpacked(serve: Serve, status: str) -> None:
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join(pack.compress(bytes(MEGABYTE)) for _ in range(50)) + pack.flush()
    assert len(bomb) < MEGABYTE
    url = await serve(page(bomb, status=status, Content_Encoding="gzip", Location="/again"))
    await tools.visit_webpage(await serve(page("warm", "text/plain")))  # imports are not to be measured
    tracemalloc.start()
    try:
        error = await refused(url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "larger than 2 MB" in str(error) or "redirects more than 5 times" in str(error)
    assert error.retryable is False
    assert peak < 20 * MEGABYTE


async def test_a_broken_compression_may_be_tried_again(serve: Serve) -> None:
    assert (await refused(await serve(page(b"not gzip", Content_Encoding="gzip")))).retryable is True


async def test_a_compression_nobody_asked_for_is_refused(serve: Serve) -> None:
    error = await refused(await serve(page(b"?", Content_Encoding="gzip, gzip")))
    assert "compressed as gzip, gzip" in str(error)
    assert error.retryable is False


async def test_redirects_for_ever_are_given_up(serve: Serve) -> None:
    error = await refused(await serve(page(status="301 Moved Permanently", Location="/")))
    assert "redirects more than 5 times" in str(error)
    assert error.retryable is False


@pytest.mark.parametrize("location", ["javascript:alert(1)", "file:///etc/passwd", "http://127.0.0.1:99999/"])
async def test_a_redirect_cannot_lead_off_the_web(serve: Serve, location: str) -> None:
    error = await refused(await serve(page(status="302 Found", Location=location)))
    assert "does not lead to a" in str(error)
    assert error.retryable is False


async def test_a_page_that_never_answers_is_given_up_after_the_read_timeout(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(webpage, "READ_TIMEOUT_S", 0.1)
    async with asyncio.timeout(webpage.PAGE_DEADLINE_S / 3):
        error = await refused(await serve(answer))
    assert "did not answer in time" in str(error)
    assert error.retryable is False


async def test_a_page_that_trickles_is_given_up_at_the_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    monkeypatch.setattr(webpage, "PAGE_DEADLINE_S", 0.2)
    error = await refused(await serve(answer))
    assert "did not answer in time" in str(error)
    assert error.retryable is False


async def test_a_page_that_takes_too_long_to_read_is_given_up_for_good_and_the_next_one_is_read(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READING_SECONDS", 0.3)
    error = await refused(await serve(page("<html><body>" + "<p>word word</p>" * 130_000)))
    assert "takes more than 0.3 s to read" in str(error)
    assert error.retryable is False
    monkeypatch.undo()
    monkeypatch.setenv("ALLOW_PRIVATE_HOSTS", "1")
    assert "Next." in await tools.visit_webpage(await serve(page(article("Next."))))


async def test_a_page_that_takes_too_much_memory_to_read_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READING_MIB", 250)
    monkeypatch.setattr(reading, "_idle", [])
    error = await refused(await serve(page("<html><body>" + "<a href=x>y</a>" * 135_000)))
    assert "takes more than 250 MiB of memory to read" in str(error)
    assert error.retryable is False


async def test_a_reader_that_has_grown_large_is_not_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    idle: list[Any] = []
    monkeypatch.setattr(reading, "_idle", idle)
    await tools.visit_webpage(await serve(page(article("Small."))))
    assert len(idle) == 1
    await tools.visit_webpage(await serve(page("<html><body>" + "<a href=x>y</a>" * 135_000)))
    assert idle == []


async def test_a_page_in_very_many_parts_is_given_up(serve: Serve) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n" * 10_000)
            await writer.drain()

    assert "is sent in more than 20,000 parts" in str(await refused(await serve(answer)))


async def test_what_unpacks_to_nothing_for_ever_is_given_up(serve: Serve) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n")
        writer.write(b"\x1f\x8b\x08\0\0\0\0\0\0\x03")
        while True:
            writer.write(b"\0\0\0\xff\xff" * 13_000)
            await writer.drain()

    assert "is larger than 2 MB" in str(await refused(await serve(answer)))


async def test_a_refused_connection_may_be_tried_again() -> None:
    with socket.socket() as unserved:
        unserved.bind(("127.0.0.1", 0))  # taken, and nobody listens
        error = await refused(f"http://127.0.0.1:{unserved.getsockname()[1]}/")
    assert "could not be reached" in str(error)
    assert error.retryable is True


async def test_a_server_that_hangs_up_may_be_tried_again(serve: Serve) -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")

    assert (await refused(await serve(answer))).retryable is True


async def test_a_host_that_does_not_exist_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = await refused("http://no-such-host.invalid/")
    assert "Name or service not known" in str(error)
    assert error.retryable is True


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "example.com",
        "http://",
        "http:///path",
        "http://[::1",
        "http://127.0.0.1:abc/",
        "http://127.0.0.1:99999/",
        "http://xn--/",
        "http://" + "ü" * 80 + "/",
    ],
)
async def test_what_is_no_web_address_is_refused(url: str) -> None:
    assert (await refused(url)).retryable is False


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1/" + "a" * 70_000, "http://127.0.0.1:1/\ud800"])
async def test_even_an_absurd_url_ends_in_a_short_sentence(url: str) -> None:
    with pytest.raises(ToolError, match=r"use another page\.$") as caught:
        await tools.visit_webpage(url)
    assert len(str(caught.value).encode()) < 500


# --- search -----------------------------------------------------------------------------------------------

RESULTS_PAGE = "".join(
    f"""<div class="result results_links result__body"><h2><a href="https://site-{n}.test/">Durable\n {n}</a></h2>
    <a href="https://site-{n}.test/">About durable execution, part {n}.</a></div>"""
    for n in range(1, 10)
)


class EngineAnswer:
    def __init__(self, status_code: int, text: str = "") -> None:
        self.status_code, self.text = status_code, text


def engines_answer(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], EngineAnswer]) -> None:
    def request(self: object, method: str, url: str, **_: Any) -> EngineAnswer:
        return answer(url)

    monkeypatch.setattr("ddgs.http_client.HttpClient.request", request)


async def test_a_search_lists_title_url_and_snippet(monkeypatch: pytest.MonkeyPatch) -> None:
    engines_answer(
        monkeypatch, lambda url: EngineAnswer(200, RESULTS_PAGE) if "duckduckgo" in url else EngineAnswer(403)
    )
    listing = await tools.web_search("durable execution", max_results=2)
    first, second = listing.split("\n\n")
    assert first.splitlines() == [
        "1. Durable 1",
        "   https://site-1.test/",
        "   About durable execution, part 1.",
    ]
    assert second.startswith("2. Durable 2\n")


@pytest.mark.parametrize(("asked", "given"), [(-3, 1), (0, 1), (7, 7), (1000, 20)])
async def test_the_number_of_results_is_kept_between_one_and_twenty(
    monkeypatch: pytest.MonkeyPatch, asked: int, given: int
) -> None:
    page_of_many = "".join(RESULTS_PAGE.replace("site-", f"site-{n}-") for n in range(3))
    engines_answer(
        monkeypatch, lambda url: EngineAnswer(200, page_of_many) if "duckduckgo" in url else EngineAnswer(403)
    )
    listing = await tools.web_search("durable execution", max_results=asked)
    assert len(listing.split("\n\n")) == given


async def test_a_search_without_results_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = EngineAnswer(200, "<p>Nothing</p>")
    engines_answer(monkeypatch, lambda url: EngineAnswer(403) if "pedia" in url else nothing)
    assert await tools.web_search("xyzzy plugh") == "No results for “xyzzy plugh”."


@pytest.mark.parametrize("failure", ["ConnectError: no route", "request timed out"])
async def test_a_failed_search_may_be_tried_again(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    from ddgs.exceptions import DDGSException

    def fail(url: str) -> EngineAnswer:
        raise DDGSException(failure)

    engines_answer(monkeypatch, fail)
    with pytest.raises(ToolError, match=r"The search for “xyzzy” failed .*; try again later\.") as caught:
        await tools.web_search("xyzzy")
    assert caught.value.retryable is True


async def test_a_search_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    over = threading.Event()

    def hang(url: str) -> EngineAnswer:
        over.wait(timeout=20)
        return EngineAnswer(403)

    engines_answer(monkeypatch, hang)
    monkeypatch.setattr(tools, "SEARCH_DEADLINE_S", 0.1)
    try:
        with pytest.raises(ToolError, match=r"took more than 0\.1 seconds; try again later") as caught:
            await tools.web_search("xyzzy")
    finally:
        over.set()
    assert caught.value.retryable is True


async def test_an_empty_query_is_refused() -> None:
    with pytest.raises(ToolError, match="query is empty") as caught:
        await tools.web_search("  ")
    assert caught.value.retryable is False


# --- offline ----------------------------------------------------------------------------------------------


def no_engine(url: str) -> EngineAnswer:
    raise AssertionError(f"a search engine was asked: {url}")


async def test_a_query_for_the_offline_site_asks_no_search_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engines_answer(monkeypatch, no_engine)
    listing = await tools.web_search("idempotency keys site:offline.example", max_results=1)
    assert listing.startswith("1. Idempotency and idempotency keys\n   https://offline.example/idempotency\n   ")


async def test_once_offline_every_search_is_answered_by_the_offline_site(monkeypatch: pytest.MonkeyPatch) -> None:
    engines_answer(monkeypatch, no_engine)
    webpage.go_offline()
    assert "https://offline.example/idempotency" in await tools.web_search("idempotency keys")


async def test_once_offline_only_offline_pages_can_be_visited(serve: Serve) -> None:
    webpage.go_offline()
    error = await refused(await serve(page(article("A live page."))))
    assert "cannot be visited offline" in str(error)
    assert error.retryable is False
    assert (await tools.visit_webpage("https://offline.example/retries")).startswith(
        "# Retries, backoff and jitter\n\n"
    )


# --- reports ----------------------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reports"


def not_saved(name: str, text: str = "x") -> ToolError:
    with pytest.raises(ToolError) as caught:
        tools.save_report(name, text)
    return caught.value


@pytest.mark.parametrize("name", ["a", "2026-11_Report.v2.md", "-", "_x", "a" * 100])
def test_a_report_is_a_file_of_its_name(reports: Path, name: str) -> None:
    assert tools.save_report(name, "é\n") == f"Saved as reports/{name}, 3 B."
    assert {path.name: path.read_text(encoding="utf-8") for path in reports.iterdir()} == {name: "é\n"}


def test_a_report_takes_the_place_of_the_one_before_it_and_no_other(reports: Path) -> None:
    for text in ("first and longer", "second", "second"):
        tools.save_report("a.md", text)
    tools.save_report("b.md", "other")
    found = {path.name: path.read_text(encoding="utf-8") for path in reports.iterdir()}
    assert found == {"a.md": "second", "b.md": "other"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "../up", "/etc/passwd", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "C:a", "a" * 101],
)
def test_a_name_that_could_lead_elsewhere_is_refused(reports: Path, name: str) -> None:
    error = not_saved(name)
    assert "is no name for a report" in str(error)
    assert (error.retryable, error.begun) == (False, False)
    assert not reports.exists()


@pytest.mark.parametrize("target", ["there.txt", "nowhere.txt"])
def test_a_symlink_in_the_place_of_a_report_is_refused(reports: Path, target: str) -> None:
    (reports.parent / "there.txt").write_text("kept")
    reports.mkdir()
    (reports / "a.md").symlink_to(f"../{target}")
    assert str(not_saved("a.md")) == "reports/a.md is there already, and is no file."
    assert (reports / "a.md").is_symlink()
    assert [path.name for path in reports.iterdir()] == ["a.md"]
    assert (reports.parent / "there.txt").read_text() == "kept"
    assert not (reports.parent / "nowhere.txt").exists()


def test_a_folder_in_the_place_of_a_report_is_refused(reports: Path) -> None:
    (reports / "a.md").mkdir(parents=True)
    assert str(not_saved("a.md")) == "reports/a.md is there already, and is no file."


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_in_the_place_of_the_folder_is_refused(reports: Path, exists: bool) -> None:
    elsewhere = reports.parent / "elsewhere"
    if exists:
        elsewhere.mkdir()
    reports.symlink_to(elsewhere)
    assert str(not_saved("a.md")).startswith("Cannot write to the folder reports: ")
    assert not exists or list(elsewhere.iterdir()) == []


def test_a_report_has_a_limit(reports: Path) -> None:
    tools.save_report("a.md", "x" * tools.REPORT_BYTES_MAX)
    assert str(not_saved("a.md", "x" * (tools.REPORT_BYTES_MAX + 1))) == "The report is 1.0 MiB; the limit is 1.0 MiB."


def test_a_disk_that_is_full_leaves_the_report_before_it(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.save_report("a.md", "first")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert str(not_saved("a.md", "second")) == "Cannot write reports/a.md: No space left on device."
    assert {path.name: path.read_text() for path in reports.iterdir()} == {"a.md": "first"}


# --- imports ----------------------------------------------------------------------------------------------


def test_importing_the_tools_loads_no_library_that_they_work_with() -> None:
    heavy = {"httpx", "ddgs", "primp", "trafilatura", "lxml"}
    script = f"import sys, tools; print(*({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []
