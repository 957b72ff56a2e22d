"""Sessions that are followed: all that is recorded, once and in order, and the words that are being said."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message
from command import ECHO
from processes import NexumDev, Process, environment, eventually
from test_sessions import Fake

from nexum_agents import (
    DurableCallError,
    FollowEvent,
    Worker,
    durable_session,
    durable_step,
    follow,
    start_run,
)
from nexum_runtime import Client
from nexum_runtime.server.engine import following

TEXT = "Durable execution goes on where it broke."


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


class Speaking(ScriptedModel):
    """Says one text, word by word: after each it waits until it may go on."""

    def __init__(self, text: str = TEXT) -> None:
        super().__init__([[assistant_message(text)]] * 10)
        self.text, self.may_say, self.asked, self.breaks_at = text, asyncio.Semaphore(0), 0, -1

    def go_on(self, words: int = 1_000_000) -> None:
        for _ in range(min(words, len(self.text.split(" ")))):
            self.may_say.release()

    async def stream_response(self, *args: Any, **named: Any) -> AsyncIterator[Any]:
        self.asked += 1
        async for event in super().stream_response(*args, **named):
            if event.type != "response.output_text.delta":
                yield event
                continue
            for number, word in enumerate(self.text.split(" ")):
                await self.may_say.acquire()
                if number == self.breaks_at:
                    self.breaks_at = -1
                    raise ConnectionError("the line is dead")
                yield event.model_copy(update={"delta": f" {word}" if number else word})


class Watching:
    """Follows a session in the background. `text` is what it shows of the turn under way."""

    def __init__(self, session_id: str = "s1", **options: Any) -> None:
        self.events: list[FollowEvent] = []
        self.text = ""
        self._task = asyncio.create_task(self._watch(session_id, options))

    async def _watch(self, session_id: str, options: dict[str, Any]) -> None:
        async for event in follow(session_id, **options):
            self.events.append(event)
            if event.kind == "words":
                self.text = event.text if event.anew else self.text + event.text

    @property
    def recorded(self) -> list[tuple[str, str, str]]:
        return [(each.what, each.kind, each.execution_id) for each in self.events if each.kind != "words"]

    async def ended(self) -> list[FollowEvent]:
        await asyncio.wait_for(self._task, 60)
        return self.events

    async def leave(self) -> str:
        """Returns the last cursor."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return self.events[-1].cursor if self.events else ""


async def says(watching: Watching, text: str) -> None:
    await eventually(lambda: watching.text == text, f"{text!r}, not {watching.text!r}")


async def test_a_run_is_followed_from_before_it_begins_to_its_end() -> None:
    watching = Watching()
    agent = Agent(name="A", model=Fake([("search", {"what": "x"})], "done"), tools=[searching()])
    with durable_session("s1"):
        await durable_step("note", len, "four")
        await Runner.run(agent, "go")
    events = await watching.ended()
    assert [(each.what, each.kind, each.name) for each in events] == [
        ("step", "begun", "note"),
        ("step", "ended", "note"),
        ("turn", "begun", "model-turn"),
        ("turn", "ended", "model-turn"),
        ("call", "begun", "search"),
        ("call", "ended", "search"),
        ("turn", "begun", "model-turn"),
        ("turn", "ended", "model-turn"),
        ("run", "ended", "run-end"),
    ]
    assert [each.output for each in events if each.kind == "ended" and each.what != "turn"] == [4, "found x", "done"]
    assert [each.text for each in events if each.what == "turn" and each.kind == "ended"] == ["", "done"]
    assert await Watching().ended() == events, "who comes when it is over is told the same, and it ends"
    assert await Watching(after=events[3].cursor).ended() == events[4:]
    assert await Watching(after=events[-1].cursor).ended() == []


async def test_the_words_of_a_turn_are_heard_as_they_are_said_and_by_who_comes_late_from_the_first_one() -> None:
    model, watching = Speaking(), Watching()
    with durable_session("s1"):
        result = Runner.run_streamed(Agent(name="A", model=model), "go")
        running = asyncio.create_task(_drain(result))
        model.go_on(3)
        await says(watching, "Durable execution goes")
        late = Watching()
        await says(late, "Durable execution goes")
        cursor = await watching.leave()
        model.go_on(1)
        again = Watching(after=cursor)
        await says(again, "Durable execution goes on")
        model.go_on()
        await running
    for each in (late, again):
        ended = next(event for event in await each.ended() if event.what == "turn" and event.kind == "ended")
        assert ended.text == TEXT
        assert TEXT.startswith(each.text)
    assert [each for each in again.recorded if each in watching.recorded] == [], "what is recorded is told once"


async def test_words_alone_are_not_looked_for_in_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = list[str](), following._read

    def noted(prefix: str, *more: Any) -> Any:
        reads.append(prefix)
        return read(prefix, *more)

    monkeypatch.setattr(following, "_read", noted)
    model = Speaking()
    with durable_session("s1"):
        running = asyncio.create_task(_drain(Runner.run_streamed(Agent(name="A", model=model), "go")))
        watching = Watching()
        model.go_on(1)
        await says(watching, "Durable")
        before = len(reads)
        for number in (2, 3, 4):
            model.go_on(1)
            await says(watching, " ".join(TEXT.split(" ")[:number]))
        assert len(reads) == before
        model.go_on()
        await running
    await watching.ended()


async def test_when_a_turn_is_asked_again_its_words_start_anew() -> None:
    model, watching = Speaking(), Watching(keep_on=True)
    model.breaks_at = 2
    with durable_session("s1"):
        model.go_on(3)
        with pytest.raises(ConnectionError):
            await _drain(Runner.run_streamed(Agent(name="A", model=model), "go"))
        model.go_on(1)
        running = asyncio.create_task(_drain(Runner.run_streamed(Agent(name="A", model=model), "go")))
        await says(watching, "Durable")
        model.go_on()
        await running
    await eventually(lambda: ("turn", "ended") in [(w, k) for w, k, _ in watching.recorded[-4:]])
    assert ("turn", "broken_off") in [(what, kind) for what, kind, _ in watching.recorded]
    await watching.leave()


async def test_a_run_of_a_worker_is_heard_too() -> None:
    model = Speaking()
    worker = Worker(agents=[Agent(name="A", model=model)])
    running = asyncio.create_task(worker.run())
    run = await start_run("A", "go", session_id="s1")
    watching = Watching()
    model.go_on(2)
    await says(watching, "Durable execution")
    model.go_on()
    assert (await run.result()).final_output == TEXT
    ended = [each for each in await watching.ended() if each.kind == "ended"]
    assert [(each.what, each.output) for each in ended] == [
        ("turn", ended[0].output),
        ("run", TEXT),
        ("run of a worker", TEXT),
    ]
    worker.stop()
    await running


async def test_a_model_that_does_not_stream_runs_on_a_worker_as_well() -> None:
    class Silent(Fake):
        def stream_response(self, *args: Any, **named: Any) -> Any:
            raise NotImplementedError

    worker = Worker(agents=[Agent(name="A", model=Silent("done"))])
    running = asyncio.create_task(worker.run())
    assert (await (await start_run("A", "go", session_id="s1")).result()).final_output == "done"
    worker.stop()
    await running


async def test_who_is_slow_is_told_what_was_left_out_and_misses_nothing_that_is_recorded(
    monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    monkeypatch.setattr(following, "WORDS_CHARS_LIMIT", 20)
    model = Speaking()
    may_read = asyncio.Event()
    events: list[FollowEvent] = []

    async def slowly() -> None:
        async with aclosing(follow("s1")) as told:
            async for event in told:
                events.append(event)
                if event.kind == "words":
                    await may_read.wait()

    reading = asyncio.create_task(slowly())
    with durable_session("s1"):
        running = asyncio.create_task(_drain(Runner.run_streamed(Agent(name="A", model=model), "go")))
        model.go_on(1)
        await eventually(lambda: any(event.kind == "words" for event in events))
        model.go_on(5)
        fast = Watching()
        await eventually(lambda: fast.text.endswith("where it"))
        may_read.set()
        await eventually(lambda: sum(event.kind == "words" for event in events) >= 2)
        model.go_on()
        await running
    await asyncio.wait_for(reading, 60)
    words = [event for event in events if event.kind == "words"]
    assert sum(event.skipped for event in words) > 0
    assert [event.kind for event in events if event.what == "turn" and event.kind != "words"] == ["begun", "ended"]
    await fast.ended()


@pytest.mark.parametrize(
    ("session_id", "after", "words"), [("a/b", "", "session_id is 'a/b'"), ("s1", "x", "'x' is no cursor")]
)
async def test_what_cannot_be_followed_is_told(session_id: str, after: str, words: str) -> None:
    with pytest.raises(DurableCallError, match=words):
        await anext(follow(session_id, after=after))


async def test_a_session_with_too_much_under_way_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    monkeypatch.setattr(following, "UNDER_WAY_LIMIT", 3)
    monkeypatch.setattr(following, "PAGE", 2)
    await client.register(ECHO)
    for number in range(6):
        await client.execute(ECHO, {}, execution_id=f"s1/{number}", wait=False, timeout=60)
    with pytest.raises(DurableCallError, match="more than 3 executions that have not completed"):
        async for _ in follow("s1"):
            pass


async def test_a_long_session_is_told_in_order_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAGE", 3)
    may_end = asyncio.Event()

    async def slow() -> str:
        await may_end.wait()
        return "slow"

    with durable_session("s1"):
        running = asyncio.ensure_future(durable_step("slow", slow))
        for number in range(10):
            await durable_step("note", str, number)
        may_end.set()
        await running
        await Runner.run(Agent(name="A", model=Fake("done")), "go")
    events = await Watching().ended()
    assert [each.at_ms for each in events] == sorted(each.at_ms or 0 for each in events)
    assert len({(each.execution_id, each.kind) for each in events}) == len(events)
    ends = [each.output for each in events if each.what == "step" and each.kind == "ended"]
    assert ends == [*map(str, range(10)), "slow"]
    for number, event in enumerate(events):
        assert [each.cursor for each in await Watching(after=event.cursor).ended()] == [
            each.cursor for each in events[number + 1 :]
        ]


RECORDS = """
import asyncio, sys
from nexum_agents import durable_session, durable_step
async def main():
    async with durable_session("s1"):
        await durable_step("note", int, sys.argv[1])
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_who_follows_takes_no_database_and_hears_whoever_has_it_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that is stopped by Ctrl-Z must hold up nobody."""
    own = {"NEXUM_ADDRESS": "", "NEXUM_PORT": "0", "NEXUM_DATABASE_URL": f"sqlite:///{tmp_path / 'own.db'}"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    watching = Watching(keep_on=True)  # before there is a database
    for number in (1, 2):
        command = [sys.executable, "-c", RECORDS, str(number)]
        agent = Process(command, tmp_path / "agent.log", env=environment(**own), cwd=tmp_path)
        agent.start()
        await eventually(lambda: len(watching.events) == 2 * number, str(watching.events))  # noqa: B023
        agent.kill()
    assert [each.output for each in watching.events if each.kind == "ended"] == [1, 2]
    await watching.leave()


async def test_a_follower_goes_on_when_its_server_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NexumDev(tmp_path, database=tmp_path / "own.db") as nexum:
        monkeypatch.setenv("NEXUM_ADDRESS", nexum.address)
        watching = Watching(keep_on=True)
        with durable_session("s1"):
            for number in range(3):
                await durable_step("note", str, number)
                await nexum.restart()
                await eventually(lambda: len(watching.events) == 2 * number + 2)  # noqa: B023
        assert [each.output for each in watching.events if each.kind == "ended"] == ["0", "1", "2"]
        await watching.leave()


def searching() -> Any:
    @function_tool
    async def search(what: str) -> str:
        return f"found {what}"

    return search


async def _drain(result: Any) -> None:
    async for _ in result.stream_events():
        pass
