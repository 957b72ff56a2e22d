"""Local effects: tasks that the process which starts an execution executes itself.

    start and claim in one call ─→ the effect ─→ its record

The server sees by the stream of its calls that such a process is there, and by Attend should that stream have ended.
When the process dies so does the stream, and whoever starts the same execution again gets its task at once. A process
that is alive, but can no longer be heard, loses it by the end of its lease.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from nexum_runtime import tracing, wire
from nexum_runtime.client.outcome import Outcome, Watcher
from nexum_runtime.client.way import Claim
from nexum_runtime.errors import (
    DatabaseUnavailable,
    ExecutionCancelled,
    NexumError,
    NotFound,
    ServerUnavailable,
    SessionStopped,
)

T = TypeVar("T")

LEASE_MS = 30_000
HEARTBEATS_PER_LEASE = 3
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 1.0
SPEAK_UP_SECONDS = 1.5  # of waiting for a server, before `on_wait` is told


Labels = dict[str, Any]  # as wire.LABELS has them


class Server(Protocol):
    """What a local effect asks of its server: some of the calls of `Client`."""

    async def status(self, execution_id: str) -> Outcome: ...
    async def complete(self, task_id: str, output_json: str, labels: Labels | None = None) -> str: ...
    async def why_stopped(self, execution_id: str) -> str | None: ...
    async def fail(
        self, task_id: str, error: str, *, retryable: bool = True, unknown: bool = False, begun: bool = True
    ) -> str: ...
    async def heartbeat(self, worker_id: str, task_ids: list[str]) -> list[str]: ...
    def attend(self, worker_id: str) -> AsyncIterator[None]: ...


class LocalEffect:
    """An execution whose one task is this process's own, or one that has ended already: then `outcome` is there."""

    def __init__(
        self,
        server: Server,
        found: Outcome,
        task_id: str,
        node_id: str,
        patience: "Patience",
        span: tracing.Span,
        claim_anew: Callable[[], Awaitable[tuple[Outcome, str, Claim | None]]],
    ) -> None:
        self.outcome: Outcome | None = None if task_id else found
        self.node_id = node_id
        self.span = span
        self.before = found.before  # NEW, or the status its id had before
        self._server, self._found, self._task_id, self._patience = server, found, task_id, patience
        self._claim_anew = claim_anew
        self._is_open = bool(task_id)
        self._why: str | None = None  # that it is to stop: why its session was stopped, or "" when it was cancelled
        self._cut: Callable[[], object] | None = None  # cuts short what is executed

    @property
    def attempt(self) -> int:
        """Which one this process makes; 0 for none."""
        return int(self._task_id.rpartition(".")[2]) if self._task_id else 0

    def stop(self, why: str) -> None:
        """It is not wanted any more: `why` its session was stopped, or "" when it was cancelled."""
        if self._is_open and self._why is None:
            self._why = why
            if self._cut is not None:
                self._cut()

    @asynccontextmanager
    async def until_stopped(self) -> AsyncIterator[None]:
        """A block in which the effect is executed; it is cut short when it is not wanted any more.

        Then raises SessionStopped if its session was stopped, else ExecutionCancelled, with `outcome` as it is.
        """
        if self._why is None:
            task = asyncio.current_task()
            assert task is not None, "an effect is executed in a task"
            before = task.cancelling()
            self._cut = task.cancel
            try:
                yield
            except asyncio.CancelledError:
                if self._why is None or task.uncancel() > before:
                    raise
            else:
                return
            finally:
                self._cut = None
        self._is_open = False
        if self._why:
            raise SessionStopped(self._why)
        self.outcome = await self._patience.with_server(lambda: self._server.status(self._found.execution_id))
        raise ExecutionCancelled(f"Execution {self._found.execution_id} was cancelled.")

    async def record(self, output: Any, labels: Labels | None = None) -> Outcome:
        """Record the effect's result, any JSON value; `outcome` is what is recorded, by this word or an earlier one.

        A server that is away is waited for. Raises ServerUnavailable, and for what cannot be recorded LimitExceeded,
        InvalidRequest, TypeError or ValueError: the execution has failed then, its outcome unknown if it happens once.
        """
        self._is_open = False
        try:
            output_json = wire.json_text(output)
            message = await self._complete(output_json, labels)
        except ServerUnavailable:
            raise
        except Exception as error:
            await self._fail(f"Its result cannot be recorded: {error}", retryable=False, unknown=True)
            raise
        if message:  # another process was first, or it was cancelled
            self.outcome = await self._patience.with_server(lambda: self._server.status(self._found.execution_id))
        else:
            self.outcome = replace(self._found, status="COMPLETED", outputs={self.node_id: output})
        return self.outcome

    async def _complete(self, output_json: str, labels: Labels | None) -> str:
        """Returns "", or in words why it was not recorded."""
        with ExitStack() as at_the_end:
            while True:
                try:
                    return await self._patience.with_server(
                        partial(self._server.complete, self._task_id, output_json, labels)
                    )
                except NotFound:  # it was begun before its start was synced, and then the server, or its disk, failed
                    found, self._task_id, claim = await self._claim_anew()
                    if not self._task_id:
                        return f"Execution {found.execution_id} is {found.status} already."
                    if claim is not None:
                        at_the_end.callback(claim.leave)

    async def give_up(self, error: str, **how: bool) -> None:
        """End the attempt without a result, unless one is recorded or could not be. `how` is that of `Client.fail`."""
        if self._is_open:
            self._is_open = False
            await self._fail(error, **how)

    async def _fail(self, error: str, **how: bool) -> None:
        with suppress(NexumError):  # then it is given up when its presence ends
            await self._patience.with_server(lambda: self._server.fail(self._task_id, error, **how))


class Patience:
    """How long, and with what words on the way, a server that is away is waited for."""

    def __init__(self, seconds: float, watcher: Watcher) -> None:
        self._seconds, self._watcher = seconds, watcher

    async def with_server(self, ask: Callable[[], Awaitable[T]]) -> T:
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
                if waited >= SPEAK_UP_SECONDS:
                    self._watcher("database" if isinstance(error, DatabaseUnavailable) else "server")
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)


def new_owner() -> str:
    """A worker id for one effect of this process: whose end it is that the server sees must be beyond doubt."""
    return f"{wire.LOCAL_WORKER}{os.getpid()}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def presence(
    server: Server, owner: str, execution_id: str, task_id: str, claim: Claim | None, stop: Callable[[str], None]
) -> AsyncIterator[None]:
    """Keep the lease of this owner's task, and let the server see its end: what is open then is given up at once.

    Without a `claim` that it sees, as with a server that went away since, by a call of its own (Attend). `stop` is
    called when the task is not wanted any more: see `LocalEffect.stop`.
    """
    loop = asyncio.get_running_loop()
    keeping: list[asyncio.Task[None]] = []
    is_over = False

    def attend(_: object = None) -> None:
        if not is_over:  # it may be called a moment after it was removed
            keeping.append(asyncio.create_task(_attend(server, owner)))
            if claim is not None and claim.is_kept:
                beat()

    def beat() -> None:
        keeping.append(asyncio.create_task(_beat(server, owner, execution_id, task_id, stop)))

    def stopped(told: "asyncio.Future[str]") -> None:
        if not is_over and not told.cancelled():
            stop(told.result())

    timer = None if claim is not None and claim.is_kept else loop.call_later(_heartbeat_seconds(), beat)
    if claim is None:
        attend()
    else:
        claim.lost.add_done_callback(attend)
        claim.stopped.add_done_callback(stopped)
    try:
        yield
    finally:
        is_over = True
        if timer is not None:
            timer.cancel()
        if claim is not None:
            claim.lost.remove_done_callback(attend)
            claim.leave()
        for each in keeping:
            each.cancel()
        if keeping:
            await asyncio.gather(*keeping, return_exceptions=True)


async def _attend(server: Server, owner: str) -> None:
    while True:
        with suppress(NexumError):
            async for _ in server.attend(owner):
                pass
        await asyncio.sleep(RETRY_SECONDS_MIN)


async def _beat(server: Server, owner: str, execution_id: str, task_id: str, stop: Callable[[str], None]) -> None:
    while True:
        with suppress(NexumError):  # what another process has begun anew goes on here as well: the first word counts
            if await server.heartbeat(owner, [task_id]) and (why := await server.why_stopped(execution_id)) is not None:
                stop(why)
        await asyncio.sleep(_heartbeat_seconds())


def _heartbeat_seconds() -> float:
    return LEASE_MS / HEARTBEATS_PER_LEASE / 1000
