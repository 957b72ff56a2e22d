"""The agent's tools: a web search, a page reader, and one that saves a report, with a limit on everything.

Plain functions that know nothing of agents, nor of what makes their calls durable. The agent only needs their
signatures and docstrings, so a library is imported where it is used: in the worker, at the first call.
Whatever goes wrong is said in one sentence, a `ToolError`, for the model to read.
"""

import asyncio
import json
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import offline
from nexum_agents import ToolError
from nexum_runtime.text import size_text
from offline import webpage

SEARCH_RESULTS_MAX = 20
SEARCH_ENGINE_TIMEOUT_S = 5  # for each search engine
SEARCH_DEADLINE_S = 20.0  # for all of them together

PAGE_CHARS_MAX = 8_000  # of what the model gets to read

REPORTS = Path("reports")  # in the worker's folder
REPORT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
REPORT_NAMES = 'letters, digits, ".", "_" and "-", at most 100, and no "." in front'
REPORT_BYTES_MAX = 1024 * 1024


async def web_search(query: str, max_results: int = 5) -> str:
    """Search the web. Returns a numbered list with the title, URL and a snippet of each page found.

    Args:
        query: What to look for: a question or a few key words.
        max_results: How many pages to list, 1 to 20.
    """
    query = webpage.one_line(query)
    if not query:
        raise ToolError("The search query is empty; say what to look for.", retryable=False)
    count = max(1, min(max_results, SEARCH_RESULTS_MAX))
    if webpage.is_offline() or offline.SITE in query.split():
        found = await _search_offline(query.replace(offline.SITE, ""), count)
    else:
        found = await _search_live(query, count)
    if not found:
        return f"No results for “{query}”."
    return "\n\n".join(
        f"{number}. {webpage.one_line(title)}\n   {webpage.one_line(url)}\n   {webpage.one_line(snippet)}"
        for number, (title, url, snippet) in enumerate(found, start=1)
    )


async def visit_webpage(url: str) -> str:
    """Read a web page. Returns its title and readable text, the first 8,000 characters if it is longer.

    Args:
        url: The page's full address, beginning with https:// or http://.
    """
    url = webpage.one_line(url)
    title, text = await webpage.read(url)
    if not text:
        raise webpage.page_error(url, "has no readable text")
    page = f"# {title or url}\n\n{text}"
    if len(page) > PAGE_CHARS_MAX:
        note = f"\n\n[Cut here: the page has {len(page):,} characters.]"
        page = page[: PAGE_CHARS_MAX - len(note)] + note
    return page


def save_report(name: str, text: str) -> str:
    """Save a report as a file in the folder reports/. One that has this name already is replaced.

    Args:
        name: The file's name, such as durable-execution.md: letters, digits, ".", "_" and "-", no "." in front.
        text: What to write into it.
    """
    if not REPORT_NAME.fullmatch(name):
        raise ToolError(f"{name[:100]!r} is no name for a report: {REPORT_NAMES}.", retryable=False, begun=False)
    content = text.encode(errors="replace")
    if len(content) > REPORT_BYTES_MAX:
        reason = f"The report is {size_text(len(content))}; the limit is {size_text(REPORT_BYTES_MAX)}."
        raise ToolError(reason, retryable=False, begun=False)
    try:
        REPORTS.mkdir(exist_ok=True)
        folder = os.open(REPORTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # all that follows happens in there
    except OSError as error:
        raise ToolError(f"Cannot write to the folder {REPORTS}: {error.strerror}.", retryable=False) from None
    try:
        _replace_file(folder, name, content)
    except OSError as error:
        raise ToolError(f"Cannot write {REPORTS / name}: {error.strerror}.") from None
    finally:
        os.close(folder)
    return f"Saved as {REPORTS / name}, {size_text(len(content))}."


def _replace_file(folder: int, name: str, content: bytes) -> None:
    """Whole or not at all, and only if what is there is a file: no symlink is followed, none replaced."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise ToolError(f"{REPORTS / name} is there already, and is no file.", retryable=False, begun=False)
    except FileNotFoundError:
        pass
    written = f".{name}.{secrets.token_hex(8)}"  # a name that no report can have
    try:
        with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder), "wb") as file:
            file.write(content)
        os.replace(written, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(written, dir_fd=folder)
        raise


TOOLS: list[Any] = [web_search, visit_webpage, save_report]  # what a worker may run; sync functions run in threads


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
    _, answer = await webpage.read(f"https://{offline.HOST}/search?{urlencode({'q': query, 'n': count})}")
    return [(result["title"], result["url"], result["snippet"]) for result in json.loads(answer)]
