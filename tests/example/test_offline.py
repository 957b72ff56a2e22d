"""The offline web and the offline model, alone and together in the SDK's own agent loop."""

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from agents import Agent, FunctionTool, RunConfig, Runner, RunResult, function_tool
from agents.items import ToolCallItem, TResponseInputItem

import tools
from nexum_agents import ToolError
from offline import terms
from offline.model import OfflineModel
from offline.web import PAGES, OfflineWeb, search

SITE = "https://offline.example"
QUESTION = "What is durable execution for AI agents?"
UNCOVERED = ["best pizza in Naples", "who won the 1998 world cup", "how do I train for a marathon", "???"]
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE_WEB_DELAY_MS", "0")


class Watched:
    """A tool that remembers its arguments, and how many of its calls ran at once."""

    def __init__(self, function: Callable[..., Awaitable[str]]) -> None:
        self.arguments: list[str] = []
        self.at_once_max = 0
        running = 0

        @functools.wraps(function)
        async def watch(*args: Any, **kwargs: Any) -> str:
            nonlocal running
            self.arguments.append(args[0])
            running += 1
            self.at_once_max = max(self.at_once_max, running)
            try:
                await asyncio.sleep(0)
                return await function(*args, **kwargs)
            finally:
                running -= 1

        self.tool: FunctionTool = function_tool(watch)


def agent_of(*watched: Watched) -> Agent[None]:
    return Agent(name="offline", model=OfflineModel(), tools=[each.tool for each in watched])


async def ask(question: str | list[TResponseInputItem]) -> tuple[RunResult, Watched, Watched]:
    searches, visits = Watched(tools.web_search), Watched(tools.visit_webpage)
    return await Runner.run(agent_of(searches, visits), question, run_config=QUIET), searches, visits


def calls_of(result: RunResult) -> list[Any]:
    return [item.raw_item for item in result.new_items if isinstance(item, ToolCallItem)]


def cited(answer: str) -> list[str]:
    return re.findall(r"https://\S+", answer.partition("**Sources**")[2].partition("\n\n**")[0])


# --- the web ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "slug"),
    [
        (QUESTION, "durable-execution-for-ai-agents"),
        ("What is durable execution?", "durable-execution"),
        ("Why do agent runs crash?", "what-a-crash-costs"),
        ("idempotency in Kafka consumers", "idempotency"),
        ("Can an effect be exactly once?", "delivery-guarantees"),
        ("SQLite WAL and fsync", "write-ahead-logging"),
        ("What happens when a worker dies?", "leases-and-heartbeats"),
        ("retry with exponential backoff", "retries"),
        ("What is event sourcing?", "event-sourcing"),
        ("the saga pattern", "sagas"),
        ("Compare Temporal, DBOS and Restate", "workflow-engines"),
        ("How does tool calling work?", "tool-calling"),
        ("human approval in the loop", "human-approval"),
        ("deterministic replay or a journal of results", "replay-or-journal"),
        ("a long pause of the garbage collector", "leases-and-heartbeats"),
    ],
)
def test_a_question_finds_the_page_about_it_first(question: str, slug: str) -> None:
    assert search(question, 5)[0]["url"] == f"{SITE}/{slug}"


@pytest.mark.parametrize(
    "question",
    [*UNCOVERED, "", "What is the capital of France?", "How does a car engine work?", "cost of living in Tokyo"],
)
def test_a_question_the_pages_do_not_cover_finds_nothing(question: str) -> None:
    assert search(question, 20) == []


def test_no_more_results_are_listed_than_asked_for() -> None:
    assert len(search("durable execution", 2)) == 2


@pytest.mark.parametrize(
    "words", ["retry retries retried retrying", "execution executes executed", "durable durability"]
)
def test_the_forms_of_a_word_are_one_term(words: str) -> None:
    assert len(set(terms(words))) == 1


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.meta: dict[str | None, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "meta" and "name" in given:
            self.meta[given["name"]] = given["content"]


@pytest.mark.parametrize("slug", sorted(path.stem for path in PAGES.glob("*.html")))
def test_every_page_is_described_and_links_only_to_pages_that_exist(slug: str) -> None:
    outline = Outline()
    outline.feed((PAGES / f"{slug}.html").read_text(encoding="utf-8"))
    assert outline.tags[outline.tags.index("article") :][:3] == ["article", "h1", "p"]
    assert outline.meta["description"]
    assert outline.meta["keywords"]
    assert outline.links
    for link in outline.links:
        assert (PAGES / f"{link.removeprefix('/')}.html").is_file(), link
        assert link != f"/{slug}"


@pytest.mark.parametrize("path", ["/nothing-here", "/", "/../model.py", "/%2e%2e/model.py", "/pages/retries.html"])
async def test_a_path_that_is_no_page_is_not_found(path: str) -> None:
    request = httpx.Request("GET", SITE, extensions={"target": path.encode()})
    assert (await OfflineWeb().handle_async_request(request)).status_code == 404
    with pytest.raises(ToolError, match="answered 404 Not Found"):
        await tools.visit_webpage(SITE + path)


async def test_every_request_takes_the_configured_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr("offline.web.asyncio.sleep", nap)
    for delay in ("75", None):
        monkeypatch.setenv("OFFLINE_WEB_DELAY_MS", delay) if delay else monkeypatch.delenv("OFFLINE_WEB_DELAY_MS")
        await OfflineWeb().handle_async_request(httpx.Request("GET", f"{SITE}/retries"))
    assert naps == [0.075, 0.25]


# --- the model --------------------------------------------------------------------------------------------


async def test_the_agent_searches_and_reads_in_parallel_and_cites_what_it_read() -> None:
    result, searches, visits = await ask(QUESTION)
    answer = result.final_output
    assert len(set(searches.arguments)) == 2
    assert all(query.endswith(" site:offline.example") for query in searches.arguments)
    assert searches.at_once_max == 2
    assert len(set(visits.arguments)) == visits.at_once_max == 3
    assert cited(answer) == visits.arguments
    assert answer.startswith("Durable execution for AI agents means that every tool call an agent makes is recorded")


async def test_every_quoted_sentence_stands_on_the_page_it_is_credited_to() -> None:
    result, _, visits = await ask(QUESTION)
    pages = [await tools.visit_webpage(url) for url in visits.arguments]
    quotes = re.findall(r"^(?:- )?(.+) \[(\d)\]$", result.final_output, re.MULTILINE)
    assert len(quotes) >= 6
    assert len({quote for quote, _ in quotes}) == len(quotes)
    assert {number for _, number in quotes} == {"1", "2", "3"}
    for quote, number in quotes:
        assert quote in pages[int(number) - 1]


async def test_an_answer_leaves_out_what_repeats_leans_on_its_surroundings_or_is_too_much() -> None:
    text = """Durable agents
        Durable agents record the result of each tool call.
        These agents wait. Agents that sleep need patience and time. The result of a tool call is what agents record!
        Agents on distant moons orbit quietly for centuries. Agents below oceans count fish.
        Agents inside mountains hear no music, no weather, no visitors, no laughter, no bells, no rain.
        Agents in a heading"""

    async def visit_webpage(url: str) -> str:
        return "# On agents\n\n" + re.sub("\n +", "\n", text)

    agent = agent_of(Watched(tools.web_search), Watched(visit_webpage))
    answer = (await Runner.run(agent, "saga agents", run_config=QUIET)).final_output
    assert answer.partition("\n\n**Sources**")[0] == (
        "Durable agents record the result of each tool call. [1]\n\n"
        "**On agents**\n\n- Agents that sleep need patience and time. [1]\n"
        "- Agents on distant moons orbit quietly for centuries. [1]\n- Agents below oceans count fish. [1]"
    )


@pytest.mark.parametrize("question", UNCOVERED)
async def test_a_question_that_is_not_covered_gets_an_honest_answer_and_no_page_is_read(question: str) -> None:
    result, searches, visits = await ask(question)
    assert searches.arguments
    assert visits.arguments == []
    assert "do not cover this question" in result.final_output
    assert "OPENAI_API_KEY or GEMINI_API_KEY" in result.final_output
    assert cited(result.final_output) == []


async def test_the_same_question_makes_the_same_calls_and_the_same_answer() -> None:
    (first, *_), (second, *_) = await ask(QUESTION), await ask(QUESTION)
    assert first.final_output == second.final_output
    assert [call.model_dump() for call in calls_of(first)] == [call.model_dump() for call in calls_of(second)]


async def test_no_call_id_is_used_twice_even_when_a_question_is_repeated() -> None:
    first, *_ = await ask(QUESTION)
    again: list[TResponseInputItem] = [*first.to_input_list(), {"role": "user", "content": QUESTION}]
    second, *_ = await ask(again)
    ids = [call.call_id for call in calls_of(first) + calls_of(second)]
    assert len(ids) == len(set(ids)) == 10


async def test_a_follow_up_question_is_answered_and_not_the_first_one() -> None:
    first, *_ = await ask(QUESTION)
    part: Any = {"type": "input_text", "text": "What is the saga pattern?"}
    follow_up: list[TResponseInputItem] = [*first.to_input_list(), {"role": "user", "content": [part]}]
    result, searches, _ = await ask(follow_up)
    assert searches.arguments[0] == "What is the saga pattern? site:offline.example"
    assert result.final_output.startswith("A saga is a sequence of local transactions")


async def test_a_page_that_cannot_be_read_is_left_out_and_named() -> None:
    async def visit_webpage(url: str) -> str:
        if url.endswith("/durable-execution"):
            return f"{url} answered 500 Internal Server Error; use another page."
        return await tools.visit_webpage(url)

    agent = agent_of(Watched(tools.web_search), Watched(visit_webpage))
    answer = (await Runner.run(agent, QUESTION, run_config=QUIET)).final_output
    assert len(cited(answer)) == 2
    assert f"{SITE}/durable-execution" not in cited(answer)
    assert f"- {SITE}/durable-execution answered 500 Internal Server Error; use another page." in answer


async def test_a_search_that_fails_is_not_mistaken_for_a_question_that_is_not_covered() -> None:
    async def web_search(query: str) -> str:
        return "The search engines are on strike; try again later."

    agent = agent_of(Watched(web_search), Watched(tools.visit_webpage))
    answer = (await Runner.run(agent, QUESTION, run_config=QUIET)).final_output
    assert "The search engines are on strike" in answer
    assert "do not cover" not in answer


async def test_only_tools_that_the_agent_has_are_called() -> None:
    result = await Runner.run(agent_of(Watched(tools.web_search)), QUESTION, run_config=QUIET)
    assert {call.name for call in calls_of(result)} == {"web_search"}


async def test_the_agent_saves_its_answer_where_it_can_and_tells_what_came_of_it() -> None:
    saved: list[tuple[str, str]] = []

    @function_tool
    def save_report(name: str, text: str) -> str:
        saved.append((name, text))
        return "Saved, more or less."

    agent = agent_of(Watched(tools.web_search), Watched(tools.visit_webpage))
    agent.tools.append(save_report)
    result = await Runner.run(agent, QUESTION, run_config=QUIET)
    ((name, text),) = saved
    assert name == "what-is-durable-execution-for-ai-agents.md"
    assert result.final_output == f"{text}\n\nSaved, more or less."


async def test_a_streamed_run_ends_in_the_same_answer() -> None:
    agent = agent_of(Watched(tools.web_search), Watched(tools.visit_webpage))
    streamed = Runner.run_streamed(agent, QUESTION, run_config=QUIET)
    kinds = [event.type async for event in streamed.stream_events()]
    result, *_ = await ask(QUESTION)
    assert "run_item_stream_event" in kinds
    assert streamed.final_output == result.final_output


async def test_arguments_are_json_that_the_tools_accept() -> None:
    result, *_ = await ask('What do "durable" agents\\need? ⚡')
    assert next(json.loads(call.arguments) for call in calls_of(result)) == {
        "query": 'What do "durable" agents\\need? ⚡ site:offline.example'
    }
