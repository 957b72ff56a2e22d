"""Sessions that are followed: how long a word takes to its followers, and what a call costs meanwhile.

200 followers of one run, and 200 runs with a follower each; in each run a word is said every 50 ms.
"""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

from bench import processes
from bench.calls import INPUT, Caller
from bench.context import Context
from bench.follow_process import END
from bench.measure import Kind, Results, Samples, one_by_one, shown
from nexum_agents.workflows import LOCAL_CALL
from nexum_runtime import Client, LocalEffect

FOLLOWERS = 200
WORDS, WORD_SECONDS = 40, 0.05
CALLS = 200


async def kinds(context: Context) -> list[Kind]:
    _, address = await context.stack.enter_async_context(processes.server(context.folder, context.folder / "follow.db"))
    await context.worker(address, "bench.effect_worker")
    client = await context.client(address)
    caller, numbers = Caller(client), count()

    async def delays(runs: int, beside: list[float] | None = None) -> Samples:
        """In milliseconds; with `beside` also what calls take meanwhile."""
        sessions = [f"follow-{next(numbers)}" for _ in range(runs)]
        file = context.folder / f"{sessions[0]}.json"
        command = ("-m", "bench.follow_process", address, str(FOLLOWERS // runs), str(file), *sessions)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(processes.child(command, context.folder / "follow.log", "ready"))
            speaking = asyncio.gather(*(_speak(client, each) for each in sessions))
            if beside is not None:
                beside += await one_by_one(caller.cold() for _ in range(CALLS))
            await speaking
            while not _is_whole(file):
                await asyncio.sleep(WORD_SECONDS)
        found: Samples = json.loads(file.read_text())
        return found

    async def call() -> Samples:
        return await one_by_one(caller.cold() for _ in range(CALLS))

    async def call_beside() -> Samples:
        calls: list[float] = []
        await delays(1, calls)
        return calls

    return [
        Kind("follow.one", f"a word to {FOLLOWERS} followers of a run", "ms", lambda: delays(1)),
        Kind("follow.many", f"a word of {FOLLOWERS} runs to a follower each", "ms", lambda: delays(FOLLOWERS)),
        Kind("follow.call", "a cold call, nobody follows", "ms", call),
        Kind("follow.call_beside", f"… beside {FOLLOWERS} followers of a run", "ms", call_beside),
    ]


async def _speak(client: Client, session_id: str) -> None:
    async with client.local_effect(LOCAL_CALL, INPUT, execution_id=f"{session_id}/turn") as effect:
        await _say(client, session_id, effect)
        await effect.record({"result": "done", "duration_ms": 0})


async def _say(client: Client, session_id: str, effect: LocalEffect) -> None:
    at = 0
    for number in range(WORDS + 1):
        words = f"{time.perf_counter()}\n" if number < WORDS else f"{END}\n"
        await client.publish_words(f"{session_id}/turn", effect.attempt, at, words)
        at += len(words)
        await asyncio.sleep(WORD_SECONDS)
    await asyncio.sleep(1)  # for who is slow: what is recorded has no words any more


def _is_whole(file: Path) -> bool:
    return file.exists() and file.read_text().endswith("]")


def sentence(results: Results) -> str:
    one, many = shown(results.median("follow.one")), shown(results.median("follow.many"))
    return (
        f"A word is with {FOLLOWERS} followers of its run in {one} ms, and from {FOLLOWERS} runs with a follower each "
        f"in {many} ms."
    )
