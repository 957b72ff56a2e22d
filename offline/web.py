"""The offline web: the site https://offline.example, behind httpx's own interface for transports.

A client that mounts `OfflineWeb` for this host reaches the site as it would any other, with no network:

    https://offline.example/<slug>              the page in pages/<slug>.html
    https://offline.example/search?q=…&n=…      the best pages as JSON: [{"title", "url", "snippet"}]
"""

import asyncio
import functools
import html
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx

from offline import HOST, terms
from offline.needed import DELAY_MS

PAGES = Path(__file__).parent / "pages"
DEFAULT_DELAY_MS = 250  # per request, so that a run can be watched and interrupted like a real one
DEFAULT_RESULTS = 5

TITLE_WEIGHT = 4  # a word of the title counts as so many words of the text
SATURATION = 1.2  # BM25's k1: how soon further occurrences of a word stop counting
LENGTH_WEIGHT = 0.75  # BM25's b: how much a long page is held back
MIN_COVERAGE = 0.6  # share of a question's words, weighted by rarity, that a page must know to be about it


class OfflineWeb(httpx.AsyncBaseTransport):
    """Answers every request from the pages folder, after a delay of OFFLINE_WEB_DELAY_MS."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(int(os.environ.get(DELAY_MS, DEFAULT_DELAY_MS)) / 1000)
        slug = request.url.path.strip("/")
        if slug == "search":
            query, count = request.url.params.get("q", ""), request.url.params.get("n", "")
            found = search(query, int(count[:3]) if count.isdecimal() else DEFAULT_RESULTS)
            return _response(200, "application/json", json.dumps(found, ensure_ascii=False))
        if page := _pages().get(slug):
            return _response(200, "text/html; charset=utf-8", page.source)
        return _response(404, "text/html; charset=utf-8", "<!doctype html><title>No such page</title>")


def search(query: str, count: int) -> list[dict[str, str]]:
    """The best `count` pages for `query`, best first; none at all for a question the pages do not cover."""
    wanted = set(terms(query))
    scores = {page: _bm25(page, wanted) for page in _pages().values() if _covers(page, wanted)}
    best = sorted(scores, key=lambda page: (-scores[page], page.slug))[:count]
    return [{"title": page.title, "url": f"https://{HOST}/{page.slug}", "snippet": page.description} for page in best]


@dataclass(frozen=True, eq=False)
class _Page:
    slug: str
    title: str
    description: str
    source: str
    subjects: tuple[frozenset[str], ...]  # the terms of each of the page's key phrases
    occurrences: Counter[str]
    length: int


@functools.cache
def _pages() -> dict[str, _Page]:
    """All pages by slug. A request's path is only ever looked up here, so it cannot leave the folder."""
    return {path.stem: _read(path) for path in sorted(PAGES.glob("*.html"))}


def _read(path: Path) -> _Page:
    source = path.read_text(encoding="utf-8")
    title = _between(source, "<title>", "</title>")
    keywords = _between(source, '<meta name="keywords" content="', '"')
    text = terms(html.unescape(re.sub(r"<[^>]+>", " ", _between(source, "<article>", "</article>"))))
    return _Page(
        slug=path.stem,
        title=title,
        description=_between(source, '<meta name="description" content="', '"'),
        source=source,
        subjects=tuple(frozenset(terms(phrase)) for phrase in keywords.split(",")),
        occurrences=Counter(text + terms(title) * TITLE_WEIGHT),
        length=len(text),
    )


def _between(source: str, start: str, end: str) -> str:
    return html.unescape(source.partition(start)[2].partition(end)[0])


def _covers(page: _Page, wanted: set[str]) -> bool:
    """Whether the question holds one of the page's key phrases, or the page knows most of the question's words."""
    if any(subject <= wanted for subject in page.subjects):
        return True
    known = {term for term in wanted if term in page.occurrences}
    return bool(known) and math.fsum(map(_rarity, known)) >= MIN_COVERAGE * math.fsum(map(_rarity, wanted))


def _rarity(term: str) -> float:
    """BM25's inverse document frequency, in the form that never reaches zero; highest for unknown words."""
    return math.log(1 + len(_pages()) / (sum(term in page.occurrences for page in _pages().values()) or 0.5))


def _bm25(page: _Page, wanted: set[str]) -> float:
    average = sum(other.length for other in _pages().values()) / len(_pages())
    damping = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * page.length / average)
    counts = {term: page.occurrences[term] for term in wanted}
    return math.fsum(  # exact, for a set of words has no order and floats do not add up alike in every order
        _rarity(term) * count * (SATURATION + 1) / (count + damping) for term, count in counts.items()
    )


def _response(status: int, content_type: str, text: str) -> httpx.Response:
    # Handed over as a stream: a body that httpx has already read could not be read under the caller's limits.
    return httpx.Response(status, headers={"content-type": content_type}, stream=httpx.ByteStream(text.encode()))
