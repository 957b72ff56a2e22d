"""DBOS side by side: another library for durable execution, on its default SQLite. See dbos_process.py.

step       what it records of a workflow, in the process that runs the workflow
replayed   the same, of a workflow that is run again (a fork of it)
agent      that of bench/agent.py, with the tool as a step; with dbos-openai-agents, its turns too
"""

from functools import partial
from importlib.util import find_spec

from bench.asked import Asked
from bench.context import SLICES, Context
from bench.floor import CALLERS
from bench.measure import Kind, Results, shown


def is_installed() -> bool:
    return find_spec("dbos") is not None and find_spec("dbos_openai_agents") is not None


async def kinds(context: Context) -> list[Kind]:
    ask = (await Asked.start(context, "bench.dbos_process", name="dbos")).measure
    calls = context.calls
    return [
        Kind("dbos.step", "step, cold", "ms", partial(ask, "step", context.slice_calls), SLICES),
        Kind("dbos.step_again", "step, replayed", "ms", partial(ask, "step_again", calls)),
        *(
            Kind(f"dbos.at_{n}", f"steps, {n} at a time", "/s", partial(ask, "steps_at_once", context.calls_by(n), n))
            for n in CALLERS
        ),
        Kind("dbos.plain", "agent, plain", "ms", partial(ask, "agent_plain", 1)),
        Kind("dbos.cold_tools", "agent, cold, tools alone", "ms", partial(ask, "agent_cold_tools", 1)),
        Kind("dbos.cold", "agent, cold, turns too", "ms", partial(ask, "agent_cold", 1)),
        Kind("dbos.all", "agent, all replayed", "ms", partial(ask, "agent_all", 1)),
    ]


def sentence(results: Results) -> str:
    step, again = results.median("dbos.step"), results.median("dbos.step_again")
    return (
        f"DBOS records a step in {shown(step)} ms and replays one in {shown(again)} ms, within one process; a call of "
        "Nexum's crosses three."
    )
