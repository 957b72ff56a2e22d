"""What those call that execute tasks: a worker's stream of tasks and completions, its heartbeats, and mere presence."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.logs import Log
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.engine.streams import Stream
from nexum_runtime.server.methods.orders import lease_ms, whole_number
from nexum_runtime.server.rpc.messages import (
    CODES,
    TOLD,
    Context,
    Unreadable,
    abort,
    check_memory,
    details,
    metadata_of,
    reader,
)
from nexum_runtime.server.rpc.outbox import Outbox
from nexum_runtime.server.rpc.peers import Recording, Registrations, Waiting
from nexum_runtime.wire import batches

log = Log("nexum.service")


class WorkerCalls:
    """The methods of `nexum.NexumExtensions` that take tasks, and keep them."""

    def __init__(self, engine: Engine, waiting: Waiting, registrations: Registrations) -> None:
        self._engine = engine
        self._waiting = waiting
        self._registrations = registrations

    async def StreamTasks(self, requests: AsyncIterator[Any], context: Context) -> None:
        """A worker's one long call: tasks go out as they become ready, completions come in and are acknowledged.

        A worker that sends no more is given nothing new; the call ends when what it has sent is committed.
        """
        try:
            metadata = metadata_of(context)
            slots = whole_number(metadata, wire.SLOTS, 1, 1, wire.SLOTS_LIMIT)
            version_hash, named = metadata.get(wire.VERSION_HASH, ""), metadata.get(wire.WORKFLOW_ID)
            workflow_ids = [named] if named else await self._registrations.served(context.peer(), version_hash)
            in_batches = metadata.get(wire.BATCHES) == "true"
            with self._waiting.place(context.peer(), pb.EmptyRequest()):
                await context.send_initial_metadata(((wire.BATCHES, str(in_batches).lower()),))
                outbox = Outbox(in_batches)
                stream = await self._engine.open_stream(
                    metadata.get(wire.WORKER_ID, ""),
                    version_hash,
                    workflow_ids,
                    lease_ms(metadata),
                    slots,
                    outbox.put_task,
                    outbox.put_stop if metadata.get(wire.HEARS_STOPS) == "true" else None,
                    lambda: outbox.unread_chars,
                )
                completions = _completions(requests, in_batches)
                receiving = asyncio.create_task(self._receive(completions, stream, outbox))
                try:
                    await outbox.send(context, receiving, self._engine.closing)
                except BaseException:  # its connection has ended, and it had not said that it ends
                    self._engine.note_break(stream)
                    raise
                finally:
                    receiving.cancel()
                    await self._engine.close_stream(stream, outbox.take_back())
                check_memory(receiving)
        except TOLD as error:
            await abort(context, error)

    async def _receive(self, completions: AsyncIterator[Any], stream: Stream, outbox: Outbox) -> None:
        """Record the completions that a worker sends, many at a time, and end its stream when it sends no more."""
        under_way = Recording()
        async for completion in completions:
            if isinstance(completion, Unreadable):  # whose it is cannot be told
                if completion.lacks_memory:
                    raise MemoryError
                outbox.refuse("", grpc.StatusCode.INVALID_ARGUMENT.name, completion.reason)
                continue
            recording = self._engine.record(completion.task_id, completion.output_json)
            recording.add_done_callback(partial(_answer_completion, outbox, completion.task_id))
            await under_way.add(recording, completion.ByteSize())
        await self._engine.close_stream(stream, outbox.take_back())
        await under_way.done()


async def _completions(requests: AsyncIterator[bytes], in_batches: bool) -> AsyncIterator[Any]:
    read = reader(pb.CompleteRequest)
    async for data in requests:
        try:
            completions = batches.unpack([pb.CompleteRequest], data) if in_batches else [read(data)]
        except ValueError as error:
            completions = [Unreadable(f"The request is no batch of CompleteRequests: {error}.")]
        for completion in completions:
            yield completion


def _answer_completion(outbox: Outbox, task_id: str, recording: "asyncio.Future[str]") -> None:
    if recording.cancelled():  # the server stops
        return
    error = recording.exception()
    if error is None:
        crash_point("completion-committed")
        outbox.acknowledge(task_id, recording.result())
    elif isinstance(error, TOLD):
        outbox.refuse(task_id, CODES[type(error)].name, details(error))
    else:
        log.error("%s: %s", task_id, error, exc_info=error)
