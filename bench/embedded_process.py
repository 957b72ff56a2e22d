"""The engine in the process that needs it, doing what the benchmark asks: see asked.py.

python -m bench.embedded_process FOLDER [plain | first]

`plain` has no session; `first` says at once how many milliseconds it took from its first import to its first recorded
call, those of the Agents SDK itself not counted.
"""

import asyncio
import os
import secrets
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from agents import Agent, Runner, function_tool, set_tracing_disabled

from bench import asked
from bench.counting import MAX_TURNS, QUESTION, Counting
from bench.floor import INPUT_JSON
from bench.floor_processes import open_synced
from bench.measure import Samples, one_by_one, per_second, timed

FOUND = "A recorded result is never recomputed and never lost: it is committed and synced before the agent sees it."
numbers = count()


async def look_up(number: int, delay_ms: int) -> str:
    """Look a number up.

    Args:
        number: Which.
        delay_ms: How many milliseconds that takes.
    """
    return f"{number}: {FOUND}"


def agent() -> Agent[Any]:
    return Agent(name="Counter", tools=[function_tool(look_up)], model=Counting(0))


async def steps(session_id: str, calls: int) -> Samples:
    from nexum_agents import durable_session, durable_step

    async with durable_session(session_id):
        return await one_by_one(durable_step("look up", look_up, number, 0) for number in range(calls))


async def steps_at_once(calls: int, callers: int) -> Samples:
    from nexum_agents import durable_session, durable_step

    async with durable_session(new_session()):
        return await per_second(lambda: durable_step("look up", look_up, next(numbers), 0), calls, callers)


async def run(session_id: str | None) -> Samples:
    from nexum_agents import durable_session

    running = partial(Runner.run, max_turns=MAX_TURNS)
    if session_id is None:
        return [await timed(running(agent(), QUESTION))]
    async with durable_session(session_id):
        return [await timed(running(agent(), QUESTION))]


def new_session() -> str:
    return f"s-{secrets.token_hex(4)}"


def memory_mb() -> float:
    status = Path("/proc/self/status")
    rss = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:")) if status.exists() else ""
    return int(rss.split()[1]) / 1024 if rss else 0.0


class Measured:
    def __init__(self, folder: Path) -> None:
        self._last: dict[str, str] = {}  # kind → its last session
        self._commits = open_synced(folder / f"commits-{os.getpid()}.db")
        self._commits.execute("CREATE TABLE calls (number INTEGER PRIMARY KEY, input TEXT NOT NULL)")

    async def _commit(self) -> None:
        self._commits.execute("INSERT INTO calls (input) VALUES (?)", (INPUT_JSON,))

    async def measure(self, kind: str, calls: int, callers: int = 1) -> Samples:
        if kind in ("step", "cold"):
            self._last[kind] = new_session()
        match kind:
            case "commit":
                return await one_by_one(self._commit() for _ in range(calls))
            case "step" | "step_again":
                return await steps(self._last["step"], calls)
            case "steps_at_once":
                return await steps_at_once(calls, callers)
            case "plain":
                return await run(None)
            case "cold" | "all":
                return await run(self._last["cold"])
            case "memory":
                return [memory_mb()]
        raise ValueError(kind)


async def first(began: float) -> None:
    await steps(new_session(), 1)
    print([(time.perf_counter() - began) * 1000], flush=True)


async def main(folder: Path) -> None:
    set_tracing_disabled(True)
    measured = Measured(folder)
    await asked.answer(measured.measure)


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), (sys.argv[2:] or [""])[0]
    os.environ["NEXUM_DATABASE_URL"] = f"sqlite:///{folder / f'embedded-{os.getpid()}.db'}"
    asyncio.run(first(time.perf_counter()) if how == "first" else main(folder))
