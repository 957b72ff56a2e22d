"""Runs of workers that are killed anywhere: another one takes each over, whatever its agent is made of."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from agent_process import QUESTION
from agents import SQLiteSession
from test_agent_processes import (
    KILLED,
    OFFICE,
    SIDE_BY_SIDE,
    Agents,
    Desk,
    Desks,
    agents,
    at_most_one_of_each,
    desks,
    each,
    same,
)

from nexum_agents import start_run

__all__ = ["agents", "desks"]

NAMES = {"office": "Triage", "guarded": "Guarded", "structured": "Structured", "memory": "Sender"}
EVERY = int(os.environ.get("EVERY", "7"))  # of an office's effects, at which its worker is killed


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


class Shift:
    """The workers of one session."""

    def __init__(self, desk: Desk, agents: Agents) -> None:
        self.desk, self._agents = desk, agents
        self._outs: list[Path] = []

    def works(self, **env: str) -> Path:
        out = self._agents.start(self.desk.case, **self.desk.env, WORKS="1", **env)
        self._outs.append(out)
        return out

    async def end(self) -> None:
        for out in self._outs:
            with suppress(ProcessLookupError):
                os.kill(int(Path(f"{out}.pid").read_text()), signal.SIGKILL)
            await self._agents.ended(self.desk.case, out)


async def taken_over(desk: Desk, agents: Agents, number: int) -> Any:
    """The outcome of a run whose worker is killed in the middle of that effect. A third worker has nothing to do."""
    shift, session = Shift(desk, agents), desk.env["SESSION_ID"]

    async def run() -> Any:
        return await start_run(NAMES[desk.case], QUESTION, session_id=session, version=session)

    try:
        dying = shift.works(DIE_AT=str(number))
        started = await run()
        assert (await agents.ended(desk.case, dying)).code == KILLED
        shift.works()
        outcome = await started.result()
        effects = desk.ledger
        assert (await (await run()).result()) == outcome
        assert desk.ledger == effects
    finally:
        await shift.end()
    return outcome


async def test_hand_offs_agents_as_tools_and_mcp_servers_of_a_run_that_is_taken_over_repeat_what_was_cut_short_only(
    desks: Desks, agents: Agents
) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("office", f"s{number}")
        outcome = await taken_over(desk, agents, number)
        assert (outcome.last_agent, outcome.final_output.split()[0]) == ("Triage", "Answered.")
        assert "Nothing works" in json.dumps(outcome.new_items), "an MCP tool's error is a result like any other"
        killed = desk.ledger[number - 1]
        beside = [chains for chains in SIDE_BY_SIDE if any(killed in chain for chain in chains)]
        assert killed in desk.repeated
        assert at_most_one_of_each(beside[0] if beside else [[killed]], desk.repeated)
        assert same(desk.ledger, OFFICE + desk.repeated)

    await each(range(2, len(OFFICE) + 1, EVERY), kill)


@pytest.mark.parametrize(("case", "effects"), [("guarded", 5), ("structured", 3), ("memory", 3)])
async def test_guardrails_structured_output_and_memory_of_a_run_that_is_taken_over_are_as_without(
    desks: Desks, agents: Agents, tmp_path: Path, case: str, effects: int
) -> None:
    async def kill(number: int) -> None:
        desk = desks.open(case, f"s{number}", MEMORY=str(tmp_path / f"memory-{number}"))
        outcome = await taken_over(desk, agents, number)
        assert desk.repeated == [desk.ledger[number - 1]]
        assert len(desk.ledger) == effects + 1
        if case == "structured":
            assert outcome.final_output == {"city": "Paris"}
        if case == "memory":
            items = await SQLiteSession("user-1", desk.env["MEMORY"]).get_items()
            kinds = [str(item.get("type", item.get("role"))) for item in items]
            assert kinds == ["user", "function_call", "function_call_output", "message"], "each was added once"

    await each(range(1, effects + 1), kill)
