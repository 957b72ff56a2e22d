"""What goes out on streams: tasks and acknowledgements on that of a worker, answers on that of a client."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.server.methods.orders import task_fields
from nexum_runtime.server.model.shapes import Claimed
from nexum_runtime.server.rpc.traffic import UNREAD_MIB_LIMIT, Traffic, write
from nexum_runtime.text import MIB
from nexum_runtime.wire import batches

ACKNOWLEDGE_SECONDS = 0.05  # for so long acknowledgements are collected: a worker has no use for one at once


class Outbox:
    """What goes out on the stream of one worker, in the order in which it came; several at a time `in_batches`."""

    def __init__(self, in_batches: bool) -> None:
        self._in_batches = in_batches
        self._queue: deque[Claimed | Any] = deque()  # tasks, and PollResponses that acknowledge
        self.unread_chars = 0  # of the tasks that wait to be sent
        self._recorded: list[str] = []  # task ids that are acknowledged together, a moment later
        self._filled = asyncio.Event()

    def put_task(self, claimed: Claimed) -> None:
        self.unread_chars += len(claimed.input_json)
        self._put(claimed)

    def put_stop(self, task_id: str) -> None:
        self._put(pb.PollResponse(task_id=task_id, node_type=wire.STOP_TASK))

    def acknowledge(self, task_id: str, message: str) -> None:
        """The completion is committed, or `message` says why it changed nothing."""
        if message:
            self._put(pb.PollResponse(task_id=task_id, input_json=message))
            return
        self._recorded.append(task_id)
        if len(self._recorded) == 1:
            asyncio.get_running_loop().call_later(ACKNOWLEDGE_SECONDS, self._acknowledge_together)

    def refuse(self, task_id: str, code: str, message: str) -> None:
        """The completion is not recorded: a gRPC status code says how, and `message` why."""
        self._put(pb.PollResponse(task_id=task_id, node_type=code, input_json=message))

    def take_back(self) -> list[Claimed]:
        """The tasks that were not sent, and are not any more."""
        tasks = [each for each in self._queue if isinstance(each, Claimed)]
        self._queue = deque(each for each in self._queue if not isinstance(each, Claimed))
        return tasks

    async def send(self, context: Any, receiving: "asyncio.Task[None]", closing: asyncio.Event) -> None:
        """Send what there is, until the worker sends no more or the server stops.

        Raises whatever says first that the worker has gone, rather than ended.
        """
        ends = (receiving, asyncio.create_task(closing.wait()))
        for end in ends:
            end.add_done_callback(lambda _: self._filled.set())
        try:
            while not any(end.done() for end in ends):
                await self._filled.wait()
                self._filled.clear()
                while self._queue:
                    await write(context, self._next(self._queue))
                    self.unread_chars = sum(len(each.input_json) for each in self._queue)
            self._acknowledge_together()
            answers = deque(each for each in self._queue if not isinstance(each, Claimed))
            while answers:
                await write(context, self._next(answers))
            if self._in_batches:
                await write(context, b"")  # which fails if it has gone: gRPC may say first that it sends no more
        finally:
            ends[1].cancel()

    def _next(self, queue: deque[Claimed | Any]) -> bytes:
        if self._in_batches:
            return batches.pack(batches.take(queue, lambda what: [_message(what)]))
        return bytes(_message(queue.popleft()).SerializeToString())

    def _put(self, what: Any) -> None:
        self._queue.append(what)
        self._filled.set()

    def _acknowledge_together(self) -> None:
        if self._recorded:
            self._put(pb.PollResponse(task_id=" ".join(self._recorded)))
            self._recorded.clear()


@dataclass(eq=False)
class Answer:
    """To one call, by its number."""

    number: str
    messages: list[Any] = field(default_factory=list)


class Answers:
    """What goes out on the stream of one client: answers to its calls. What comes while one is written goes together in
    the next."""

    def __init__(self, context: Any, traffic: Traffic) -> None:
        self._context = context
        self._traffic = traffic
        self._queue: deque[Answer] = deque()
        self._bytes = 0  # of what is in there
        self._writing = asyncio.Lock()
        self._woken = asyncio.Event()
        self._written = asyncio.Event()

    async def answer(self, answer: Answer, metadata: dict[str, str], response: Any) -> None:
        """Return when it is on its way, or another one takes it along. Must not be cancelled."""
        self._add(answer, pb.PollResponse(task_id=answer.number, input_json=json.dumps(metadata)), response)
        if not self._writing.locked():
            await self._write()

    def put(self, answer: Answer, metadata: dict[str, str], response: Any) -> None:
        """To be sent in a moment."""
        self._add(answer, pb.PollResponse(task_id=answer.number, input_json=json.dumps(metadata)), response)
        self._woken.set()

    def refuse(self, number: str, code: str, details: str) -> None:
        header = pb.PollResponse(task_id=number, node_type=code, input_json=details)
        self._add(Answer(number), header, pb.StatusResponse())
        self._woken.set()

    async def has_room(self) -> None:
        """Return when the client has read so much of its answers that it may ask for more."""
        while self._bytes > UNREAD_MIB_LIMIT * MIB:
            self._written.clear()
            await self._written.wait()

    def _add(self, answer: Answer, *messages: Any) -> None:
        answer.messages += messages
        self._bytes += sum(message.ByteSize() for message in messages)
        self._queue.append(answer)

    def wake(self) -> None:
        self._woken.set()

    async def send(self, is_over: Callable[[], bool]) -> None:
        """Send what there is, until it is over; that is asked again whenever it was woken."""
        while not is_over():
            await self._woken.wait()
            self._woken.clear()
            await self._write()
        await self._write()

    def drop(self) -> None:
        """Nothing more leaves."""
        self._sent(self._queue)
        self._queue.clear()

    async def _write(self) -> None:
        async with self._writing:
            while self._queue:
                waiting = list(self._queue)
                messages = batches.take(self._queue, lambda answer: list(answer.messages))
                taken = waiting[: len(waiting) - len(self._queue)]
                try:
                    await write(self._context, batches.pack(messages))
                except Exception as error:  # which is gRPC's own where the client has gone, before the context says so
                    if not isinstance(error, grpc.aio.InternalError) and not self._context.done():
                        raise
                finally:
                    self._sent(taken)

    def _sent(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self._bytes -= sum(message.ByteSize() for message in answer.messages)
            self._traffic.sent(answer)
        self._written.set()


def _message(what: Any) -> Any:
    return pb.PollResponse(**task_fields(what)) if isinstance(what, Claimed) else what
