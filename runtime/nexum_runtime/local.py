"""Local effects: tasks that the process which starts an execution executes itself.

    start and claim in one call ─→ the effect ─→ its record

Such a process holds one call open to the server meanwhile (Attend). When it dies the server sees the call end, and
whoever starts the same execution again gets its task at once. A process that is alive, but can no longer be heard,
loses it by the end of its lease.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from nexum_runtime import wire
from nexum_runtime.errors import DatabaseUnavailable, InvalidRequest, LimitExceeded, NexumError, ServerUnavailable

if TYPE_CHECKING:
    from nexum_runtime.client import Client, Outcome, Waiting

LEASE_MS = 30_000
HEARTBEATS_PER_LEASE = 3
ATTENDED_SECONDS = 2.0  # to be known as here; without it a death is noticed by the end of the lease
RETRY_SECONDS = 0.1


class LocalEffect:
    """An execution whose one task is this process's own, or one that has ended already: then `outcome` is there."""

    def __init__(self, client: "Client", found: "Outcome", task_id: str, node_id: str, patience: "Patience") -> None:
        self.outcome: Outcome | None = None if task_id else found
        self.node_id = node_id
        self._client, self._found, self._task_id, self._patience = client, found, task_id, patience
        self._is_open = bool(task_id)

    async def record(self, output: Any) -> "Outcome":
        """Record the effect's result, any JSON value; `outcome` is what is recorded, by this word or an earlier one.

        A server that is away is waited for. Raises LimitExceeded, ServerUnavailable.
        """
        output_json = wire.json_text(output)
        self._is_open = False
        try:
            message = await self._patience.with_server(lambda: self._client.complete(self._task_id, output_json))
        except (LimitExceeded, InvalidRequest) as error:
            await self._fail(str(error), retryable=False, unknown=True)
            raise
        if message:  # another process was first, or it was cancelled
            self.outcome = await self._client.status(self._found.execution_id)
        else:
            self.outcome = replace(self._found, status="COMPLETED", outputs={self.node_id: output})
        return self.outcome

    async def give_up(self, error: str, **how: bool) -> None:
        """End the attempt without a result, unless it has ended."""
        if self._is_open:
            self._is_open = False
            await self._fail(error, **how)

    async def _fail(self, error: str, **how: bool) -> None:
        with suppress(NexumError):  # then the end of its lease says so
            await self._client.fail(self._task_id, error, **how)


class Patience:
    """How long, and with what words on the way, a server that is away is waited for."""

    def __init__(self, seconds: float, on_wait: "Callable[[Waiting], None] | None") -> None:
        self.seconds, self.on_wait = seconds, on_wait

    async def with_server(self, ask: "Callable[[], Any]") -> Any:
        """What `ask` returns, asked again while the server is away. Raises ServerUnavailable when the time is up."""
        deadline = asyncio.get_running_loop().time() + self.seconds
        while True:
            try:
                return await ask()
            except ServerUnavailable as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                if self.on_wait is not None:
                    self.on_wait("database" if isinstance(error, DatabaseUnavailable) else "server")
                await asyncio.sleep(RETRY_SECONDS)


class Presence:
    """This process as the server knows it, for as long as it has anything under way: an owner of tasks."""

    def __init__(self, client: "Client") -> None:
        self.owner = f"process-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.users = 0
        self._client = client
        self._held: set[str] = set()  # task ids
        self._attending: asyncio.Task[None] | None = None
        self._is_attended = asyncio.Event()

    async def hold(self, task_id: str) -> None:
        """Keep this task's lease, and let the server see when this process dies."""
        self._held.add(task_id)
        if self._attending is None:
            self._attending = asyncio.create_task(self._attend())
        with suppress(TimeoutError):
            async with asyncio.timeout(ATTENDED_SECONDS):
                await self._is_attended.wait()

    def let_go(self, task_id: str) -> None:
        self._held.discard(task_id)

    async def end(self) -> None:
        if self._attending is not None:
            self._attending.cancel()
            await asyncio.wait([self._attending])

    async def _attend(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                with suppress(NexumError):
                    async for _ in self._client.attend(self.owner):
                        self._is_attended.set()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / HEARTBEATS_PER_LEASE / 1000)
            with suppress(NexumError):  # what should stop goes on: its word is refused, or still of use
                await self._client.heartbeat(self.owner, self._held)


class LocalTasks:
    """What a client executes itself."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by execution id
        self._presence: Presence | None = None

    @asynccontextmanager
    async def asking_for(self, execution_id: str) -> AsyncIterator[Presence]:
        """One at a time for each execution, since two claims of one owner would be the same claim."""
        lock = self._locks.get(execution_id)
        if lock is None:
            lock = self._locks[execution_id] = asyncio.Lock()
        async with lock:
            # A new owner once the last one has ended: whose end it is that the server sees must be beyond doubt.
            presence = self._presence = self._presence or Presence(self._client)
            presence.users += 1
            try:
                yield presence
            finally:
                presence.users -= 1
                if not presence.users:
                    self._presence = None
                    await presence.end()
