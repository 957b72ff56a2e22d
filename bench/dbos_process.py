"""DBOS on its default SQLite, or on a PostgreSQL, doing what the benchmark asks: see asked.py.

python -m bench.dbos_process FOLDER [URL]

A process of its own: DBOS keeps threads that look into its database, and they are not to be in our way.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from agents import Agent, Runner, function_tool, set_tracing_disabled
from dbos import DBOS, SetWorkflowID
from dbos_openai_agents import DBOSRunner

from bench import asked
from bench.counting import MAX_TURNS, QUESTION, Counting
from bench.measure import Samples, one_by_one, per_second, timed
from bench.tools_worker import look_up

tools_executed = 0
measured: Samples = []  # by the workflow that ran last, a replay too


@DBOS.step()
async def step(number: int) -> str:
    return await look_up(number, 0)


@DBOS.step(name="look_up")
async def look_up_step(number: int, delay_ms: int) -> str:
    global tools_executed
    tools_executed += 1
    return await look_up(number, delay_ms)


@DBOS.workflow()
async def steps(calls: int) -> None:
    measured[:] = await one_by_one(step(number) for number in range(calls))


@DBOS.workflow()
async def steps_at_once(calls: int, callers: int) -> None:
    measured[:] = await per_second(lambda: step(0), calls, callers)


@function_tool(name_override="look_up")
async def durable_look_up(number: int, delay_ms: int) -> str:
    """Look a number up.

    Args:
        number: Which.
        delay_ms: How many milliseconds that takes.
    """
    return str(await look_up_step(number, delay_ms))


def agent(*, durable: bool) -> Agent[Any]:
    tool = durable_look_up if durable else function_tool(look_up)
    return Agent(name="Counter", tools=[tool], model=Counting(0))


@DBOS.workflow()
async def agent_with_durable_tools() -> None:
    measured[:] = [await timed(Runner.run(agent(durable=True), QUESTION, max_turns=MAX_TURNS))]


@DBOS.workflow()
async def durable_agent() -> None:
    measured[:] = [await timed(DBOSRunner.run(agent(durable=True), QUESTION, max_turns=MAX_TURNS))]


async def run(workflow: Callable[..., Awaitable[None]], *arguments: int) -> Samples:
    with SetWorkflowID(str(uuid4())):
        await workflow(*arguments)
    return list(measured)


async def run_again(workflow: Callable[..., Awaitable[None]], *arguments: int) -> Samples:
    """A run from the steps of a finished one: measured inside, so that DBOS's own queue is not counted."""
    original = str(uuid4())
    with SetWorkflowID(original):
        await workflow(*arguments)
    last_step = len(await DBOS.list_workflow_steps_async(original))
    before = tools_executed
    handle = await DBOS.fork_workflow_async(original, last_step + 1)
    await handle.get_result()
    assert tools_executed == before, "a replay executed a tool"
    return list(measured)


async def plain_agent() -> Samples:
    return [await timed(Runner.run(agent(durable=False), QUESTION, max_turns=MAX_TURNS))]


async def measure(kind: str, calls: int, callers: int = 1) -> Samples:
    match kind:
        case "step":
            return await run(steps, calls)
        case "steps_at_once":
            return await run(steps_at_once, calls, callers)
        case "step_again":
            return await run_again(steps, calls)
        case "agent_plain":
            return await plain_agent()
        case "agent_cold_tools":
            return await run(agent_with_durable_tools)
        case "agent_cold":
            return await run(durable_agent)
        case "agent_all":
            return await run_again(durable_agent)
    raise ValueError(kind)


async def main(url: str) -> None:
    set_tracing_disabled(True)
    DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    await asked.answer(measure)
    DBOS.destroy()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    asyncio.run(main((sys.argv[2:] or [f"sqlite:///{Path(sys.argv[1]) / 'dbos.sqlite'}"])[0]))
