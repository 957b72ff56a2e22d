"""The engine in the agent's own process, and nothing else running. See embedded_process.py.

commit     the floor: one synced commit in such a process
step       a recorded step of a session
replayed   the same, run again
agent      that of bench/agent.py, with its tool where it always was
first      from the first import of Nexum to the first recorded step, in a process that has the Agents SDK
memory     what a process has that has run all this, above one that has run the plain agent alone
"""

import asyncio
import json
import sys
from functools import partial

from bench.asked import Asked
from bench.context import SLICES, Context
from bench.floor import CALLERS
from bench.measure import BenchmarkError, Kind, Results, Samples, shown
from bench.processes import clean_environment


async def kinds(context: Context) -> list[Kind]:
    embedded = await Asked.start(context, "bench.embedded_process", name="embedded")
    plain = await Asked.start(context, "bench.embedded_process", name="plain")
    measure = embedded.measure

    async def first() -> Samples:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.embedded_process", str(context.folder), "first"),
            cwd=context.folder,
            env=clean_environment(),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        if process.returncode:
            raise BenchmarkError("The process that was to record its first step has failed.")
        samples: Samples = json.loads(told)
        return samples

    async def memory() -> Samples:
        await plain.measure("plain", 1)
        (with_engine,), (without,) = await measure("memory", 1), await plain.measure("memory", 1)
        return [with_engine - without]

    return [
        Kind("embedded.commit", "C: one synced commit", "ms", partial(measure, "commit", context.slice_calls), SLICES),
        Kind("embedded.step", "step, cold", "ms", partial(measure, "step", context.slice_calls), SLICES),
        Kind("embedded.step_again", "step, replayed", "ms", partial(measure, "step_again", context.slice_calls)),
        *(
            Kind(
                f"embedded.at_{n}",
                f"steps, {n} at a time",
                "/s",
                partial(measure, "steps_at_once", context.calls_by(n), n),
            )
            for n in CALLERS
        ),
        Kind("embedded.plain", "agent, plain", "ms", partial(measure, "plain", 1)),
        Kind("embedded.cold", "agent, cold, turns too", "ms", partial(measure, "cold", 1)),
        Kind("embedded.all", "agent, all replayed", "ms", partial(measure, "all", 1)),
        Kind("embedded.first", "first import to first step", "ms", first),
        Kind("embedded.memory", "memory above a plain agent's", "MB", memory),
    ]


def sentence(results: Results) -> str:
    step, commit = results.median("embedded.step"), results.median("embedded.commit")
    return (
        f"In its own process Nexum records a step in {shown(step)} ms, and a synced commit alone takes {shown(commit)} "
        "ms there."
    )
