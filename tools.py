"""The agent's tools: a web search and a page reader, with a limit on everything the web may do to them.

Plain functions that know nothing of agents, nor of what makes their calls durable. The agent only needs their
signatures and docstrings, so a library is imported where it is used: in the worker, at the first call.
Whatever goes wrong is said in one sentence, a `ToolError`, for the model to read.
"""

import asyncio
import codecs
import json
import re
import zlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import offline
from nexum_runtime.errors import TaskError

if TYPE_CHECKING:
    import httpx

SEARCH_RESULTS_MAX = 20
SEARCH_ENGINE_TIMEOUT_S = 5  # for each search engine
SEARCH_DEADLINE_S = 20.0  # for all of them together

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0  # the longest silence in the middle of an answer
PAGE_DEADLINE_S = 30.0  # for one page, redirects and all
REDIRECTS_MAX = 5
PAGE_MB_MAX = 2  # after decompression
PAGE_CHARS_MAX = 8_000  # of what the model gets to read

HTML_TYPES = {"", "text/html", "application/xhtml+xml"}  # who names no type most likely sends HTML
TEXT_TYPES = re.compile(r"text/.+|application/(.+\+)?(json|xml)")
PASSING_STATUSES = {408, 425, 429}  # of the 4xx, those that a later attempt may well not meet again

_offline = False


class ToolError(TaskError):
    """What went wrong in a tool, in one sentence that names the query or URL and says what to do."""


def go_offline() -> None:
    """From now on answer every search from the offline pages, and visit no page but those."""
    global _offline
    _offline = True


async def web_search(query: str, max_results: int = 5) -> str:
    """Search the web. Returns a numbered list with the title, URL and a snippet of each page found.

    Args:
        query: What to look for: a question or a few key words.
        max_results: How many pages to list, 1 to 20.
    """
    query = _one_line(query)
    if not query:
        raise ToolError("The search query is empty; say what to look for.", retryable=False)
    count = max(1, min(max_results, SEARCH_RESULTS_MAX))
    if _offline or offline.SITE in query.split():
        found = await _search_offline(query.replace(offline.SITE, ""), count)
    else:
        found = await _search_live(query, count)
    if not found:
        return f"No results for “{query}”."
    return "\n\n".join(
        f"{number}. {_one_line(title)}\n   {_one_line(url)}\n   {_one_line(snippet)}"
        for number, (title, url, snippet) in enumerate(found, start=1)
    )


async def visit_webpage(url: str) -> str:
    """Read a web page. Returns its title and readable text, the first 8,000 characters if it is longer.

    Args:
        url: The page's full address, beginning with https:// or http://.
    """
    url = _one_line(url)
    content_type, source = await _fetch(url)
    title, text = "", source.strip()
    if content_type in HTML_TYPES:
        title, text = await asyncio.to_thread(_readable, source)
    if not text:
        raise _page_error(url, "has no readable text")
    page = f"# {_one_line(title) or url}\n\n{text}"
    if len(page) > PAGE_CHARS_MAX:
        note = f"\n\n[Cut here: the page has {len(page):,} characters.]"
        page = page[: PAGE_CHARS_MAX - len(note)] + note
    return page


TOOLS: dict[str, Callable[..., Coroutine[Any, Any, str]]] = {  # what a worker may run, by name
    "web_search": web_search,
    "visit_webpage": visit_webpage,
}


async def _search_live(query: str, count: int) -> list[tuple[str, str, str]]:
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException

    try:
        async with asyncio.timeout(SEARCH_DEADLINE_S):
            found = await asyncio.to_thread(
                lambda: DDGS(timeout=SEARCH_ENGINE_TIMEOUT_S).text(query, max_results=count)
            )
    except DDGSException as error:
        if str(error) == "No results found.":  # it says the same when every engine turned it away
            return []
        raise ToolError(f"The search for “{query}” failed ({error}); try again later.") from None
    except TimeoutError:
        reason = f"The search for “{query}” took more than {SEARCH_DEADLINE_S:g} seconds; try again later."
        raise ToolError(reason) from None
    return [(result["title"], result["href"], result["body"]) for result in found]


async def _search_offline(query: str, count: int) -> list[tuple[str, str, str]]:
    _, answer = await _fetch(f"https://{offline.HOST}/search?{urlencode({'q': query, 'n': count})}")
    return [(result["title"], result["url"], result["snippet"]) for result in json.loads(answer)]


async def _fetch(url: str) -> tuple[str, str]:
    """Content type and text of a page. Whatever goes wrong on the way there becomes a `ToolError`."""
    import httpx

    from offline.web import OfflineWeb

    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    headers = {"accept-encoding": "gzip", "user-agent": "Mozilla/5.0 (compatible; durable-agent-example)"}
    mounts = {f"all://{offline.HOST}": OfflineWeb()}
    try:
        async with (
            asyncio.timeout(PAGE_DEADLINE_S),
            httpx.AsyncClient(timeout=timeout, headers=headers, mounts=mounts) as client,
        ):
            target = httpx.URL(url)
            for _ in range(1 + REDIRECTS_MAX):
                _check_address(url, target)
                async with client.stream("GET", target) as response:
                    if response.next_request is None:
                        return await _read(url, response)
                    target = response.next_request.url
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _page_error(url, f"does not lead to a valid URL ({error})") from None
    except (TimeoutError, httpx.ReadTimeout):
        raise _page_error(url, "did not answer in time") from None
    except (httpx.TransportError, zlib.error) as error:
        what = str(error) or type(error).__name__
        raise _page_error(url, f"could not be reached ({what})", retryable=True) from None
    raise _page_error(url, f"redirects more than {REDIRECTS_MAX} times")


def _check_address(url: str, target: "httpx.URL") -> None:
    """Refuse, at every redirect anew, what httpx does not fetch or would fail on with errors not its own."""
    if target.scheme not in ("http", "https") or not target.host or (target.port or 0) > 0xFFFF:
        raise _page_error(url, "does not lead to an http:// or https:// address with a host")
    if _offline and target.host != offline.HOST:
        raise _page_error(url, f"cannot be visited offline, where only https://{offline.HOST} exists")


async def _read(url: str, response: "httpx.Response") -> tuple[str, str]:
    """Content type and text of an answer, unless its status, type or size rules it out.

    Decompressed here, under the limit: httpx expands a chunk in one go, and a small one can hide gigabytes.
    """
    status = response.status_code
    if status != 200:
        retryable = status >= 500 or status in PASSING_STATUSES
        raise _page_error(url, f"answered {status} {response.reason_phrase}".rstrip(), retryable=retryable)
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in HTML_TYPES and not TEXT_TYPES.fullmatch(content_type):
        raise _page_error(url, f"is {content_type}, neither text nor HTML")
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise _page_error(url, f"is compressed as {encoding}, which it was not asked for")

    limit = PAGE_MB_MAX * 1024 * 1024
    too_big = _page_error(url, f"is larger than {PAGE_MB_MAX} MB")
    if int(response.headers.get("content-length", 0)) > limit:
        raise too_big
    body = b""
    gunzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    async for chunk in response.aiter_raw():
        body += gunzip.decompress(chunk, limit + 1 - len(body)) if encoding == "gzip" else chunk
        if len(body) > limit:
            raise too_big
    return content_type, _decode(body, response.charset_encoding)


def _decode(body: bytes, declared: str | None) -> str:
    """Text by the byte order mark, by the charset that header or page name, by UTF-8, or as browsers do."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    in_page = re.search(rb"""(?:charset|encoding)=["']?([\w.:-]+)""", body[:2048])
    for name in (marks.get(body[:3]), marks.get(body[:2]), declared, in_page and in_page[1].decode()):
        try:
            if name:
                return body.decode(name, "replace")
        except (LookupError, ValueError):
            continue  # not a charset that Python knows
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def _readable(source: str) -> tuple[str, str]:
    """Title and text of an HTML page: its article without the menus around it, or all there is."""
    import trafilatura

    tree = trafilatura.load_html(source)
    if tree is None:  # not a whole document
        tree = trafilatura.load_html(f"<html><body>{source}</body></html>")
    if tree is None:
        return "", ""
    title = tree.findtext(".//title") or ""
    return title, trafilatura.extract(tree, include_comments=False) or trafilatura.html2txt(tree)


def _page_error(url: str, problem: str, *, retryable: bool = False) -> ToolError:
    advice = "try again later or use another page" if retryable else "use another page"
    return ToolError(f"{url[:200] or 'An empty URL'} {problem}; {advice}.", retryable=retryable)


def _one_line(text: str) -> str:
    """Without line breaks, and without the half characters that a broken JSON escape leaves behind."""
    return " ".join(text.split()).encode(errors="replace").decode()
