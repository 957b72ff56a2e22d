"""What goes out on the stream of one worker: tasks, and acknowledgements of what it has sent."""

import asyncio
from collections import deque
from typing import Any

from nexum.proto import nexum_pb2 as pb

from nexum_runtime.idempotency import key_of
from nexum_runtime.server.lifecycle import Claimed

ACKNOWLEDGE_SECONDS = 0.05  # for so long acknowledgements are collected: a worker has no use for one at once


class Outbox:
    """What goes out on the stream of one worker, in the order in which it came."""

    def __init__(self) -> None:
        self._queue: deque[Claimed | Any] = deque()  # tasks, and PollResponses that acknowledge
        self._recorded: list[str] = []  # task ids that are acknowledged together, a moment later
        self._filled = asyncio.Event()

    def put_task(self, claimed: Claimed) -> None:
        self._put(claimed)

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
        """Send what there is, until the worker sends no more or the server stops."""
        ends = (receiving, asyncio.create_task(closing.wait()))
        for end in ends:
            end.add_done_callback(lambda _: self._filled.set())
        try:
            while not any(end.done() for end in ends):
                await self._filled.wait()
                self._filled.clear()
                while self._queue:
                    await context.write(_outgoing(self._queue.popleft()))
            self._acknowledge_together()
            for each in [each for each in self._queue if not isinstance(each, Claimed)]:
                await context.write(each)
        finally:
            ends[1].cancel()

    def _put(self, what: Any) -> None:
        self._queue.append(what)
        self._filled.set()

    def _acknowledge_together(self) -> None:
        if self._recorded:
            self._put(pb.PollResponse(task_id=" ".join(self._recorded)))
            self._recorded.clear()


def _outgoing(what: Any) -> Any:
    return task_response(what) if isinstance(what, Claimed) else what


def task_response(claimed: Claimed) -> Any:
    task = claimed.task
    return pb.PollResponse(
        has_task=True,
        task_id=task.task_id,
        execution_id=task.execution_id,
        node_id=task.node_id,
        node_type=task.node_type,
        input_json=claimed.input_json,
        idempotency_key=key_of(task.execution_id, task.node_id, task.version_hash),
    )
