"""An asyncio worker: takes the place of nexum-py's `Worker`, with the same constructor.

Async handlers run on the event loop, sync ones in threads of their own. A heartbeat keeps the leases of what runs
alive, so a long task runs once while its worker lives and is handed on soon after it died.
"""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from nexum_runtime import tracing, wire
from nexum_runtime.client import Client
from nexum_runtime.client.outgoing import Outgoing
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import (
    InvalidRequest,
    LimitExceeded,
    NexumError,
    Parked,
    ServerUnavailable,
    TaskError,
)
from nexum_runtime.logs import Log
from nexum_runtime.text import error_text
from nexum_runtime.worker.attempt import CANCEL_SECONDS, Attempt
from nexum_runtime.worker.standstill import Standstill

LEASE_MS = 10_000
HEARTBEATS_PER_LEASE = 3
STATUS_WAIT_MS = 30_000
DRAIN_SECONDS = 10.0  # what running handlers get to finish once the worker is told to stop
END_SECONDS = 1.0  # what the server gets to acknowledge the last results
HAND_BACK_SECONDS = 2 * CANCEL_SECONDS  # what all that runs gets to stop, and to tell that it did

log = Log("nexum.worker")


class StoppedByServer(Exception):
    """Nobody waits for this attempt any more."""


class StoppedWithWorker(Exception):
    """Another worker can have the task at once."""


class Worker:
    """Runs the handlers of `workflows` (as nexum-py's `workflow(...).build()` returns them).

    `concurrency` is how many tasks run at once, `poll_interval` how many seconds pass between two tries to reach a
    server that is away, `lease_ms` how long the server waits for a silent worker before it gives the task to another.
    `open_client` makes its client, if that is not one of the server at `host` and `port`.
    """

    def __init__(
        self,
        workflows: Sequence[Any],
        *,
        concurrency: int = 4,
        poll_interval: float = 0.1,
        host: str = wire.DEFAULT_HOST,
        port: int = wire.DEFAULT_PORT,
        lease_ms: int = LEASE_MS,
        drain_seconds: float = DRAIN_SECONDS,
        open_client: Callable[[], Client] | None = None,
    ) -> None:
        self._workflows = list(workflows)
        self._poll_interval = poll_interval
        self._open_client = open_client or partial(Client, f"{host}:{port}")
        self._lease_ms = lease_ms
        self._drain_seconds = drain_seconds
        self.worker_id = f"worker-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)  # the server may free a slot before its handler has stopped
        self._stop = asyncio.Event()
        self._running: dict[str, Attempt] = {}  # by task id
        self._reports: dict[asyncio.Task[None], str] = {}  # other words on a task → its id
        self._results: dict[str, tuple[Any, str]] = {}  # task id → its workflow and result, until that is recorded
        self._streams: dict[int, Outgoing] = {}  # of the streams that are open, by the workflow
        self._connected: bool | None = None
        self._standstill: Standstill | None = None

    async def run(self) -> None:
        """Work until `stop()`, then let what runs finish for a while and hand the rest back.

        Raises InvalidRequest when the server refuses a workflow.
        """
        tracing.tracer("worker")
        async with self._open_client() as client:
            self._standstill = Standstill(self._open_client, self.worker_id, self._beat_seconds, self._call_of)
            beats = asyncio.create_task(self._beat(client))
            takes = [asyncio.create_task(self._take(client, each)) for each in self._workflows]
            stopped = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({stopped, *takes}, return_when=asyncio.FIRST_COMPLETED)
                self.stop()
                await asyncio.wait(takes, timeout=END_SECONDS)
                await self._until_idle(self._drain_seconds)
            finally:
                self.stop()
                self._standstill.stop()
                for job in (beats, stopped, *takes):
                    job.cancel()
                await asyncio.wait([beats, stopped, *takes])
                await self._hand_back(client)
            for take in takes:
                if not take.cancelled():
                    take.result()  # a workflow that the server refuses ends the worker

    def stop(self) -> None:
        """Take nothing new, and end `run()`."""
        self._stop.set()
        for outgoing in self._streams.values():
            outgoing.end()
        self._streams.clear()

    async def run_until_complete(self, execution_id: str, timeout: float = 60) -> dict[str, Any]:
        """Work until this execution has ended. Returns `{node: output}` of a COMPLETED one.

        Raises NexumError if it FAILED or was CANCELLED, TimeoutError after `timeout` seconds.
        """
        running = asyncio.create_task(self.run())
        watching = asyncio.create_task(self._outputs(execution_id))
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                await running  # it ended by an error
            return await watching
        finally:
            watching.cancel()
            self.stop()
            await running

    async def _outputs(self, execution_id: str) -> dict[str, Any]:
        async with self._open_client() as client:
            while (outcome := await client.status(execution_id, wait_ms=STATUS_WAIT_MS)).status == "RUNNING":
                pass
        if outcome.status != "COMPLETED":
            raise NexumError(f"Execution {execution_id} is {outcome.status}: {outcome.error}")
        return outcome.outputs

    async def _take(self, client: Client, workflow: Any) -> None:
        """Take this workflow's tasks, and tell what came of them, on one stream after the other."""
        while not self._stop.is_set():
            reason = f"The Nexum server at {client.address} has stopped."
            try:
                await client.register(workflow)  # who comes back may be another server
                if not self._stop.is_set():
                    await self._take_from_stream(client, workflow)
            except ServerUnavailable as error:
                reason = str(error)
            if self._stop.is_set():
                return
            self._note_connection(False, reason)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._poll_interval)

    async def _take_from_stream(self, client: Client, workflow: Any) -> None:
        """Until the stream ends."""
        place, outgoing = id(workflow), Outgoing()
        self._streams[place] = outgoing
        for task_id, (whose, output_json) in self._results.items():  # told before, and not acknowledged
            if whose is workflow:
                outgoing.add(task_id, output_json)
        self._note_connection(True, client.address)
        answers = client.stream_tasks(
            self.worker_id, workflow, lease_ms=self._lease_ms, slots=self._concurrency, outgoing=outgoing
        )
        try:
            async with aclosing(answers):
                async for answer in answers:
                    if answer.has_task:
                        self._begin(client, workflow, answer)
                    elif answer.node_type == wire.STOP_TASK:
                        self._stop_attempt(answer.task_id)
                    else:
                        self._note_answer(client, answer)
        finally:
            if self._streams.get(place) is outgoing:
                del self._streams[place]

    def _begin(self, client: Client, workflow: Any, claimed: Any) -> None:
        tell, stood_still = partial(self._tell, client), lambda: self._standstill.seconds if self._standstill else 0.0
        attempt = Attempt(workflow, claimed, self.worker_id, self._slots, tell, stood_still)
        self._running[attempt.task_id] = attempt
        attempt.over.add_done_callback(lambda _: self._running.pop(attempt.task_id, None))

    def _begin_report(self, task_id: str, report: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(report)
        self._reports[job] = task_id
        job.add_done_callback(self._reports.pop)

    async def _until_idle(self, seconds: float) -> None:
        """Wait until nothing runs any more, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while under_way := [*(attempt.over for attempt in self._running.values()), *self._reports]:
                    await asyncio.wait(under_way)

    def _note_connection(self, connected: bool, told: str) -> None:
        """`told` is where it is connected to, or why it is not."""
        if connected == self._connected:
            return
        self._connected = connected
        if connected:
            log.info("Connected to Nexum at %s.", told)
        else:
            log.warning("%s Waiting for it.", told)

    async def _beat(self, client: Client) -> None:
        """Be heard, keep the leases alive, and stop what the server wants stopped."""
        while True:
            await asyncio.sleep(self._beat_seconds)
            try:
                held = {*self._running, *self._reports.values(), *self._results}
                stops = await client.heartbeat(self.worker_id, held)
            except NexumError:
                continue
            for task_id in stops:
                self._stop_attempt(task_id)

    @property
    def _beat_seconds(self) -> float:
        return self._lease_ms / HEARTBEATS_PER_LEASE / 1000

    def _call_of(self, task: "asyncio.Task[Any] | None") -> str:
        """The call that a task of the event loop executes, or "" if it is of none, or one that a handler has begun."""
        of_it = (each.claimed.execution_id for each in [*self._running.values()] if each.is_in(task))
        return next(of_it, "")

    def _stop_attempt(self, task_id: str) -> None:
        if attempt := self._running.get(task_id):
            attempt.cancel(StoppedByServer())

    async def _hand_back(self, client: Client) -> None:
        """Stop what still runs; each tells the server, so that another worker can take it at once."""
        for attempt in list(self._running.values()):
            attempt.cancel(StoppedWithWorker("Its worker was stopped."))
        for task_id, (_, output_json) in self._results.items():  # also what is on its way: its stream is cut off
            self._begin_report(task_id, self._report(client.complete, task_id, output_json))
        await self._until_idle(HAND_BACK_SECONDS)
        for attempt in list(self._running.values()):
            attempt.abandon()
        for job in self._reports:
            job.cancel()

    async def _tell(self, client: Client, attempt: Attempt, output_json: str, error: BaseException | None) -> None:
        """Tell the server how an attempt ended."""
        task_id, claimed = attempt.task_id, attempt.claimed
        if error is None:
            crash_point("effect-done")
            try:
                await self._deliver(client, attempt.workflow, task_id, output_json)
            except (LimitExceeded, InvalidRequest) as refusal:
                await self._not_recorded(client, task_id, str(refusal))
        elif isinstance(error, StoppedByServer):
            log.info("%s %s was stopped by the server.", claimed.execution_id, claimed.node_id)
        elif isinstance(error, StoppedWithWorker):
            with suppress(NexumError):
                await client.fail(task_id, str(error), interrupted=True)
        elif isinstance(error, Parked):
            crash_point("parking")
            try:
                await self._report(client.park, task_id, error.ended, error.ms)
            except (LimitExceeded, InvalidRequest) as refusal:
                log.warning("%s %s is not parked: %s", claimed.execution_id, claimed.node_id, refusal)
                await self._report(client.fail, task_id, str(refusal), interrupted=True)
            crash_point("parked")
        elif isinstance(error, asyncio.CancelledError):
            await self._report(client.fail, task_id, "CancelledError: the handler cancelled itself.")
        elif isinstance(error, TaskError):
            if error.unknown:
                log.warning("%s %s: %s", claimed.execution_id, claimed.node_id, error)
            flags = {"retryable": error.retryable, "unknown": error.unknown, "begun": error.begun}
            await self._report(client.fail, task_id, str(error), **flags)
        else:
            log.debug("%s failed", task_id, exc_info=error)
            await self._report(client.fail, task_id, error_text(error))

    async def _deliver(self, client: Client, workflow: Any, task_id: str, output_json: str) -> None:
        """Tell the server the result, by the stream if one is open: what is not acknowledged is told again."""
        client.check_size(output_json)
        if (outgoing := self._streams.get(id(workflow))) is not None:
            self._results[task_id] = workflow, output_json
            await outgoing.send(task_id, output_json)
        elif self._stop.is_set():
            await self._report(client.complete, task_id, output_json)
        else:
            self._results[task_id] = workflow, output_json

    def _note_answer(self, client: Client, answer: Any) -> None:
        """What the server says of results: they are recorded, or changed nothing, or are refused by a status code."""
        if answer.node_type == wire.UNAVAILABLE:
            self._begin_report(answer.task_id, self._tell_again(answer.task_id))
            return
        for task_id in answer.task_id.split():
            self._results.pop(task_id, None)
        if answer.node_type in (wire.INVALID_ARGUMENT, wire.RESOURCE_EXHAUSTED):
            self._begin_report(answer.task_id, self._not_recorded(client, answer.task_id, answer.input_json))
        elif answer.input_json:
            log.warning("%s", answer.input_json)

    async def _tell_again(self, task_id: str) -> None:
        await asyncio.sleep(self._poll_interval)
        workflow, output_json = self._results.get(task_id, (None, ""))
        if (outgoing := self._streams.get(id(workflow))) is not None:
            await outgoing.send(task_id, output_json)

    async def _not_recorded(self, client: Client, task_id: str, reason: str) -> None:
        """The effect has happened, and its result cannot be recorded."""
        log.warning("%s: %s", task_id, reason)
        await self._report(client.fail, task_id, reason, retryable=False, unknown=True)

    async def _report(self, send: Callable[..., Awaitable[str]], task_id: str, *args: Any, **kwargs: Any) -> None:
        """Tell the server, for as long as it takes: a result that was paid for is not thrown away."""
        while True:
            try:
                message = await send(task_id, *args, **kwargs)
            except ServerUnavailable:
                await asyncio.sleep(self._poll_interval)
                continue
            except (LimitExceeded, InvalidRequest):
                raise
            except NexumError as error:  # nothing more can be done here; the lease will end the attempt
                message = str(error)
            if message:
                log.warning("%s", message)
            return
