"""What a worker sends on its stream of tasks: the results of its attempts."""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime.wire import batches


class Outgoing:
    """The completions that a worker sends on its stream: what comes while one is written goes together in the next."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._call: Any = None  # as soon as it is open
        self._in_batches = False
        self._writing = asyncio.Lock()
        self._has_ended = asyncio.Event()

    def add(self, task_id: str, output_json: str) -> None:
        """To be sent with the next, or when the stream is open."""
        self._waiting.append(pb.CompleteRequest(task_id=task_id, output_json=output_json))

    async def send(self, task_id: str, output_json: str) -> None:
        """Return when it is on its way, or another call takes it along."""
        self.add(task_id, output_json)
        await self._write()

    def end(self) -> None:
        """Nothing more comes."""
        self._has_ended.set()

    async def run(self, call: Any, in_batches: bool) -> None:
        """Send by this call from now on, and end its stream when this has ended."""
        self._call, self._in_batches = call, in_batches
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._write()
            await self._has_ended.wait()
            async with self._writing:
                await self._write_all()
                await call.done_writing()

    async def _write(self) -> None:
        if self._call is not None and not self._writing.locked():
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # whoever reads the call is told why
                async with self._writing:
                    await self._write_all()

    async def _write_all(self) -> None:
        while self._waiting:
            await self._call.write(self._next())

    def _next(self) -> bytes:
        if not self._in_batches:
            return bytes(self._waiting.popleft().SerializeToString())
        return batches.pack(batches.take(self._waiting, lambda request: [request]))
