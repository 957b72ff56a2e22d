"""Weight: a small call and the server's memory beside the heaviest mix that is legal, and on an idle server.

And a call of a session of 100,000, and one that is recorded there, while people look at all of it; the page of that
session, and what a call costs while a page is open that watches it.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from bench import processes
from bench.calls import INPUT, Caller
from bench.context import Context
from bench.growth import Server
from bench.measure import Kind, Results, Samples, one_by_one, shown
from nexum_runtime.wire import canonical_json

CALLS = 100
SESSION, STORED = "long", 100_000
SESSIONS = 10_000  # of one call each
AGAIN_SECONDS, AGAIN_TIMES = 1.0, 30  # between two looks of an open page, as in page.js
LINUX = Path("/proc")


async def kinds(context: Context) -> list[Kind]:
    server, address = await context.stack.enter_async_context(
        processes.server(context.folder, context.folder / "weight.db")
    )
    client = await context.client(address)
    caller = Caller(client)
    await caller.local()

    async def idle() -> Samples:
        return await one_by_one(caller.local() for _ in range(CALLS))

    async def beside() -> Samples:
        command = ("-m", "bench.weight_process", address)
        async with processes.child(command, context.folder / "weight.log", "ready"):
            return await one_by_one(caller.local() for _ in range(CALLS))

    async def memory() -> Samples:
        return [_most_mb(server)]

    return [
        *await _large_session(context),
        Kind("weight.idle", "a small call, idle server", "ms", idle),
        Kind("weight.beside", "… beside the heaviest mix", "ms", beside),
        Kind("weight.memory", "server's memory, at most", "MB", memory),
    ]


async def _large_session(context: Context) -> list[Kind]:
    server = Server(context, context.folder / "large.db")
    await server.start()
    await context.worker(server.address, "bench.effect_worker")
    client = await context.client(server.address)
    ids = [f"{SESSION}/{number:06x}" for number in range(STORED)] + [f"s{number}/call" for number in range(SESSIONS)]
    await server.store(Caller(client).cold, ((each, canonical_json(INPUT)) for each in ids))
    await client.check()
    caller, ordinary = Caller(client, SESSION), Caller(client, "ordinary")

    async def alone() -> Samples:
        calls = await one_by_one(caller.cold() for _ in range(CALLS // 2))
        return calls + await one_by_one(caller.cached(each) for each in caller.ended[-CALLS // 2 :])

    async def looked_at() -> Samples:
        command = ("-m", "bench.looks_process", server.address, SESSION)
        async with processes.child(command, context.folder / "looks.log", "ready"):
            return await alone()

    page = server.process.said.rpartition("page at ")[2].split()[0]
    web = await context.stack.enter_async_context(httpx.AsyncClient(base_url=page, timeout=60))

    async def painted(path: str) -> Samples:
        began = time.perf_counter()
        (await web.get(path)).raise_for_status()
        return [(time.perf_counter() - began) * 1000]

    async def unwatched() -> Samples:
        return await one_by_one(ordinary.cold() for _ in range(CALLS * 20))

    async def watched() -> Samples:
        async with _watching(web, "ordinary"):
            return await unwatched()

    return [
        Kind("weight.page", f"the page of a session of {STORED:,}", "ms", lambda: painted(f"/session?id={SESSION}")),
        Kind("weight.sessions", f"the page of {SESSIONS:,} sessions", "ms", lambda: painted("/")),
        Kind("weight.unwatched", "a cold call, no page open", "ms", unwatched),
        Kind("weight.watched", "… with a page open that watches it", "ms", watched),
        Kind("weight.stored", f"a call of a session of {STORED:,}", "ms", alone),
        Kind("weight.looked_at", "… while people look at it", "ms", looked_at),
    ]


@asynccontextmanager
async def _watching(web: httpx.AsyncClient, session_id: str) -> AsyncIterator[None]:
    """A page of the session that is open, as a browser has it: its updates, and the page again for each."""

    async def watch() -> None:
        async with web.stream("GET", "/api/live", params={"session": session_id}) as told:
            ready.set()
            async for line in told.aiter_lines():
                if line.startswith("data:"):
                    began = time.perf_counter()
                    await web.get("/session", params={"id": session_id})
                    await asyncio.sleep(max(AGAIN_SECONDS, AGAIN_TIMES * (time.perf_counter() - began)))

    ready = asyncio.Event()
    watching = asyncio.create_task(watch())
    try:
        await ready.wait()
        yield
    finally:
        watching.cancel()


def _most_mb(server: processes.Child) -> float:
    """What the process has held at most; where the system does not tell, what it holds."""
    if sys.platform != "linux":
        return server.memory_mb()
    status = (LINUX / str(server.pid) / "status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def sentence(results: Results) -> str:
    beside, idle, looked_at = (
        shown(results.percentile(f"weight.{key}", 99)) for key in ("beside", "idle", "looked_at")
    )
    return (
        f"Beside the heaviest mix a small call takes {beside} ms at its p99, and {idle} ms on an idle server. "
        f"It takes {looked_at} ms while people look at a session of {STORED:,} calls."
    )
