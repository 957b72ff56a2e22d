"""DBOS side by side: another library for durable execution, on its default SQLite. See dbos_process.py.

step       what it records of a workflow, in the process that runs the workflow
replayed   the same, of a workflow that is run again (a fork of it)
agent      that of bench/agent.py, with the tool as a step; with dbos-openai-agents, its turns too
"""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from bench.context import SLICES, Context
from bench.floor import CALLERS
from bench.measure import BenchmarkError, Kind, Results, Samples, shown
from bench.processes import clean_environment

LINE_BYTES = 2**20


def is_installed() -> bool:
    return find_spec("dbos") is not None and find_spec("dbos_openai_agents") is not None


async def kinds(context: Context) -> list[Kind]:
    log = context.folder / "dbos.log"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.dbos_process", str(context.folder)),
        cwd=context.folder,
        env=clean_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=context.stack.enter_context(log.open("wb")),
        limit=LINE_BYTES,
        start_new_session=True,
    )
    context.stack.push_async_callback(_stop, process)
    await _answer(process, log)

    async def ask(kind: str, calls: int, callers: int = 1) -> Samples:
        assert process.stdin is not None, "it was started with a pipe"
        process.stdin.write(json.dumps({"kind": kind, "calls": calls, "callers": callers}).encode() + b"\n")
        return await _answer(process, log)

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


async def _answer(process: Process, log: Path) -> Samples:
    assert process.stdout is not None, "it was started with a pipe"
    line = await process.stdout.readline()
    if not line:
        last_words = " ".join(log.read_text(errors="replace").splitlines()[-1:]) or "it said nothing"
        raise BenchmarkError(f"The process that runs DBOS has ended: {last_words}")
    samples: Samples = json.loads(line)
    return samples


async def _stop(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


def sentence(results: Results) -> str:
    step, again = results.median("dbos.step"), results.median("dbos.step_again")
    return (
        f"DBOS records a step in {shown(step)} ms and replays one in {shown(again)} ms, within one process; a call of "
        "Nexum's crosses three."
    )
