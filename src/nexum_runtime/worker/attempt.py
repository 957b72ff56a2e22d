"""One attempt at a task in this process: its handler is run, within its time, and how that ended is told."""

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from nexum_runtime import tracing, wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import TaskError
from nexum_runtime.idempotency import idempotent_by
from nexum_runtime.logs import about_attempt
from nexum_runtime.text import duration_text

T = TypeVar("T")

CANCEL_SECONDS = 1.0  # what a cancelled handler gets to clean up


class Attempt:
    """Runs as soon as it is made, when one of the `slots` is free.

    `tell(attempt, output_json, error)` is awaited once: with the result's JSON text and None, or with "" and what was
    raised. `over` is done when it has returned. `stood_still()` is for how many seconds the event loop has, so far.
    """

    def __init__(
        self,
        workflow: Any,
        claimed: Any,
        worker_id: str,
        slots: asyncio.Semaphore,
        tell: Callable[["Attempt", str, BaseException | None], Awaitable[None]],
        stood_still: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.workflow, self.claimed, self.task_id = workflow, claimed, claimed.task_id
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker_id = worker_id
        self._slots = slots
        self._tell = tell
        self._stood_still = stood_still
        self._has_ended = False  # what becomes of the handler from here on is of no interest
        self._why: BaseException | None = None  # it was cancelled
        self._job = asyncio.create_task(self._run())
        self._later: asyncio.Task[None] | None = None

    def cancel(self, why: BaseException) -> None:
        """Cancel the handler, unless it has ended. Unless it returns all the same, `why` is what it is told to have
        raised.

        A handler that takes no notice, as a sync one's thread cannot, is left to itself: nobody hears of its end.
        """
        if not self._has_ended and self._why is None:
            self._why = why
            self._job.cancel()
            asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._leave_alone)

    def is_in(self, task: "asyncio.Task[Any] | None") -> bool:
        """Whether this is the task that executes it."""
        return task is self._job

    def abandon(self) -> None:
        """Nor is it told any more how it ended."""
        self._has_ended = True
        for job in (self._job, self._later):
            if job is not None:
                job.cancel()

    async def _run(self) -> None:
        crash_point("task-claimed")
        output_json, error = "", None
        try:
            async with self._slots:
                output_json = await self._handled()
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as raised:  # also SystemExit, and the panics of libraries written in Rust
            error = raised if self._why is None else self._why
        if self._job.cancelling():  # one that the handler left behind would hit the stream that it is told by
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        if not self._has_ended:
            await self._end(output_json, error)

    def _leave_alone(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._later = asyncio.create_task(self._end("", self._why))

    async def _end(self, output_json: str, error: BaseException | None) -> None:
        self._has_ended = True
        try:
            with about_attempt(self.claimed.execution_id, wire.attempt_number(self.task_id)):
                await self._tell(self, output_json, error)
        finally:
            if not self.over.done():
                self.over.set_result(None)

    async def _handled(self) -> str:
        """The output's JSON text. Raises what the handler raised."""
        claimed, workflow = self.claimed, self.workflow
        node = workflow.get_node(claimed.node_id)
        is_item = claimed.is_map_subtask
        handler = getattr(node, "each" if is_item else "handler", None)
        if node is None or handler is None:
            error = f"This worker has no handler for node {claimed.node_id!r}."
            raise TaskError(error, retryable=False, begun=False)
        task_input = json.loads(claimed.input_json)
        outputs = {
            node_id: _as_model(workflow.get_node(node_id), output) for node_id, output in task_input["deps"].items()
        }
        from nexum.context import ContextView  # which brings gRPC along, and few processes work

        context = ContextView(input_data=task_input["input"], outputs=outputs)
        span = tracing.span(
            "worker",
            "attempt",
            claimed.execution_id,
            parent=task_input.get(wire.TRACEPARENT, ""),
            workflow=workflow.workflow_id,
            node=node.id,
            attempt=wire.attempt_number(claimed.task_id),
            worker=self._worker_id,
        )
        attempt = about_attempt(claimed.execution_id, wire.attempt_number(claimed.task_id))
        with idempotent_by(claimed.idempotency_key), attempt, span as told, told.running():
            given = (context, json.loads(claimed.map_item_json)) if is_item else (context,)
            result = await self._within(task_input.get("timeout_ms"), handler, *given)
            told.tell(outcome="completed")
        try:
            model = node.result_model if is_item else node.output_model
            if model is not None:
                result = model.model_validate(result)
            return _json_of(result)
        except ValueError as error:  # pydantic's errors are ValueErrors
            reason = f"Node {node.id!r} returned what cannot be recorded: {error}"
            raise TaskError(reason, retryable=False, unknown=True) from error

    async def _within(self, timeout_ms: int | None, handler: Callable[..., Any], *given: Any) -> Any:
        """What the handler returns, also when that comes a moment late.

        The time that another handler took from all of them, when it blocked the event loop, is not counted.
        """
        timer, granted = None, self._stood_still()

        def over() -> None:
            nonlocal timer, granted
            before, granted = granted, self._stood_still()
            if granted > before:
                timer = asyncio.get_running_loop().call_later(granted - before, over)
            else:
                self.cancel(TaskError(f"It took longer than its {duration_text(timeout_ms or 0)}.", unknown=True))

        if timeout_ms:
            timer = asyncio.get_running_loop().call_later(timeout_ms / 1000, over)
        try:
            if inspect.iscoroutinefunction(handler):
                return await handler(*given)
            return await run_in_thread(lambda: handler(*given))
        finally:
            if timer is not None:
                timer.cancel()


def _json_of(result: Any) -> str:
    """Raises ValueError for what has no JSON."""
    try:
        return to_json(result, inf_nan_mode="null").decode()
    except PydanticSerializationError:  # half a surrogate pair, say, which JSON can spell
        return wire.json_text(to_jsonable_python(result, inf_nan_mode="null"))


def _as_model(node: Any, output: Any) -> Any:
    """A dependency's output as the model it was made from; as plain JSON when it does not fit (any more)."""
    model = getattr(node, "result_model", None) or getattr(node, "output_model", None)
    if model is not None:
        with suppress(ValueError):
            is_map = node.type == "MAP"
            return [model.model_validate(each) for each in output] if is_map else model.model_validate(output)
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
