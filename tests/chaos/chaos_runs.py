"""Runs of an agent that workers execute, followed while anything dies: for chaos.py. As a program, such a worker.

Each effect of a run is a line in the file LEDGER, each question to the model too. A follower writes down what is
recorded as it is told, and goes on behind that when it is started again.
"""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, Usage, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from chaos_client import Order
from chaos_tools import LEASE_MS, ledger

from nexum_agents import (
    durable_sleep,
    durable_step,
    durable_tool,
    follow,
    parking,
    serve,
    start_run,
    worker,
)
from nexum_agents.following import KINDS
from nexum_runtime import NexumError, Worker, near
from nexum_runtime.client import local

AGENT = "Busy"
PARK_SECONDS = 0.1
NAP_SECONDS = 0.3
PAUSE_SECONDS = 0.05
# What its model asks for, turn by turn.
PLAN = (("look",), ("put", "send"), ("send_here",), ("pay",), ("nap",))
ONCE = ("send", "send_here")

History = dict[str, Any]


# The worker


async def effect(label: str, what: str) -> str:
    await asyncio.sleep(PAUSE_SECONDS / 2)
    with ledger().open("ab", buffering=0) as lines:  # one write, whole or not at all
        lines.write(json.dumps({"label": label, "what": what}).encode() + b"\n")
    await asyncio.sleep(PAUSE_SECONDS / 2)
    return what


async def look(label: str) -> str:
    """Look, and take a note."""
    await durable_step("note", effect, label, "note")
    return await effect(label, "look")


async def put(label: str) -> str:
    """Put, by a worker."""
    return await effect(label, "put")


async def send(label: str) -> str:
    """Send, by a worker."""
    return await effect(label, "send")


async def send_here(label: str) -> str:
    """Send."""
    return await durable_step("send here", effect, label, "send_here", effect="once")


async def pay(label: str) -> str:
    """Pay, if a person says yes."""
    return await effect(label, "pay")


async def nap(label: str) -> str:
    """Sleep."""
    await durable_sleep(NAP_SECONDS)
    return "rested"


class Planned(Model):
    """Calls the tools of the plan, turn by turn, and then says that it is done. The question is the label."""

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **named: Any) -> ModelResponse:
        items = [{"content": input}] if isinstance(input, str) else input
        label = items[0]["content"]
        told = sum(item.get("type") == "function_call_output" for item in items)
        turn = next(n for n in range(len(PLAN) + 1) if sum(map(len, PLAN[:n])) == told)
        await effect(label, f"turn {turn}")
        output: list[Any] = [assistant_message(f"{label} is done")]
        if turn < len(PLAN):
            output = [function_call(each, json.dumps({"label": label}), call_id=each) for each in PLAN[turn]]
        return ModelResponse(output=output, usage=Usage(requests=1), response_id=None)

    async def stream_response(self, *args: Any, **named: Any) -> AsyncIterator[Any]:
        said = await self.get_response(*args, **named)
        async for event in ScriptedModel([said.output]).stream_response(*args, **named):
            yield event


def work() -> None:
    parking.PARK_SECONDS = PARK_SECONDS
    local.LEASE_MS = LEASE_MS
    vars(worker)["RuntimeWorker"] = functools.partial(Worker, lease_ms=LEASE_MS)
    tools: list[Any] = [function_tool(each) for each in (look, send_here, nap)]
    tools += [function_tool(pay, needs_approval=True), durable_tool(put), durable_tool(send, effect="once")]
    serve([put, send], agents=[Agent[Any](name=AGENT, model=Planned(), tools=tools)])


# The follower


async def follow_run(order: Order) -> None:
    """Start the run of this session, and follow it to its end."""
    run = await start_run(AGENT, order.session, session_id=order.session)
    with order.told.open("ab", buffering=0) as told:
        async for event in follow(order.session, after=last_cursor(order.told)):
            if event.kind != "words":
                told.write(json.dumps(event.to_json()).encode() + b"\n")
    outcome = await run.result()
    assert outcome.final_output == f"{order.session} is done", outcome


def last_cursor(told: Path) -> str:
    events = _events(told)
    return str(events[-1]["cursor"]) if events else ""


def _events(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()]


# What is done with it, and must be true of it


async def say_yes(order: Order) -> None:
    """To all that this session asks, until it is killed."""
    while True:
        with suppress(NexumError):  # it is dead, and started again
            async with near() as person:
                for each in await person.approvals():
                    if each.execution_id.startswith(f"{order.session}/"):
                        await person.approve(each.execution_id, each.node_id, "ann")
        await asyncio.sleep(PAUSE_SECONDS)


def check_followed(histories: list[History], told: Path) -> Iterator[str]:
    """What is wrong with what a follower was told: it is all that is recorded, once, and in order."""
    events = _events(told)
    for history in histories:
        of_end = history["labels"].get("kind") == "run"
        kinds = [(KINDS.get(event["type"]), event["attempt"]) for event in history["events"]]
        recorded = [each for each in kinds if each[0] is not None and not (each[0] == "begun" and of_end)]
        execution_id = history["execution_id"]
        heard = [(event["kind"], event.get("attempt")) for event in events if event["execution_id"] == execution_id]
        if heard != recorded:
            yield f"of {execution_id} {told.name} was told {heard}, and recorded is {recorded}"
    if len({event["cursor"] for event in events}) != len(events):
        yield f"{told.name} was told the same twice"


def check_effects(histories: list[History], session: str, kills: int, ledger: Path) -> Iterator[str]:
    """What is wrong with what has happened: no effect without an attempt, and none twice that may happen once."""
    lines = map(json.loads, ledger.read_text().splitlines())
    happened = Counter(line["what"] for line in lines if line["label"] == session)
    lost = sum(event["type"] == "LeaseExpired" for history in histories for event in history["events"])
    for what in ("note", "look", "put", "send", "send_here", "pay", *(f"turn {n}" for n in range(len(PLAN) + 1))):
        most = 1 if what in ONCE else 1 + kills + lost
        if happened[what] > most or (what not in ONCE and not happened[what]):
            yield f"{what} happened {happened[what]} times, after {kills} kills and {lost} lost attempts"


if __name__ == "__main__":
    work()
