"""Agents killed anywhere and run again, against a model server that counts and never answers twice alike."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from model_server import Answer, Asked, Hold, ModelServer, research
from processes import Finished, environment, eventually

from nexum_agents import Worker
from nexum_runtime import Client
from nexum_runtime.client.remote import Remote
from offline import HOST

TURNS, CALLS = 3, 4  # of one run of `research`
STEPS = range(1, 2 * (TURNS + CALLS) + 1)  # each a line of a turn or a call: that it is started, or stored
HELD = [("responses", 0), ("streamed", 0), ("streamed", 2), ("chat", 0), ("gemini", 0)]  # after how many deltas


@dataclass
class Runs:
    """Runs of an agent, one at a time, each a process of its own: see resumed_agent.py. A session is `API-WHATEVER`."""

    folder: Path
    client: Client
    models: ModelServer
    process: asyncio.subprocess.Process

    async def start(self, session: str, kill_after: int = 0) -> int:
        """Its process id."""
        assert self.process.stdin is not None
        api = session.partition("-")[0]
        self.process.stdin.write(f"{api} {session} {kill_after} {self._log}\n".encode())
        return int(await self._line())

    async def end(self) -> Finished:
        return Finished(int(await self._line()), self._log.read_text(), "")

    async def run(self, session: str, kill_after: int = 0) -> Finished:
        await self.start(session, kill_after)
        return await self.end()

    def requests(self, session: str) -> list[Asked]:
        return [asked for asked in self.models.requests if asked.user == f"What is asked in {session}?"]

    async def check_that_it_goes_on(self, session: str, requests: int, killed: Finished) -> None:
        """Two more runs of a session that was killed in the middle, which make that many requests in all."""
        assert killed.code == -signal.SIGKILL, killed.stdout
        second, third = await self.run(session), await self.run(session)
        where = f"{session}:\n{killed.stdout}\n{second.stdout}"
        assert second.code == third.code == 0, where
        assert len(self.requests(session)) == requests, where
        assert await self._executions(session) == CALLS, where
        assert "changed" not in second.stdout + third.stdout, where
        recorded = self.requests(session)[-1].token  # each answer has the token of its own request in it
        assert recorded in answer(second.stdout), where
        assert answer(third.stdout) == answer(second.stdout)
        assert lines(third, "cached") == TURNS + CALLS, third.stdout

    async def _executions(self, session: str) -> int:
        """How often a tool was executed."""
        known = [each async for each in self.client.history(f"{session}/")]
        calls = [each for each in known if each["labels"]["kind"] == "call"]
        events = [event for each in calls for event in each["events"]]
        return sum(event["type"] == "AttemptStarted" for event in events)

    @property
    def _log(self) -> Path:
        return self.folder / "run.log"

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()


def lines(run: Finished, how: str) -> int:
    """How many turns and calls there were of that kind."""
    return sum(how in line.split() for line in run.stdout.splitlines())


def answer(output: str) -> str:
    return output.partition("answer: ")[2]


async def web_search(query: str, max_results: int = 5) -> str:
    """Search the web."""
    return "\n".join(f"https://{HOST}/{query.split()[0]}-{number}" for number in range(max_results))


async def visit_webpage(url: str) -> str:
    """Read a page."""
    return f"# {url}"


@asynccontextmanager
async def forked(models: ModelServer, folder: Path, client: Client) -> AsyncIterator[Runs]:
    address = client.address if isinstance(client.way, Remote) else ""
    worker = Worker([web_search, visit_webpage], address=address)
    working = asyncio.create_task(worker.run())
    agent = [sys.executable, str(Path(__file__).with_name("resumed_agent.py"))]
    pipe = asyncio.subprocess.PIPE
    env = environment(NEXUM_ADDRESS=address, **models.environment)
    process = await asyncio.create_subprocess_exec(*agent, env=env, cwd=folder, stdin=pipe, stdout=pipe)
    try:
        yield Runs(folder, client, models, process)
    finally:
        process.kill()
        await process.wait()
        worker.stop()
        await working


@pytest.mark.parametrize("api", ["responses", "streamed", "chat", "gemini"])
async def test_a_run_killed_after_any_of_its_steps_goes_on_and_repeats_nothing(
    tmp_path: Path, client: Client, api: str
) -> None:
    with ModelServer(research) as models:
        async with forked(models, tmp_path, client) as runs:
            whole = await runs.run(f"{api}-whole")
            assert (whole.code, lines(whole, "stored")) == (0, TURNS + CALLS), whole.stdout
            for step in STEPS:
                killed = await runs.run(f"{api}-{step}", kill_after=step)
                await runs.check_that_it_goes_on(f"{api}-{step}", TURNS, killed)


async def test_a_run_killed_while_the_model_answers_asks_only_that_again(tmp_path: Path, client: Client) -> None:
    hold: Hold | None = None

    def script(asked: Asked) -> Answer:
        nonlocal hold
        said = research(asked)
        if hold is not None or asked.user == "Warm up" or len(runs.requests(session)) < turn:
            return said
        assert not isinstance(said, Hold)
        hold = Hold(said, deltas)
        return hold

    def the_hold() -> Hold | None:
        return hold

    with ModelServer(script) as models:
        async with forked(models, tmp_path, client) as runs:
            for (api, deltas), turn in itertools.product(HELD, range(1, TURNS + 1)):
                session, hold = f"{api}-{deltas}-{turn}", None
                pid = await runs.start(session)
                held = await eventually(the_hold)
                await eventually(held.reached.is_set)
                os.kill(pid, signal.SIGKILL)
                killed = await runs.end()
                held.released.set()
                await runs.check_that_it_goes_on(session, TURNS + 1, killed)
