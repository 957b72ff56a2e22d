"""What a section is opened with: a folder, how many calls a round makes, and one Nexum that sections share."""

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.measure import WARM_UP
from nexum_runtime import Client

TOOL_CALLS_AT_ONCE = 64
CALLS_EACH = 5
SLICES = 10  # of a round, of what is short


@dataclass
class Nexum:
    client: Client
    server: processes.Child


class Context:
    """Lives as long as the event loop that the sections run in; `stack` ends what they start."""

    def __init__(self, stack: AsyncExitStack, folder: Path, *, calls: int, tool_ms: int, stored: Sequence[int]) -> None:
        self.stack, self.folder = stack, folder
        self.calls, self.tool_ms, self.stored = calls, tool_ms, stored
        self.executed: list[dict[str, list[tuple[int, int]]]] = []
        self._nexum: Nexum | None = None

    async def nexum(self) -> Nexum:
        """A server with an empty database, a worker for `effect_worker.EFFECT` and one for the agent's tools.

        `nexum_agents` finds it, too.
        """
        if self._nexum is None:
            server, address = await self.stack.enter_async_context(
                processes.server(self.folder, self.folder / "nexum.db")
            )
            os.environ["NEXUM_ADDRESS"] = address
            await self.worker(address, "bench.effect_worker")
            await self.worker(address, "bench.tools_worker", str(TOOL_CALLS_AT_ONCE))
            self._nexum = Nexum(await self.client(address), server)
        return self._nexum

    @property
    def slice_calls(self) -> int:
        """How many calls each of a round's SLICES makes, with those that warm up."""
        return WARM_UP + max(1, self.calls // SLICES)

    def calls_by(self, callers: int) -> int:
        """How many calls so many callers make in a round: as many as one does, and a few each at least."""
        return max(self.calls, callers * min(self.calls, CALLS_EACH))

    async def client(self, address: str) -> Client:
        return await self.stack.enter_async_context(Client(address))

    async def worker(self, address: str, module: str, *arguments: str) -> None:
        await self.stack.enter_async_context(processes.worker(self.folder, address, module, *arguments))
