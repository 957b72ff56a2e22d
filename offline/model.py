"""An agent model with no network and no weights: it searches, reads the best pages, and quotes them.

It takes the place of a language model where there is no key, so that everything around it can be run and
tested: the agent loop, the tools, calls in parallel. It keeps no state. Each turn follows from the
conversation alone, and every sentence about the subject comes word for word from a page that a tool returned.

    nothing called yet   → two searches, in parallel
    searched             → visits to the best pages, in parallel
    pages read           → the answer, saved first where there is a tool for it
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from agents import ModelResponse, ModelSettings, Tool, Usage
from agents.items import TResponseInputItem, TResponseOutputItem, TResponseStreamEvent
from agents.models.interface import Model
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from offline import SITE, terms

SECOND_ANGLE = "guarantees and limits"  # what the second search asks of the question's key words
PAGES_READ = 3
RANK_DAMPING = 10  # reciprocal rank fusion's k: how little a first place is worth more than a second
QUOTES_PER_PAGE = 4
OPENING_WEIGHT = 1.5  # a page's first paragraph defines its subject
FILE_NAME_CHARS = 60
SAME_SAID = 0.5  # the share of a sentence's words from which on another one has said the same

NOT_COVERED = "The offline pages do not cover this question, so there is nothing to answer it with."
NOT_READ = "The pages that should answer this could not be searched or read:"
ABOUT = (
    "This is the built-in offline agent: no language model and no web, only a few pages about durable execution, "
    "such as crashes and recovery, idempotency, retries, workflow engines and the tool calls of AI agents. For a "
    "real answer, set OPENAI_API_KEY or GEMINI_API_KEY and ask again."
)

_RESULT = re.compile(r"^\d+\. .+\n +(https?://\S+)$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z“])")
_LEANING = re.compile(  # a sentence that opens like this leans on the one before it
    r"(and|another|both|but|each|he|it|its|one|otherwise|she|such|that|then|these|they|this|those"
    r"|the (first|order|other|price|same|second|two|usual))\b",
    re.IGNORECASE,
)


class OfflineModel(Model):
    """Give it to an agent that has the tools `web_search` and `visit_webpage`: `Agent(model=OfflineModel())`."""

    model = "offline agent"  # what sessions know it by

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        *_: Any,
        **__: Any,
    ) -> ModelResponse:
        return ModelResponse(output=self._turn(input, tools), usage=Usage(requests=1), response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """The whole turn in one event: there are no tokens that could arrive one by one."""
        turn = await self.get_response(*args, **kwargs)
        response = Response(
            id="offline",
            created_at=0,
            model="offline",
            object="response",
            output=turn.output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)

    def _turn(self, input: str | list[TResponseInputItem], tools: list[Tool]) -> list[TResponseOutputItem]:
        return _next_turn(input, tools)


@dataclass
class _Call:
    tool: str
    arguments: dict[str, Any]
    output: str = ""


@dataclass(frozen=True)
class _Page:
    title: str
    url: str
    text: str


@dataclass(frozen=True)
class _Sentence:
    text: str
    page: int  # its source mark, from 1
    place: int  # in its page
    opening: bool

    def terms(self) -> set[str]:
        return set(terms(self.text))


def _next_turn(input: str | list[TResponseInputItem], tools: list[Tool]) -> list[TResponseOutputItem]:
    question, calls = _since_last_question(input)
    searches = [call.output for call in calls if call.tool == "web_search"]
    visits = [call for call in calls if call.tool == "visit_webpage"]
    saves = [call.output for call in calls if call.tool == "save_report"]
    plan: list[tuple[str, dict[str, Any]]] = []
    if not searches:
        plan = [("web_search", {"query": f"{query} {SITE}"}) for query in _queries(question)]
    elif not visits:
        plan = [("visit_webpage", {"url": url}) for url in _best_urls(searches)]
    elif not saves:
        plan = [("save_report", {"name": _file_name(question), "text": _answer(question, searches, visits)})]
    available = {tool.name for tool in tools}
    position = 1 if isinstance(input, str) else len(input)
    turn: list[TResponseOutputItem] = [
        _function_call(position + offset, tool, arguments)
        for offset, (tool, arguments) in enumerate(plan)
        if tool in available
    ]
    return turn or [_message(position, "\n\n".join([_answer(question, searches, visits), *saves]))]


def _since_last_question(input: str | list[TResponseInputItem]) -> tuple[str, list[_Call]]:
    """The user's last message, and the calls made since with their outputs."""
    if isinstance(input, str):
        return input, []
    question, calls = "", dict[str, _Call]()
    for item in cast(list[dict[str, Any]], input):
        if item.get("role") == "user":
            question, calls = _text(item["content"]), {}
        elif item.get("type") == "function_call":
            calls[item["call_id"]] = _Call(item["name"], json.loads(item["arguments"]))
        elif item.get("type") == "function_call_output" and item["call_id"] in calls:
            calls[item["call_id"]].output = _text(item["output"])
    return question, list(calls.values())


def _file_name(question: str) -> str:
    words = "-".join(re.findall(r"[a-z0-9]+", question.lower()))
    return f"{words[:FILE_NAME_CHARS] or 'report'}.md"


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _queries(question: str) -> list[str]:
    """The question itself, and its key words seen from another angle."""
    words = re.findall(r"[\w'’-]+", question)
    key_words = [word for word in words if terms(word)]
    return [question, " ".join([*key_words, SECOND_ANGLE])]


def _best_urls(searches: list[str]) -> list[str]:
    """The pages that rank best in all searches taken together: reciprocal rank fusion."""
    scores: dict[str, float] = {}
    for found in searches:
        for rank, url in enumerate(_RESULT.findall(found), start=1):
            scores[url] = scores.get(url, 0) + 1 / (RANK_DAMPING + rank)
    return sorted(scores, key=lambda url: -scores[url])[:PAGES_READ]


def _answer(question: str, searches: list[str], visits: list[_Call]) -> str:
    pages, problems = list[_Page](), list[str]()
    for visit in visits:
        heading, _, text = visit.output.partition("\n\n")
        if heading.startswith("# "):
            pages.append(_Page(heading.removeprefix("# "), visit.arguments["url"], text))
        else:
            problems.append(visit.output)
    problems += [found for found in searches if not _RESULT.search(found) and not found.startswith("No results")]
    listed = "\n".join(f"- {problem}" for problem in problems)
    quotes = _most_relevant(question, pages)
    if not quotes:
        return f"{NOT_READ}\n\n{listed}\n\n{ABOUT}" if problems else f"{NOT_COVERED}\n\n{ABOUT}"

    lead = min(quotes, key=lambda quote: (quote.page, not quote.opening))  # what defines the best page's subject
    parts = [f"{lead.text} [{lead.page}]"]
    for number, page in enumerate(pages, start=1):
        chosen = [quote for quote in quotes if quote.page == number and quote is not lead]
        if chosen:
            lines = [f"- {quote.text} [{number}]" for quote in sorted(chosen, key=lambda quote: quote.place)]
            parts.append("\n".join([f"**{page.title}**\n", *lines]))
    sources = "\n".join(f"{number}. {page.title}, {page.url}" for number, page in enumerate(pages, start=1))
    parts.append(f"**Sources**\n\n{sources}")
    if problems:
        parts.append(f"**What could not be searched or read**\n\n{listed}")
    return "\n\n".join(parts)


def _most_relevant(question: str, pages: list[_Page]) -> list[_Sentence]:
    """Sentences that share rare words with the question, best first, none of which repeats another."""
    sentences = [sentence for number, page in enumerate(pages, start=1) for sentence in _sentences(number, page)]
    frequency = Counter(term for sentence in sentences for term in sentence.terms())
    wanted = set(terms(question))

    def relevance(sentence: _Sentence) -> float:
        said = sentence.terms()
        shared = math.fsum(math.log(1 + len(sentences) / frequency[term]) for term in wanted & said)
        return shared / math.sqrt(len(said) + 1) * (OPENING_WEIGHT if sentence.opening else 1)

    chosen: list[_Sentence] = []
    for sentence in sorted(sentences, key=relevance, reverse=True):
        from_page = sum(other.page == sentence.page for other in chosen)
        about_it = relevance(sentence) > 0 or sentence.opening
        if about_it and from_page < QUOTES_PER_PAGE and not any(_repeats(sentence, other) for other in chosen):
            chosen.append(sentence)
    return chosen


def _sentences(number: int, page: _Page) -> list[_Sentence]:
    """The sentences of a page that can stand by themselves. Lines that end in no full stop are headings."""
    paragraphs = [line for line in page.text.splitlines() if line.endswith((".", "!", "?"))]
    opening_sentences = len(_SENTENCE_END.split(paragraphs[0])) if paragraphs else 0
    return [
        _Sentence(text, number, place, opening=place < opening_sentences)
        for place, text in enumerate(_SENTENCE_END.split("\n".join(paragraphs)))
        if not _LEANING.match(text)
    ]


def _repeats(one: _Sentence, other: _Sentence) -> bool:
    mine, theirs = one.terms(), other.terms()
    return len(mine & theirs) >= SAME_SAID * min(len(mine), len(theirs))


def _function_call(position: int, tool: str, arguments: dict[str, Any]) -> ResponseFunctionToolCall:
    dumped = json.dumps(arguments, ensure_ascii=False)
    return ResponseFunctionToolCall(
        type="function_call", call_id=_identity("call", position, tool, dumped), name=tool, arguments=dumped
    )


def _message(position: int, text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(
        type="message", id=_identity("msg", position, text), role="assistant", status="completed", content=[content]
    )


def _identity(kind: str, *parts: int | str) -> str:
    """The same in every run, and different for everything in a run, since the conversation only grows."""
    return f"{kind}_{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"
