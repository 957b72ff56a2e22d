"""One page of the web, with a limit on everything it may do: its time, its redirects, its type, its size.

It is fetched in a thread and read in a process, for what strangers send may be made to take long: meanwhile the event
loop, which keeps other calls going, has its time.

Whatever goes wrong is said in one sentence, a `ToolError`, for the model to read. Libraries are imported where they
are used: the agent, which knows the tools by their signatures only, does not load them.
"""

import asyncio
import os
import re
import zlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import offline
from nexum_agents import ToolError
from nexum_runtime.worker.attempt import run_in_thread
from offline import reading

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0  # the longest silence in the middle of an answer
PAGE_DEADLINE_S = 30.0  # for one page, redirects and all
REDIRECTS_MAX = 5
PAGE_MB_MAX = 2  # after decompression
PAGE_PARTS_MAX = 20_000  # that it is sent in: each takes time, however small it is

HTML_TYPES = {"", "text/html", "application/xhtml+xml"}  # who names no type most likely sends HTML
TEXT_TYPES = re.compile(r"text/.+|application/(.+\+)?(json|xml)")
PASSING_STATUSES = {408, 425, 429}  # of the 4xx, those that a later attempt may well not meet again

_offline = False


def go_offline() -> None:
    """From now on answer every search from the offline pages, and visit no page but those."""
    global _offline
    _offline = True


def is_offline() -> bool:
    return _offline


async def read(url: str) -> tuple[str, str]:
    """Title and text of a page. Whatever goes wrong becomes a `ToolError`."""
    return await run_in_thread(lambda: _read(url))


def _read(url: str) -> tuple[str, str]:
    with closing(asyncio.new_event_loop()) as loop:  # `asyncio.run` would wait for a look-up that does not end
        page = loop.run_until_complete(_fetch(url))
    try:
        return reading.read(page.body, page.charset, is_html=page.content_type in HTML_TYPES)
    except reading.Unread as error:
        raise page_error(url, str(error)) from None


@dataclass(frozen=True)
class _Page:
    content_type: str
    charset: str | None
    body: bytes


async def _fetch(url: str) -> _Page:
    import httpx

    from offline.publicweb import NotPublicError, PublicWeb
    from offline.web import OfflineWeb

    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    headers = {"accept-encoding": "gzip", "user-agent": "Mozilla/5.0 (compatible; durable-agent-example)"}
    mounts = {f"all://{offline.HOST}": OfflineWeb()}
    transport = None if os.environ.get("ALLOW_PRIVATE_HOSTS") == "1" else PublicWeb()  # None is httpx's own
    try:
        async with (
            asyncio.timeout(PAGE_DEADLINE_S),
            httpx.AsyncClient(timeout=timeout, headers=headers, mounts=mounts, transport=transport) as client,
        ):
            target = httpx.URL(url)
            for _ in range(1 + REDIRECTS_MAX):
                _check_address(url, target)
                async with client.stream("GET", target) as response:
                    if response.next_request is None:
                        return await _body(url, response)
                    target = response.next_request.url
    except (httpx.InvalidURL, UnicodeError) as error:
        raise page_error(url, f"does not lead to a valid URL ({error})") from None
    except (TimeoutError, httpx.ReadTimeout):
        raise page_error(url, "did not answer in time") from None
    except NotPublicError:
        problem = "leads to an address that is not public, which only a worker.py with ALLOW_PRIVATE_HOSTS=1 visits"
        raise page_error(url, problem) from None
    except (httpx.TransportError, zlib.error) as error:
        what = str(error) or type(error).__name__
        raise page_error(url, f"could not be reached ({what})", retryable=True) from None
    raise page_error(url, f"redirects more than {REDIRECTS_MAX} times")


def _check_address(url: str, target: "httpx.URL") -> None:
    """Refuse, at every redirect anew, what httpx does not fetch or would fail on with errors not its own."""
    if target.scheme not in ("http", "https") or not target.host or (target.port or 0) > 0xFFFF:
        raise page_error(url, "does not lead to an http:// or https:// address with a host")
    if _offline and target.host != offline.HOST:
        raise page_error(url, f"cannot be visited offline, where only https://{offline.HOST} exists")


async def _body(url: str, response: "httpx.Response") -> _Page:
    """The page in an answer, unless its status, type or size rules it out.

    Decompressed here, under the limit: httpx expands a chunk in one go, and a small one can hide gigabytes.
    """
    status = response.status_code
    if status != 200:
        retryable = status >= 500 or status in PASSING_STATUSES
        raise page_error(url, f"answered {status} {response.reason_phrase}".rstrip(), retryable=retryable)
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in HTML_TYPES and not TEXT_TYPES.fullmatch(content_type):
        raise page_error(url, f"is {content_type}, neither text nor HTML")
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise page_error(url, f"is compressed as {encoding}, which it was not asked for")

    limit = PAGE_MB_MAX * 1024 * 1024
    too_big = page_error(url, f"is larger than {PAGE_MB_MAX} MB")
    if int(response.headers.get("content-length", 0)) > limit:
        raise too_big
    body, sent_bytes, parts = bytearray(), 0, 0
    gunzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    async for chunk in response.aiter_raw():
        body += gunzip.decompress(chunk, limit + 1 - len(body)) if encoding == "gzip" else chunk
        sent_bytes, parts = sent_bytes + len(chunk), parts + 1
        if max(len(body), sent_bytes) > limit:  # what is packed may also be much, and unpack to nothing
            raise too_big
        if parts > PAGE_PARTS_MAX:
            raise page_error(url, f"is sent in more than {PAGE_PARTS_MAX:,} parts")
    return _Page(content_type, response.charset_encoding, bytes(body))


def page_error(url: str, problem: str, *, retryable: bool = False) -> ToolError:
    advice = "try again later or use another page" if retryable else "use another page"
    return ToolError(f"{url[:200] or 'An empty URL'} {problem}; {advice}.", retryable=retryable)


def one_line(text: str) -> str:
    """Without line breaks, and without the half characters that a broken JSON escape leaves behind."""
    return " ".join(text.split()).encode(errors="replace").decode()
