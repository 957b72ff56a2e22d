"""Runs that workers execute, over HTTP: the app that people mount in their own."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from agents import Agent
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message
from processes import eventually
from starlette.applications import Starlette
from starlette.routing import Mount

from nexum_agents import Worker, http, start_run
from nexum_agents.http import runs_app


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


class Desk:
    """An agent whose model answers when it is let."""

    def __init__(self) -> None:
        self.begun, self.may_answer = asyncio.Event(), asyncio.Event()
        self.agent = Agent[Any](name="Desk", model=ScriptedModel([ModelStep.respond(self._turn)] * 9))

    async def _turn(self, call: ModelCall) -> Any:
        self.begun.set()
        await self.may_answer.wait()
        return [assistant_message("here")]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    worker = Worker(agents=[desk.agent])
    running = asyncio.create_task(worker.run())
    yield desk
    desk.may_answer.set()
    worker.stop()
    await running


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Mount("/runs", runs_app(["Desk"]))])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/runs/", timeout=60) as client:
        yield client


ASKED = {"agent": "Desk", "input": "Where?", "session_id": "s1"}


async def test_a_run_that_is_started_over_http_is_the_one_that_start_run_starts(
    web: httpx.AsyncClient, desk: Desk
) -> None:
    started = (await web.post("start", json=ASKED)).json()
    run = await start_run(desk.agent, "Where?", session_id="s1")
    assert started == {"session_id": "s1", "execution_id": run.execution_id}
    which = {"execution_id": run.execution_id}
    assert (await web.get("result", params=which)).json()["status"] == "RUNNING"
    desk.may_answer.set()
    told = (await web.get("result", params=which | {"wait": "60"})).json()
    assert (told["status"], told["final_output"], told["last_agent"]) == ("COMPLETED", "here", "Desk")
    assert told["usage"]["requests"] == 1
    assert (await web.post("start", json=ASKED)).json() == started
    assert (await run.result()).final_output == "here"


async def test_a_run_is_stopped_over_http(web: httpx.AsyncClient, desk: Desk) -> None:
    started = (await web.post("start", json=ASKED)).json()
    await desk.begun.wait()
    assert (await web.post("stop", json={"session_id": "s1", "reason": "enough"})).json() == {"let_finish": []}
    refused = await web.post("start", json=ASKED)
    assert (refused.status_code, refused.json()["code"]) == (409, "FAILED_PRECONDITION")
    assert "enough" in refused.json()["message"]
    assert "final_output" not in (await web.get("result", params=started)).json()


@pytest.mark.parametrize(
    ("method", "path", "asked", "status", "words"),
    [
        ("POST", "start", ASKED | {"agent": "Other"}, 404, "No agent 'Other' can be run here"),
        ("POST", "start", ASKED | {"session_id": "a/b"}, 400, "session_id is 'a/b'"),
        ("POST", "start", ASKED | {"input": 7}, 400, "input: "),
        ("POST", "start", ASKED | {"model": "x"}, 400, "model: "),
        ("POST", "stop", {"session_id": "never"}, 404, "never"),
        ("POST", "stop", [], 400, "The body: "),
        ("GET", "result", {"execution_id": "s1/web_search/1/0"}, 404, "is no run"),
        ("GET", "result", {"execution_id": "s1/run-by-a-worker/1/0"}, 404, "No execution"),
        ("GET", "result", {"execution_id": "s1/run-by-a-worker/1/0", "wait": "99"}, 400, "wait is '99'"),
    ],
)
async def test_what_cannot_be_is_refused_in_a_sentence(
    web: httpx.AsyncClient, method: str, path: str, asked: Any, status: int, words: str
) -> None:
    refused = await web.request(method, path, **({"json": asked} if method == "POST" else {"params": asked}))
    assert (refused.status_code, words in refused.json()["message"]) == (status, True), refused.text


async def test_only_what_says_that_it_is_json_is_taken(web: httpx.AsyncClient) -> None:
    refused = await web.post("start", content=b"{}", headers={"content-type": "text/plain"})
    assert (refused.status_code, refused.json()["message"]) == (
        400,
        "Send JSON, and say so: Content-Type: application/json",
    )
    assert (await web.post("start", json={"agent": "x" * 18_000_000})).status_code == 413


async def told_of(web: httpx.AsyncClient, *, last_id: str = "", session_id: str = "s1") -> list[tuple[str, str, Any]]:
    """The id, the kind and the data of each server-sent event, until the last one."""
    answer = await web.get("events", params={"session_id": session_id}, headers={"Last-Event-ID": last_id})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    events = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


async def test_the_events_of_a_run_go_on_from_the_last_id_and_end_with_it(web: httpx.AsyncClient, desk: Desk) -> None:
    watching = asyncio.create_task(told_of(web))  # before there is a session
    await web.post("start", json=ASKED)
    desk.may_answer.set()
    events = await watching
    assert [kind for _, kind, _ in events][-1] == "end"
    recorded = [event for event in events if event[1] != "words" and event[0]]
    assert ("ended", "run", "here") in [(kind, data["what"], data.get("output")) for _, kind, data in recorded]
    assert len({id for id, _, _ in recorded}) == len(recorded)
    for nth in (0, 2):
        rest = await told_of(web, last_id=recorded[nth][0])
        assert [each for each in rest if each[1] != "words"] == [*recorded[nth + 1 :], events[-1]]


async def test_events_that_cannot_be_told_are_refused_and_the_browser_does_not_come_again(
    web: httpx.AsyncClient,
) -> None:
    assert (await web.get("events", params={"session_id": "a/b"})).status_code == 400
    ((_, kind, data),) = await told_of(web, last_id="nonsense")
    assert (kind, data["code"]) == ("refused", "INVALID_ARGUMENT")


async def test_who_hangs_up_is_no_longer_told_and_silence_is_filled(
    web: httpx.AsyncClient, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "QUIET_SECONDS", 0.01)
    events = http._server_sent("s1", "")
    assert await anext(events) == ": quiet\n\n"
    await web.post("start", json=ASKED)
    async for text in events:
        if "event: begun" in text:
            break
    await events.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: not any("_server_sent" in repr(task.get_coro()) for task in asyncio.all_tasks()))
