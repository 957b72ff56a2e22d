"""Agents in durable sessions, in real processes that are killed anywhere and run again."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import engine_at, environment, eventually

from nexum_runtime import Client

HERE = Path(__file__).parent
KILLED = -9
AT_A_TIME = 4  # agents that run in parallel


@dataclass
class Ran:
    code: int
    output: str

    @property
    def answer(self) -> str:
        assert self.code == 0, self.output
        return self.output


class Agents:
    """Runs the cases of agent_process.py, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = (folder / "agents.log").open("w")
        self._runs = 0
        self._process = subprocess.Popen(
            [sys.executable, HERE / "agent_process.py"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment(PYTHONWARNINGS="error"),
            text=True,
        )

    async def run(self, case: str, **env: str) -> Ran:
        return await self.ended(case, self.start(case, **env))

    def start(self, case: str, **env: str) -> Path:
        """Returns the file of its output."""
        self._runs += 1
        out = self._folder / f"run-{self._runs}"
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"case": case, "out": str(out), "env": env}) + "\n")
        self._process.stdin.flush()
        return out

    async def ended(self, case: str, out: Path) -> Ran:
        code = Path(f"{out}.code")
        await eventually(code.exists, f"the end of {case}", seconds=60)
        return Ran(int(code.read_text()), out.read_text())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    agents = Agents(tmp_path_factory.mktemp("agents"))
    yield agents
    agents.close()


@dataclass
class Desk:
    """One durable session of a case, with a ledger of its own."""

    agents: Agents
    case: str
    env: dict[str, str]

    async def run(self, **env: str) -> Ran:
        return await self.agents.run(self.case, **self.env, **env)

    @property
    def ledger(self) -> list[Any]:
        file = Path(self.env["LEDGER"])
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def repeated(self) -> list[Any]:
        """The effects that happened twice. None happens more often."""
        counts = Counter(json.dumps(line) for line in self.ledger)
        assert max(counts.values()) <= 2, counts
        return [json.loads(line) for line, count in counts.items() if count == 2]


class Desks:
    def __init__(self, agents: Agents, folder: Path, address: str) -> None:
        self._agents, self._folder, self._address = agents, folder, address

    def open(self, case: str, session_id: str = "s", **env: str) -> Desk:
        ledger = str(self._folder / f"{session_id}.ledger")
        return Desk(self._agents, case, {**engine_at(self._address), "SESSION_ID": session_id, "LEDGER": ledger, **env})


@pytest.fixture
def desks(agents: Agents, tmp_path: Path, address: str) -> Desks:
    return Desks(agents, tmp_path, address)


# Killed and run again


PARALLEL: list[list[Any]] = [[["deposit", 3]], [["weather"]], [["picture"]], [["facts"]]]
OVER_MCP: list[list[Any]] = [[["append", "one"]], [["append", "two"]], [["fail"]]]
IN_THE_HELPER: list[list[Any]] = [[["look_up"]], [["model", "expert", 0], ["measure"], ["model", "expert", 1]]]
SIDE_BY_SIDE = [PARALLEL, OVER_MCP, IN_THE_HELPER]  # each some chains of effects, one after the other in a chain
ALONE = [
    ["model", name, number] for name, turns in (("triage", 5), ("billing", 2), ("helper", 2)) for number in range(turns)
]
LISTS = 5  # how often the MCP server is asked for its tools: before each turn of its agent
OFFICE = [*ALONE, ["refund"], *(line for chains in SIDE_BY_SIDE for chain in chains for line in chain)]


def same(one: list[Any], other: list[Any]) -> bool:
    return sorted(map(json.dumps, one)) == sorted(map(json.dumps, other))


def at_most_one_of_each(chains: list[list[Any]], lines: list[Any]) -> bool:
    """Whether the lines are effects that could be under way at one time, if there is nothing but these chains."""
    found = [[line for line in lines if line in chain] for chain in chains]
    return all(len(each) <= 1 for each in found) and sum(map(len, found)) == len(lines)


async def killed_and_run_again(desk: Desk, **kill: str) -> str:
    assert (await desk.run(**kill)).code == KILLED
    again = await desk.run()
    answer, effects = again.answer, desk.ledger
    third = await desk.run()
    assert third.answer == answer
    assert desk.ledger == effects, "a third run does nothing at all"
    return answer


async def each(numbers: Iterable[int], kill: Callable[[int], Any]) -> None:
    """`kill` each of them, a few at a time."""
    numbers = iter(numbers)

    async def one_after_the_other() -> None:
        for number in numbers:
            await kill(number)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_A_TIME)))


async def test_an_agent_killed_in_the_middle_of_any_effect_repeats_that_one_only(desks: Desks) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("office", f"s{number}")
        answer = await killed_and_run_again(desk, DIE_AT=str(number))
        assert "Nothing works" in answer, "an MCP tool's error is a result like any other"
        killed = desk.ledger[number - 1]
        beside = [chains for chains in SIDE_BY_SIDE if any(killed in chain for chain in chains)]
        assert killed in desk.repeated
        assert at_most_one_of_each(beside[0] if beside else [[killed]], desk.repeated)
        assert same(desk.ledger, OFFICE + desk.repeated)

    await each(range(1, len(OFFICE) + 1, 2), kill)


async def test_an_agent_killed_between_any_two_effects_repeats_none(
    desks: Desks, client: Client, is_embedded: bool
) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("office-streamed", f"s{number}")
        await killed_and_run_again(desk, NEXUM_CRASH_AT=f"task-claimed:{number}")
        beside = [chains for chains in SIDE_BY_SIDE if at_most_one_of_each(chains, desk.repeated)]
        assert any(len(desk.repeated) < len(chains) for chains in beside), (
            "but what ran beside the one that had not begun"
        )
        assert same(desk.ledger, OFFICE + desk.repeated)
        events = [event async for known in client.history(f"s{number}/") for event in known["events"]]
        lost = [event["error"] for event in events if event["type"] == "LeaseExpired"]
        assert lost or is_embedded, "where a claim that is not committed yet is lost with the engine"
        assert all(error.endswith(" has gone.") for error in lost), "no lease had to be waited for"

    await each(range(2, len(OFFICE) + LISTS + 1, 3), kill)


async def test_a_killed_agent_with_guardrails_asks_them_again_only_where_it_was_killed(desks: Desks) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("guarded", f"s{number}")
        await killed_and_run_again(desk, DIE_AT=str(number))
        assert desk.repeated == [desk.ledger[number - 1]]
        assert len(desk.ledger) == 6

    await each(range(1, 6), kill)


async def test_a_tool_that_happens_once_is_not_called_again_until_a_person_has_said_what_came_of_it(
    desks: Desks, client: Client
) -> None:
    desk = desks.open("sender", ONCE="yes")
    assert (await desk.run(DIE_AT="2")).code == KILLED
    told = await desk.run()
    assert "This call of send may or may not have run." in told.answer
    assert (await desk.run()).answer == told.answer
    assert desk.ledger.count(["send"]) == 1

    (execution,) = await client.executions("s/send/")
    await client.resolve(execution.execution_id, "result", json.dumps("It was sent."))
    settled = await desk.run()
    assert '"output": "It was sent."' in settled.answer
    assert (await desk.run()).answer == settled.answer
    assert desk.ledger == [["model", "sender", 0], ["send"], ["model", "sender", 1], ["model", "sender", 1]]


async def test_run_sync_runs_and_replays_and_says_nothing_at_its_end(desks: Desks) -> None:
    desk = desks.open("sync")
    first, second = await desk.run(), await desk.run()
    assert second.answer == first.answer
    assert len(first.output.splitlines()) == 5, first.output
    assert len(desk.ledger) == 3
