"""The way to the engine in this process: no gRPC, no messages, only calls from one thread to another."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from nexum_runtime import wire
from nexum_runtime.client.outgoing import Completion, Outgoing
from nexum_runtime.client.way import RPC_SECONDS, Claim, Fields, Metadata, Told
from nexum_runtime.engines.host import Crossing, Host, Present, call_soon
from nexum_runtime.errors import DatabaseUnavailable, InvalidRequest, LimitExceeded
from nexum_runtime.server.methods.methods import Call, Request
from nexum_runtime.server.methods.orders import (
    lease_ms,
    start_order,
    status_fields,
    task_fields,
    told_of,
    traced,
    whole_number,
)
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.model.shapes import Claimed, Started
from nexum_runtime.server.rules.snapshots import Snapshot

T = TypeVar("T")

NOTHING = {
    "has_task": False,
    "task_id": "",
    "execution_id": "",
    "node_id": "",
    "node_type": "",
    "input_json": "",
    "idempotency_key": "",
    "is_map_subtask": False,
}  # what a PollResponse has that says nothing


class Embedded:
    """A `Way` to `host`, for the event loop that runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.where = f"this process ({host.path})"
        self._here = asyncio.get_running_loop()
        self._there = Crossing(host.loop)
        self._back: Crossing | None = None  # of the engine's loop
        self._present: dict[str, Present] = {}  # by the tasks that are executed here

    async def close(self) -> None:
        """The engine goes on: others may use it."""

    async def ask(
        self, method: str, fields: Fields, metadata: Metadata, seconds: float = RPC_SECONDS
    ) -> tuple[Any, Told]:
        call = Call(dict(metadata))
        request = Request(**fields)

        async def answer() -> dict[str, Any]:
            return dict(await getattr(self.host.methods, method)(request, call))

        told = await self._call(answer)
        return _response(told), dict(call.trailing)

    async def stream(
        self,
        method: str,
        fields: Fields,
        metadata: Metadata,
        patience: float | None,
        tell: Callable[[Told], None] | None = None,
    ) -> AsyncIterator[Any]:
        call = Call(dict(metadata))

        async def answer(put: Callable[[Any], None]) -> None:
            async with aclosing(getattr(self.host.methods, method)(Request(**fields), call)) as answers:
                async for told in answers:
                    put(told)

        async with aclosing(self._items(answer)) as items:
            async for told in items:
                if tell is not None:
                    tell(dict(call.leading))
                    tell = None
                yield _response(told)
        if tell is not None:
            tell(dict(call.leading))

    async def find(self, fields: Fields, metadata: Metadata, seconds: float) -> tuple[Any, Told, Claim | None]:
        metadata = dict(metadata)
        if wire.CLAIM in metadata:
            metadata[wire.CLAIM] = wire.EMBEDDED_WORKER + metadata[wire.CLAIM].removeprefix(wire.LOCAL_WORKER)
        order = start_order(Request(**fields), metadata)
        wait_ms = whole_number(metadata, wire.WAIT_MS, wire.WAIT_MS_LIMIT, 0, wire.WAIT_MS_LIMIT)
        if order.claim:
            return await self._claim(order, wait_ms)

        async def execute() -> tuple[Started, Snapshot]:
            with traced("Execute", order) as (span, traced_order):
                started, snapshot = await self.host.engine.execute(traced_order, wait_ms)
                span.tell(before=started.before, outcome=snapshot.execution.status)
            return started, snapshot

        started, snapshot = await self._call(execute)
        return _response(status_fields(snapshot)), dict(told_of(started, snapshot)), None

    async def _claim(self, order: Any, wait_ms: int) -> tuple[Any, Told, Claim | None]:
        """Execute here: from its claim on the engine keeps the lease, for as long as this process does not leave."""
        lost: asyncio.Future[None] = self._here.create_future()
        present = Present(self.host, order.claim, lambda: self._tell(_fulfil, lost, None))

        async def execute() -> tuple[Started, Snapshot]:
            with traced("Execute", order) as (span, traced_order):
                started, snapshot, claiming = await self.host.engine.claim_here(traced_order, wait_ms)
                span.tell(before=started.before, outcome=snapshot.execution.status)
            if started.claimed is not None:
                stop = partial(self._tell, _fulfil, claim.stopped)
                present.begin(started.claimed.task.task_id, claiming, stop)
            return started, snapshot

        def leave() -> None:
            self._present.pop(present.task_id, None)
            if not present.is_over:
                call_soon(self.host.loop, present.leave)

        claim = Claim(leave, lost, is_kept=True)
        try:
            started, snapshot = await self._call(execute)
        except BaseException:
            leave()
            raise
        told = dict(told_of(started, snapshot))
        if started.claimed is None:
            return _response(status_fields(snapshot)), told, None
        self._present[started.claimed.task.task_id] = present
        return _response(status_fields(snapshot)), told, claim

    async def complete(self, task_id: str, output_json: str, labels_json: str) -> str:
        present = self._present.get(task_id)

        def record() -> asyncio.Future[str]:
            recording = self.host.engine.record(task_id, output_json, labels_json)
            if present is not None:
                recording.add_done_callback(partial(_recorded, present))
            return recording

        return await self._begin(record)

    async def stream_tasks(self, metadata: Metadata, outgoing: Outgoing) -> AsyncGenerator[Any, None]:
        metadata, engine = dict(metadata), self.host.engine
        version_hash = metadata[wire.VERSION_HASH]
        slots = whole_number(metadata, wire.SLOTS, 1, 1, wire.SLOTS_LIMIT)
        has_ended = asyncio.Event()  # of the engine's loop: nothing more is sent
        under_way: set[asyncio.Future[str]] = set()
        sent: list[asyncio.Task[None]] = []

        async def serve(put: Callable[[Any], None]) -> None:
            def push(claimed: Claimed) -> None:
                put(task_fields(claimed))

            def stop(task_id: str) -> None:
                put({"task_id": task_id, "node_type": wire.STOP_TASK})

            def record(task_id: str, output_json: str) -> None:
                recording = engine.record(task_id, output_json)
                under_way.add(recording)
                recording.add_done_callback(under_way.discard)
                recording.add_done_callback(lambda _: put(_acknowledgement(task_id, recording)))

            named = metadata.get(wire.WORKFLOW_ID)
            workflow_ids = [named] if named else await engine.workflow_ids(version_hash)
            worker_id = metadata[wire.WORKER_ID]
            stream = await engine.open_stream(
                worker_id, version_hash, workflow_ids, lease_ms(metadata), slots, push, stop
            )
            put(record)
            try:
                await _first(has_ended, engine.closing)
                await engine.close_stream(stream, [])
                if under_way:
                    await asyncio.wait(under_way)
            finally:
                if not stream.closed:
                    await engine.close_stream(stream, [])

        async def send(record: Callable[[str, str], None]) -> None:
            async def send_all(waiting: deque[Completion]) -> None:
                while waiting:
                    self._there.call(record, *waiting.popleft())

            async def end() -> None:
                self._there.call(has_ended.set)

            await outgoing.run(send_all, end)

        try:
            async with aclosing(self._items(serve)) as items:
                async for told in items:
                    if callable(told):
                        sent.append(asyncio.create_task(send(told)))
                    else:
                        yield _response(NOTHING | told)
        finally:
            for task in sent:
                task.cancel()

    async def _items(
        self, serve: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]
    ) -> AsyncGenerator[Any, None]:
        """What `serve`, run by the engine's loop, puts, until it returns."""
        arrived: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

        def put(item: Any) -> None:
            self._tell(arrived.put_nowait, (item,))

        serving = asyncio.create_task(self._call(lambda: serve(put)))
        serving.add_done_callback(lambda _: arrived.put_nowait(()))  # after all that it has put
        try:
            while item := await arrived.get():
                yield item[0]
            await serving
        finally:
            serving.cancel()

    async def _call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine returns, run by the engine's loop."""
        return await self._begin(lambda: self.host.loop.create_task(make()))

    async def _begin(self, start: "Callable[[], asyncio.Future[T]]") -> T:
        """What comes of that which the engine's loop starts."""
        outcome: asyncio.Future[T] = self._here.create_future()
        leave = self.host.begin(start, lambda ended: self._tell(self._settle, outcome, ended), self._there)
        try:
            return await outcome
        except asyncio.CancelledError:
            leave()
            raise
        except StoreUnavailable as error:
            raise DatabaseUnavailable(str(error)) from None

    def _tell(self, function: Callable[..., object], *args: Any) -> None:
        """Call something here, from the engine's loop."""
        if self._back is None:
            self._back = Crossing(self._here)
        self._back.call(function, *args)

    def _settle(self, outcome: "asyncio.Future[T]", ended: "asyncio.Future[T] | None") -> None:
        if outcome.done():
            if ended is not None and not ended.cancelled():
                ended.exception()  # it is nobody's
        elif ended is None or ended.cancelled():
            outcome.set_exception(self.host.has_left())
        elif (error := ended.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(ended.result())


def _acknowledgement(task_id: str, recording: "asyncio.Future[str]") -> dict[str, Any]:
    """As a worker's stream has it: see `Outbox`."""
    if recording.cancelled():
        return {"task_id": task_id, "node_type": wire.UNAVAILABLE}
    error = recording.exception()
    if error is None:
        return {"task_id": task_id, "input_json": recording.result()}
    codes: dict[type[BaseException], str] = {
        StoreUnavailable: wire.UNAVAILABLE,
        InvalidRequest: wire.INVALID_ARGUMENT,
        LimitExceeded: wire.RESOURCE_EXHAUSTED,
    }
    code = codes.get(type(error), "UNKNOWN")
    return {"task_id": task_id, "node_type": code, "input_json": str(error)}


async def _first(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _response(value: Any) -> Any:
    """As messages have it: fields are attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _response(each) for name, each in value.items()})
    return [_response(each) for each in value] if isinstance(value, list) else value


def _fulfil(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _recorded(present: Present, recording: "asyncio.Future[str]") -> None:
    """Nothing is left to do for who has executed it."""
    if not recording.cancelled() and recording.exception() is None:
        present.leave()
