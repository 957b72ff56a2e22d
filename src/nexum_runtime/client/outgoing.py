"""What a worker sends on its stream of tasks: the results of its attempts."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

Completion: TypeAlias = tuple[str, str]  # the id of a task, and its output's JSON text


class StreamEnded(Exception):
    """What is written goes nowhere. Whoever reads the stream is told why."""


class Outgoing:
    """The completions that a worker sends on its stream: what comes while some are sent goes together in the next."""

    def __init__(self) -> None:
        self._waiting: deque[Completion] = deque()
        self._send: Callable[[deque[Completion]], Awaitable[None]] | None = None  # as soon as the stream is open
        self._writing = asyncio.Lock()
        self._has_ended = asyncio.Event()

    def add(self, task_id: str, output_json: str) -> None:
        """To be sent with the next, or when the stream is open."""
        self._waiting.append((task_id, output_json))

    async def send(self, task_id: str, output_json: str) -> None:
        """Return when it is on its way, or another call takes it along."""
        self.add(task_id, output_json)
        if self._send is not None and not self._writing.locked():
            await self._write(self._send)

    def end(self) -> None:
        """Nothing more comes."""
        self._has_ended.set()

    async def run(
        self, send: Callable[[deque[Completion]], Awaitable[None]], end: Callable[[], Awaitable[None]]
    ) -> None:
        """Have them sent from now on, by `send`, which takes some from the left, and `end` when this has ended."""
        self._send = send
        await self._write(send)
        await self._has_ended.wait()
        await self._write(send)
        with suppress(StreamEnded):
            await end()

    async def _write(self, send: Callable[[deque[Completion]], Awaitable[None]]) -> None:
        with suppress(StreamEnded):
            async with self._writing:
                while self._waiting:
                    await send(self._waiting)
