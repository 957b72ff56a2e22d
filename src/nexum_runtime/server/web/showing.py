"""Texts from outside as HTML: escaped, without marks that a reader cannot see, and cut where they are long."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from nexum_runtime.telling.words import HASH_CHARS, what_text
from nexum_runtime.text import duration_text, number_text, printable, shorten, size_text, timestamp

FOLDER = Path(__file__).parent
LINKS = ("https://", "http://", "mailto:")
MARKDOWN_CHARS = 20_000  # a longer text is shown as it is
TITLE_CHARS = 90  # of what an execution is, in its title
TEXT_CHARS = 20_000  # shown of a text
TREE_LEVELS, TREE_ITEMS, TREE_CHARS = 12, 100, 2_000  # of JSON; what is beyond is told as a number, or cut
OPEN_LEVELS = 2  # of JSON that are not folded


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "time": time_tag,
        "duration": duration_text,
        "size": size_text,
        "number": number_text,
        "markdown": markdown,
        "value": value,
        "short": lambda text: shorten(text, TITLE_CHARS),
        "hash": lambda text: text[:HASH_CHARS],
        "words": lambda text: text.lower().replace("_", " "),
    }
    made.globals |= {"link": link, "what_text": what_text}
    return made


def _visible(value: Any) -> Any:
    """What every expression of a template passes through."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def link(path: str, **query: Any) -> str:
    given = {name: each for name, each in query.items() if each not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def time_tag(epoch_ms: int | None) -> Markup:
    """In UTC; the page's script says it in the reader's zone."""
    if epoch_ms is None:
        return Markup("")
    shown = datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    exact = timestamp(epoch_ms)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, shown)


def markdown(text: str) -> Markup:
    """Rendered without HTML, pictures, and links to anything but pages and addresses of mail."""
    if len(text) > MARKDOWN_CHARS:
        return plain(text)
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable("table").disable("image")
    parser.validateLink = lambda url: url.lower().startswith(LINKS)  # type: ignore[method-assign]
    tokens = parser.parse(printable(text))
    for token in tokens:
        if token.type.startswith("heading_"):  # the page has headings of its own
            token.tag = "p"
            token.attrSet("class", "heading")
        for each in token.children or ():
            if each.type == "link_open":
                each.attrSet("rel", "noopener noreferrer nofollow")
    return Markup('<div class="markdown">{}</div>').format(Markup(parser.renderer.render(tokens, parser.options, {})))


def plain(text: str) -> Markup:
    rest = len(text) - TEXT_CHARS
    more = Markup('<p class="quiet">… and {} characters more.</p>').format(f"{rest:,}") if rest > 0 else Markup("")
    return Markup('<pre tabindex="0">{}</pre>{}').format(printable(text[:TEXT_CHARS]), more)


def value(cut: dict[str, Any]) -> Markup:
    """JSON as `Reading` cuts it: a text as text, anything else as a tree that folds."""
    if not cut["is_whole"]:
        return plain(cut["json"])
    try:
        parsed = json.loads(cut["json"])
    except ValueError:
        return plain(cut["json"])
    if isinstance(parsed, str):
        as_markdown = Markup("<details><summary>As Markdown</summary>{}</details>").format(markdown(parsed))
        return plain(parsed) + (as_markdown if 0 < len(parsed) <= MARKDOWN_CHARS and "\n" in parsed else Markup(""))
    return Markup('<div class="tree" tabindex="0">{}</div>').format(tree(parsed))


def tree(value: Any, level: int = 0) -> Markup:
    if not isinstance(value, dict | list) or not value:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rest = len(text) - TREE_CHARS
        shown = printable(text[:TREE_CHARS]) + (f"… and {rest:,} characters more" if rest > 0 else "")
        kind = "text" if isinstance(value, str) else "plain"
        return Markup('<span class="{}">{}</span>').format(kind, shown)
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    summary = f"{len(items)} {'field' if isinstance(value, dict) else 'item'}{'' if len(items) == 1 else 's'}"
    if level >= TREE_LEVELS:
        return Markup('<span class="plain">{}</span>').format(f"… {summary}")
    rows = Markup("").join(
        Markup('<li><span class="key">{}</span> {}</li>').format(printable(str(key)[:200]), tree(each, level + 1))
        for key, each in items[:TREE_ITEMS]
    )
    if len(items) > TREE_ITEMS:
        rows += Markup('<li class="quiet">… and {} more</li>').format(len(items) - TREE_ITEMS)
    is_open = Markup(" open") if level < OPEN_LEVELS else Markup("")
    return Markup("<details{}><summary>{}</summary><ul>{}</ul></details>").format(is_open, escape(summary), rows)
