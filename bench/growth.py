"""Growth: calls, memory and start-up of a server whose database holds a hundred calls, ten thousand, a million.

And a session of ten thousand calls that is run again, and a MAP of as many items.
"""

import os
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench import maps, processes
from bench.calls import INPUT, Caller, tool_calls
from bench.context import SLICES, Context
from bench.measure import Kind, Results, Samples, one_by_one, shown
from bench.stored import fill
from nexum_agents.clients import nexum_client
from nexum_agents.sessions import root_of
from nexum_agents.tools import place_of_call
from nexum_agents.workflows import ToolCall
from nexum_runtime.wire import canonical_json

STORED = (100, 10_000)
STORED_MOST = 1_000_000
CALLS_OF_A_SESSION = 20
SESSION, SESSION_CALLS = "long", 10_000
TOOL = "look_up"


class Server:
    """A server on a database of its own, that can be started again on its port: who was connected connects again."""

    def __init__(self, context: Context, database: Path) -> None:
        self.database, self._folder, self._port = database, context.folder, 0
        self._running = AsyncExitStack()
        context.stack.push_async_callback(self.stop)

    async def start(self) -> Samples:
        """Start it, or start it again. Returns how many milliseconds it takes to be ready."""
        await self.stop()
        self.process, self.address = await self._running.enter_async_context(
            processes.server(self._folder, self.database, self._port)
        )
        self._port = int(self.address.rpartition(":")[2])
        return [self.process.ready_ms]

    async def stop(self) -> None:
        await self._running.aclose()

    async def store(self, call: Callable[[], Awaitable[Any]], ids: Iterable[tuple[str, str]]) -> None:
        """Have this call carried out, and stored again under each id, with its input as JSON."""
        await call()
        await self.stop()
        fill(self.database, ids)
        await self.start()


async def kinds(context: Context) -> list[Kind]:
    empty = Server(context, context.folder / "empty.db")
    made = [Kind("growth.start_0", "nothing stored: start-up", "ms", empty.start)]
    for stored in context.stored:
        made += await with_stored(context, stored)
    sizes = maps.ITEMS_FEW, *([maps.ITEMS_MOST] if STORED_MOST in context.stored else [])
    return made + await long_session(context) + await maps.kinds(context, sizes)


async def with_stored(context: Context, stored: int) -> list[Kind]:
    server = Server(context, context.folder / f"stored-{stored}.db")
    await server.start()
    await context.worker(server.address, "bench.effect_worker")
    client, times = await context.client(server.address), context.slice_calls
    caller = Caller(client)
    await server.store(caller.cold, ((stored_id(number), canonical_json(INPUT)) for number in range(stored)))

    async def cold() -> Samples:
        await client.check()
        return await one_by_one(caller.cold() for _ in range(times))

    async def cached() -> Samples:
        await client.check()
        ids = [stored_id(random.randrange(stored)) for _ in range(times)]
        return await one_by_one(map(caller.cached, ids))

    async def listed() -> Samples:
        await client.check()
        return await one_by_one(client.sessions() for _ in range(times))

    async def memory() -> Samples:
        await cached()
        return [server.process.memory_mb()]

    return [
        Kind(f"growth.start_{stored}", f"{stored:,} stored: start-up", "ms", server.start),
        Kind(f"growth.cold_{stored}", "… cold", "ms", cold, SLICES),
        Kind(f"growth.cached_{stored}", "… cached", "ms", cached, SLICES),
        Kind(f"growth.sessions_{stored}", "… its sessions listed", "ms", listed),
        Kind(f"growth.memory_{stored}", "… server's memory", "MB", memory),
    ]


def stored_id(number: int) -> str:
    return f"session-{number // CALLS_OF_A_SESSION:06d}/effect/{number:016x}/0"


async def long_session(context: Context) -> list[Kind]:
    server = Server(context, context.folder / "session.db")
    await server.start()
    os.environ["NEXUM_ADDRESS"] = server.address
    await context.worker(server.address, "bench.tools_worker")
    await server.store(lambda: tool_calls("template", 1, "stored"), session_calls())
    await nexum_client().check()

    async def first() -> Samples:
        return await tool_calls(SESSION, 1, "cached")

    async def others() -> Samples:
        return (await tool_calls(SESSION, 1 + context.calls, "cached"))[1:]

    async def forked() -> Samples:
        return await one_by_one([nexum_client().fork_session(SESSION, f"fork-{uuid.uuid4().hex}")])

    async def memory() -> Samples:
        await others()
        return [server.process.memory_mb()]

    return [
        Kind("growth.session_first", f"a session of {SESSION_CALLS:,} calls: the first", "ms", first),
        Kind("growth.session_others", "… the others", "ms", others),
        Kind("growth.session_fork", "… forked", "ms", forked),
        Kind("growth.session_memory", "… server's memory", "MB", memory),
    ]


def session_calls() -> Iterable[tuple[str, str]]:
    scope = root_of(SESSION)
    for number in range(SESSION_CALLS):
        call = ToolCall(tool_name=TOOL, tool_args={"number": number, "delay_ms": 0})
        yield place_of_call(scope, TOOL, call.tool_args).execution_id, canonical_json(call.model_dump())


def sentence(results: Results) -> str:
    most = max(int(key.rpartition("_")[2]) for key in results.kinds if key.startswith("growth.cold_"))
    few, many = results.median("growth.cold_100"), results.median(f"growth.cold_{most}")
    first = results.median("growth.session_first")
    return (
        f"With {most:,} calls stored a new one takes {shown(many)} ms, with 100 {shown(few)} ms. "
        f"A session of {SESSION_CALLS:,} calls that is run again has its first answer in {shown(first)} ms."
    )
