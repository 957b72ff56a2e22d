"""An asyncio worker: takes the place of nexum-py's `Worker`, with the same constructor.

Async handlers run on the event loop, sync ones in threads of their own. A heartbeat keeps the leases of what runs
alive, so a long task runs once while its worker lives and is handed on soon after it died.
"""

import asyncio
import inspect
import json
import logging
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import grpc
from nexum.context import ContextView
from pydantic_core import to_json

from nexum_runtime import tracing, wire
from nexum_runtime.client import Client, Outgoing
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import (
    InvalidRequest,
    LimitExceeded,
    NexumError,
    ServerUnavailable,
    TaskError,
)
from nexum_runtime.idempotency import idempotent_by
from nexum_runtime.text import duration_text

T = TypeVar("T")

LEASE_MS = 10_000
HEARTBEATS_PER_LEASE = 3
STATUS_WAIT_MS = 30_000
DRAIN_SECONDS = 10.0  # what running handlers get to finish once the worker is told to stop
END_SECONDS = 1.0  # what the server gets to acknowledge the last results
HAND_BACK_SECONDS = 2.0
CANCEL_SECONDS = 1.0  # what a cancelled handler gets to clean up; less than HAND_BACK_SECONDS

log = logging.getLogger("nexum.worker")


class Worker:
    """Runs the handlers of `workflows` (as nexum-py's `workflow(...).build()` returns them).

    `concurrency` is how many tasks run at once, `poll_interval` how many seconds pass between two tries to reach a
    server that is away, `lease_ms` how long the server waits for a silent worker before it gives the task to another.
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
    ) -> None:
        self._workflows = list(workflows)
        self._poll_interval = poll_interval
        self._address = f"{host}:{port}"
        self._lease_ms = lease_ms
        self._drain_seconds = drain_seconds
        self.worker_id = f"worker-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)  # the server may free a slot before its handler has stopped
        self._stop = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}  # task id → its handler
        self._told_to_stop: set[str] = set()
        self._reporting: set[str] = set()  # the handler has ended; its result is on the way
        self._results: dict[str, tuple[Any, str]] = {}  # task id → its workflow and result, until that is recorded
        self._streams: dict[int, Outgoing] = {}  # of the streams that are open, by the workflow
        self._left_alone: set[asyncio.Task[Any]] = set()  # handlers that went on when they were cancelled
        self._connected: bool | None = None

    async def run(self) -> None:
        """Work until `stop()`, then let what runs finish for a while and hand the rest back.

        Raises InvalidRequest when the server refuses a workflow.
        """
        tracing.tracer("worker")
        async with Client(self._address) as client:
            beats = asyncio.create_task(self._beat(client))
            takes = [asyncio.create_task(self._take(client, each)) for each in self._workflows]
            stopped = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({stopped, *takes}, return_when=asyncio.FIRST_COMPLETED)
                self.stop()
                await asyncio.wait(takes, timeout=END_SECONDS)
                if self._running:
                    await asyncio.wait(self._running.values(), timeout=self._drain_seconds)
            finally:
                self.stop()
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
        async with Client(self._address) as client:
            while (outcome := await client.status(execution_id, wait_ms=STATUS_WAIT_MS)).status == "RUNNING":
                pass
        if outcome.status != "COMPLETED":
            raise NexumError(f"Execution {execution_id} is {outcome.status}: {outcome.error}")
        return outcome.outputs

    async def _take(self, client: Client, workflow: Any) -> None:
        """Take this workflow's tasks, and tell what came of them, on one stream after the other."""
        while not self._stop.is_set():
            reason = f"The Nexum server at {self._address} has stopped."
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
                outgoing.put(task_id, output_json)
        self._note_connection(True)
        answers = client.stream_tasks(
            self.worker_id, workflow, lease_ms=self._lease_ms, slots=self._concurrency, outgoing=outgoing
        )
        try:
            async with aclosing(answers):
                async for answer in answers:
                    if answer.has_task:
                        self._begin(answer.task_id, self._work(client, workflow, answer))
                    else:
                        self._note_answer(client, answer)
        finally:
            if self._streams.get(place) is outgoing:
                del self._streams[place]

    def _begin(self, task_id: str, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.create_task(work)
        self._running[task_id] = job
        job.add_done_callback(partial(self._finished, task_id))

    def _finished(self, task_id: str, _: asyncio.Task[None]) -> None:
        del self._running[task_id]
        self._told_to_stop.discard(task_id)
        self._reporting.discard(task_id)

    def _note_connection(self, connected: bool, reason: str = "") -> None:
        if connected == self._connected:
            return
        self._connected = connected
        if connected:
            log.info("Connected to Nexum at %s.", self._address)
        else:
            log.warning("%s Waiting for it.", reason)

    async def _beat(self, client: Client) -> None:
        """Be heard, keep the leases alive, and stop what the server wants stopped."""
        while True:
            await asyncio.sleep(self._lease_ms / HEARTBEATS_PER_LEASE / 1000)
            try:
                stops = await client.heartbeat(self.worker_id, [*self._running, *self._results])
            except NexumError:
                continue
            for task_id in (set(stops) & set(self._running)) - self._reporting:  # a result is told all the same
                self._told_to_stop.add(task_id)
                self._running[task_id].cancel()

    async def _hand_back(self, client: Client) -> None:
        """Stop what still runs; each tells the server, so that another worker can take it at once."""
        unfinished = list(self._running.values())
        for job in unfinished:
            job.cancel()
        for task_id, (_, output_json) in self._results.items():
            unfinished.append(asyncio.create_task(self._report(client.complete, task_id, output_json)))
        if unfinished:
            await asyncio.wait(unfinished, timeout=HAND_BACK_SECONDS)

    async def _work(self, client: Client, workflow: Any, claimed: Any) -> None:
        """Run one attempt and report how it ended."""
        task_id = claimed.task_id
        crash_point("task-claimed")
        try:
            async with self._slots:
                output_json = await self._run_handler(workflow, claimed)
        except asyncio.CancelledError:
            if task_id in self._told_to_stop:
                log.info("%s %s was stopped by the server.", claimed.execution_id, claimed.node_id)
            elif self._stop.is_set():
                with suppress(NexumError):
                    await client.fail(task_id, "Its worker was stopped.", interrupted=True)
            else:
                await self._report(client.fail, task_id, "CancelledError: the handler cancelled itself.")
        except TaskError as error:
            if error.unknown:
                log.warning("%s %s: %s", claimed.execution_id, claimed.node_id, error)
            await self._report(
                client.fail,
                task_id,
                str(error),
                retryable=error.retryable,
                unknown=error.unknown,
                begun=error.begun,
            )
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # also SystemExit, and the panics of libraries written in Rust
            log.debug("%s failed", task_id, exc_info=error)
            await self._report(client.fail, task_id, f"{type(error).__name__}: {error}")
        else:
            crash_point("effect-done")
            try:
                await self._deliver(client, workflow, task_id, output_json)
            except (LimitExceeded, InvalidRequest) as error:
                await self._not_recorded(client, task_id, str(error))

    async def _deliver(self, client: Client, workflow: Any, task_id: str, output_json: str) -> None:
        """Tell the server the result, by the stream if one is open: what is not acknowledged is told again."""
        client.check_size(output_json)
        if (outgoing := self._streams.get(id(workflow))) is not None:
            self._results[task_id] = workflow, output_json
            outgoing.put(task_id, output_json)
        elif self._stop.is_set():
            await self._report(client.complete, task_id, output_json)
        else:
            self._results[task_id] = workflow, output_json

    def _note_answer(self, client: Client, answer: Any) -> None:
        """What the server says of results: they are recorded, or changed nothing, or are refused by a status code."""
        if answer.node_type == grpc.StatusCode.UNAVAILABLE.name:
            asyncio.get_running_loop().call_later(self._poll_interval, self._tell_again, answer.task_id)
            return
        for task_id in answer.task_id.split():
            self._results.pop(task_id, None)
        if answer.node_type in (grpc.StatusCode.INVALID_ARGUMENT.name, grpc.StatusCode.RESOURCE_EXHAUSTED.name):
            self._begin(answer.task_id, self._not_recorded(client, answer.task_id, answer.input_json))
        elif answer.input_json:
            log.warning("%s", answer.input_json)

    def _tell_again(self, task_id: str) -> None:
        workflow, output_json = self._results.get(task_id, (None, ""))
        if (outgoing := self._streams.get(id(workflow))) is not None:
            outgoing.put(task_id, output_json)

    async def _not_recorded(self, client: Client, task_id: str, reason: str) -> None:
        """The effect has happened, and its result cannot be recorded."""
        log.warning("%s: %s", task_id, reason)
        await self._report(client.fail, task_id, reason, retryable=False, unknown=True)

    async def _report(self, send: Callable[..., Awaitable[str]], task_id: str, *args: Any, **kwargs: Any) -> None:
        """Tell the server, for as long as it takes: a result that was paid for is not thrown away."""
        self._reporting.add(task_id)
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

    async def _run_handler(self, workflow: Any, claimed: Any) -> str:
        """The output's JSON text. Raises what the handler raised."""
        node = workflow.get_node(claimed.node_id)
        if node is None or node.handler is None:
            error = f"This worker has no handler for node {claimed.node_id!r}."
            raise TaskError(error, retryable=False, begun=False)
        task_input = json.loads(claimed.input_json)
        outputs = {
            node_id: _as_model(workflow.get_node(node_id), output) for node_id, output in task_input["deps"].items()
        }
        context = ContextView(input_data=task_input["input"], outputs=outputs)
        span = tracing.span(
            "worker",
            "attempt",
            claimed.execution_id,
            parent=task_input.get(wire.TRACEPARENT, ""),
            workflow=workflow.workflow_id,
            node=node.id,
            attempt=wire.attempt_number(claimed.task_id),
            worker=self.worker_id,
        )
        with idempotent_by(claimed.idempotency_key), span as told, told.running():
            result = await self._within(task_input.get("timeout_ms"), node.handler, context)
            told.tell(outcome="completed")
        try:
            if node.output_model is not None:
                result = node.output_model.model_validate(result)
            return to_json(result, inf_nan_mode="null").decode()
        except ValueError as error:  # pydantic's errors are ValueErrors
            reason = f"Node {node.id!r} returned what cannot be recorded: {error}"
            raise TaskError(reason, retryable=False, unknown=True) from error

    async def _within(self, timeout_ms: int | None, handler: Callable[..., Any], context: ContextView) -> Any:
        """What the handler returns. Cancelled when its time is up, or when this is cancelled.

        A handler that takes no notice, as a sync one's thread cannot, is left to itself: nobody hears of its end.
        """
        job = asyncio.create_task(_ending(handler, context))
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.wait({job}, timeout=timeout_ms / 1000 if timeout_ms else None)
        except asyncio.CancelledError as stop:
            cancelled = stop
        if not (in_time := job.done()):
            job.cancel()
            await asyncio.wait({job}, timeout=CANCEL_SECONDS)
        if not job.done():
            self._left_alone.add(job)  # the event loop alone would not keep it alive
            job.add_done_callback(self._left_alone.discard)
        result, error = job.result() if job.done() else (None, asyncio.CancelledError())
        if error is None:  # also when it came a moment late
            return result
        if cancelled is not None:
            raise cancelled
        if not in_time:
            raise TaskError(f"It took longer than its {duration_text(timeout_ms or 0)}.", unknown=True)
        raise error


async def _ending(handler: Callable[..., Any], context: ContextView) -> tuple[Any, BaseException | None]:
    """What the handler returned, and what it raised: a task of its own must not raise SystemExit."""
    try:
        if inspect.iscoroutinefunction(handler):
            return await handler(context), None
        return await run_in_thread(lambda: handler(context)), None
    except BaseException as error:  # raised again by whoever awaits this
        return None, error


def _as_model(node: Any, output: Any) -> Any:
    """A dependency's output as the model it was made from; as plain JSON when it does not fit (any more)."""
    if node is not None and node.output_model is not None:
        with suppress(ValueError):
            return node.output_model.model_validate(output)
    return output


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a daemon thread: one that never ends cannot keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled meanwhile
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = context.run(function)
        except StopIteration:  # a future cannot carry it
            failure = RuntimeError("the handler raised StopIteration")
        except BaseException as error:  # handed to whoever awaits
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="nexum-handler", daemon=True).start()
    return await future
