"""A server that is far away: a proxy between it and its clients that delays, cuts, throttles and holds half-open.

    python tests/chaos/far.py [--calls 100]          make far

At each round trip it makes calls while every tenth of a second each connection is reset with a probability of 2 %, and
compares what the server has recorded with what the clients were told.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from nexum import workflow
from processes import STARTED, NexumDev
from pydantic import BaseModel

from nexum_runtime import Client, ServerUnavailable, Worker

ROUND_TRIPS_MS = (5, 80, 800)
RESET_SHARE = 0.02  # of connections, each time that they may be
RESET_SECONDS = 0.1
CALLS = 100
AT_ONCE = 20
PIECE_BYTES = 64 * 1024


@dataclass(eq=False)
class Far:
    """The way to a server. What it does to connections can be changed while it is open."""

    to_port: int
    round_trip_ms: float = 0.0
    reset_share: float = 0.0
    bytes_per_second: float = float("inf")
    is_held: bool = False  # half-open: nothing passes, and nobody is told
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    port: int = 0
    connections: int = 0
    resets: int = 0
    held: int = 0  # pieces that were
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _jobs: set["asyncio.Task[None]"] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._jobs.add(asyncio.create_task(self._serve(reader, writer)))

    async def reset_some(self) -> None:
        while True:
            await asyncio.sleep(RESET_SECONDS)
            for each in list(self._open):
                if self.chance.random() < self.reset_share:
                    self.resets += 1
                    each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await asyncio.sleep(self.round_trip_ms / 1000)  # of TCP's own greeting, which ends at this proxy
        there, back = await asyncio.open_connection("127.0.0.1", self.to_port)
        self._open.add(writer)
        ways = [asyncio.create_task(self._carry(*way)) for way in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(writer)
            for way in ways:
                way.cancel()
            for each in (writer, back):
                each.transport.abort()

    def cut(self) -> None:
        """Reset all connections."""
        for each in list(self._open):
            each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                at, piece = await pieces.get()
                await asyncio.sleep(max(0.0, at - time.monotonic()) + len(piece) / self.bytes_per_second)
                self.held += self.is_held
                while self.is_held:
                    await asyncio.sleep(0.05)
                writer.write(piece)
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        try:
            with suppress(OSError):
                while piece := await reader.read(PIECE_BYTES):
                    pieces.put_nowait((time.monotonic() + self.round_trip_ms / 2000, piece))
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def end(self) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)


@asynccontextmanager
async def far(to_port: int, **what: Any) -> AsyncIterator[Far]:
    way = Far(to_port, **what)
    listening = await asyncio.start_server(way.accept, "127.0.0.1", 0)
    way.port = listening.sockets[0].getsockname()[1]
    resetting = asyncio.create_task(way.reset_some())
    try:
        yield way
    finally:
        listening.close()
        resetting.cancel()
        await way.end()


class Told(BaseModel):
    number: int


async def told(context: Any) -> Told:
    return Told(number=context.input["number"])


REMOTE, LOCAL = (workflow(name).effect("run", Told, told).build() for name in ("remote", "local"))


async def make_calls(way: Far, name: str, calls: int) -> None:
    """Calls that a worker executes and calls of this process, all of them over this way; each is recorded once."""
    begun: dict[int, int] = {}
    address = f"localhost:{way.port}"
    worker = Worker([REMOTE], port=way.port, concurrency=AT_ONCE, drain_seconds=0.0)
    working = asyncio.create_task(worker.run())
    try:
        async with Client(address) as client:
            await _patiently(lambda: client.register(REMOTE))
            await _patiently(lambda: client.register(LOCAL))
            places = asyncio.Semaphore(AT_ONCE)

            async def call(number: int) -> None:
                async def effect() -> dict[str, int]:
                    begun[number] = begun.get(number, 0) + 1
                    return {"number": number}

                async with places:
                    options: dict[str, Any] = {"execution_id": f"{name}/{number}", "timeout": 120.0}
                    if number % 2:
                        outcome = await client.execute(REMOTE, {"number": number}, **options)
                    else:
                        outcome = await client.run_local(LOCAL, {"number": number}, effect, effect="once", **options)
                assert outcome.outputs == {"run": {"number": number}}, f"{name}/{number}: {outcome}"

            await asyncio.gather(*(call(number) for number in range(calls)))
            recorded = await _patiently(lambda: client.journal(f"{name}/"))
            assert recorded == {f"{name}/{number}": {"run": {"number": number}} for number in range(calls)}
            assert set(begun.values()) <= {1}, "what happens once happened once"
    finally:
        worker.stop()
        await working


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    until = time.monotonic() + 60.0
    while True:
        try:
            return await ask()
        except ServerUnavailable:
            if time.monotonic() > until:
                raise


async def main(calls: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with NexumDev(Path(folder)) as dev:
            for round_trip_ms in ROUND_TRIPS_MS:
                for what, more in (("", {}), (", at 256 KiB/s", {"bytes_per_second": 256 * 1024.0})):
                    began = time.monotonic()
                    async with far(dev.port, round_trip_ms=round_trip_ms, reset_share=RESET_SHARE, **more) as way:
                        await make_calls(way, f"far-{round_trip_ms}-{len(what)}", calls)
                    took = time.monotonic() - began
                    print(
                        f"{round_trip_ms:>4} ms there and back{what}: {calls} calls in {took:.1f} s, "
                        f"{way.connections} connections, {way.resets} of them reset",
                        flush=True,
                    )
    while STARTED:
        STARTED.pop().kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make calls to a server that is far away.")
    parser.add_argument("--calls", type=int, default=CALLS, metavar="N")
    asyncio.run(main(parser.parse_args().calls))
