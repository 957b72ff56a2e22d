"""Local effects: tasks that the process which starts an execution executes itself.

    start and claim in one call ─→ the effect ─→ its record

Such a process holds one call open to the server meanwhile (Attend). When it dies the server sees the call end, and
whoever starts the same executions again gets their tasks at once. A process that is alive, but can no longer be heard,
loses it by the end of its lease.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nexum_runtime import wire
from nexum_runtime.errors import DatabaseUnavailable, NexumError, ServerUnavailable

if TYPE_CHECKING:
    from nexum_runtime.client import Client, Outcome, Waiting

LEASE_MS = 30_000
HEARTBEATS_PER_LEASE = 3
LINGER_SECONDS = 2.0  # that it stays after the last effect: the next one may be near
ATTENDED_SECONDS = 2.0  # to be known as here; without it a death is noticed by the end of the lease
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 1.0
SPEAK_UP_SECONDS = 1.5  # of waiting for a server, before `on_wait` is told


class LocalEffect:
    """An execution whose one task is this process's own, or one that has ended already: then `outcome` is there."""

    def __init__(
        self,
        client: "Client",
        found: "Outcome",
        task_id: str,
        node_id: str,
        worker_id: str,
        patience: "Patience",
    ) -> None:
        self.outcome: Outcome | None = None if task_id else found
        self.node_id = node_id
        self.before = found.before  # NEW, or the status its id had before
        self._client, self._found, self._task_id, self._patience = client, found, task_id, patience
        self._worker_id = worker_id
        self._is_open = bool(task_id)

    async def record(self, output: Any) -> "Outcome":
        """Record the effect's result, any JSON value; `outcome` is what is recorded, by this word or an earlier one.

        A server that is away is waited for. Raises ServerUnavailable, and for what cannot be recorded LimitExceeded,
        InvalidRequest, TypeError or ValueError: the execution has failed then, its outcome unknown if it happens once.
        """
        self._is_open = False
        try:
            output_json = wire.json_text(output)
            message = await self._patience.with_server(lambda: self._client.complete(self._task_id, output_json))
        except ServerUnavailable:
            raise
        except Exception as error:
            await self._fail(f"Its result cannot be recorded: {error}", retryable=False, unknown=True)
            raise
        if message:  # another process was first, or it was cancelled
            self.outcome = await self._patience.with_server(lambda: self._client.status(self._found.execution_id))
        else:
            self.outcome = replace(self._found, status="COMPLETED", outputs={self.node_id: output})
        return self.outcome

    async def give_up(self, error: str, **how: bool) -> None:
        """End the attempt without a result, unless one is recorded or could not be. `how` is that of `Client.fail`."""
        if self._is_open:
            self._is_open = False
            await self._fail(error, **how)

    async def leave(self) -> None:
        """Whoever executes it has been stopped in the middle: give it up as if its process had died."""
        if self._is_open:
            self._is_open = False
            with suppress(NexumError):  # else its lease will end
                await self._client.fail(self._task_id, f"Worker {self._worker_id} has gone.", interrupted=True)

    async def _fail(self, error: str, **how: bool) -> None:
        with suppress(NexumError):  # else its lease will end
            await self._patience.with_server(lambda: self._client.fail(self._task_id, error, **how))


class Patience:
    """How long, and with what words on the way, a server that is away is waited for."""

    def __init__(self, seconds: float, on_wait: "Callable[[Waiting], None] | None") -> None:
        self._seconds, self._on_wait = seconds, on_wait

    async def with_server(self, ask: "Callable[[], Any]") -> Any:
        """What `ask` returns, asked again while the server is away. Raises ServerUnavailable when the time is up."""
        clock = asyncio.get_running_loop().time
        began, pause = clock(), RETRY_SECONDS_MIN
        while True:
            try:
                return await ask()
            except ServerUnavailable as error:
                waited = clock() - began
                if waited >= self._seconds:
                    raise
                if self._on_wait is not None and waited >= SPEAK_UP_SECONDS:
                    self._on_wait("database" if isinstance(error, DatabaseUnavailable) else "server")
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)


class Presence:
    """That the server sees this process: one call, held open while any effect of it is under way and a while longer."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._process = f"{wire.LOCAL_WORKER}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._begun = self._under_way = 0
        self._attending: asyncio.Task[None] | None = None
        self._attended = asyncio.Event()
        self._leaving: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def of_one(self) -> AsyncIterator[str]:
        """A worker id for one effect: whose it is must be beyond doubt."""
        self._begun += 1
        self._under_way += 1
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if self._attending is None:
            self._attending = asyncio.create_task(self._attend())
        try:
            yield f"{self._process}{wire.EFFECT_OF}{self._begun}"
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._leaving = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.end)

    @asynccontextmanager
    async def kept(self, worker_id: str, task_id: str) -> AsyncIterator[None]:
        """Be seen, and keep the lease of this effect's task."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ATTENDED_SECONDS):
                await self._attended.wait()
        beating = asyncio.create_task(_beat(self._client, worker_id, task_id))
        try:
            yield
        finally:
            beating.cancel()

    def end(self) -> None:
        if self._attending is not None:
            self._attending.cancel()
            self._attending = None
        self._attended.clear()

    async def _attend(self) -> None:
        pause = RETRY_SECONDS_MIN
        while True:
            with suppress(NexumError):
                async for _ in self._client.attend(self._process):
                    self._attended.set()
                    pause = RETRY_SECONDS_MIN
            self._attended.clear()
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS_MAX)


async def _beat(client: "Client", worker_id: str, task_id: str) -> None:
    while True:
        await asyncio.sleep(LEASE_MS / HEARTBEATS_PER_LEASE / 1000)
        with suppress(NexumError):  # what should stop goes on: its word is refused, or still of use
            await client.heartbeat(worker_id, [task_id])
