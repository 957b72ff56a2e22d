"""A way that is found anew when the engine at its end has gone."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from nexum_runtime.client.outgoing import Outgoing
from nexum_runtime.client.way import RPC_SECONDS, Claim, Fields, Metadata, Told, Way
from nexum_runtime.errors import ServerUnavailable

LISTENS_SECONDS = 2.0  # that a server gets to answer, at one try
SEARCH_SECONDS = 30.0  # how long what can be asked again is asked, when the engine's process has gone in the middle
AGAIN = {"RegisterWorkflow", "GetStatus", "ListSessions", "ListExecutions", "Executions", "Inspect", "Definition"}


class Changing(ABC):
    """A `Way` that leads to what `_find` finds."""

    def __init__(self) -> None:
        self._way: Way | None = None
        self._finding = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _find(self) -> Way:
        """Raises ServerUnavailable."""

    @abstractmethod
    def _may_help(self, error: ServerUnavailable) -> bool:
        """Whether to look for another way."""

    async def close(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing)
        if self._way is not None:
            way, self._way = self._way, None
            await way.close()

    async def ask(
        self, method: str, fields: Fields, metadata: Metadata, seconds: float = RPC_SECONDS
    ) -> tuple[Any, Told]:
        until = monotonic() + (SEARCH_SECONDS if method in AGAIN else 0)
        while True:
            way = await self._found()
            try:
                return await way.ask(method, fields, metadata, seconds)
            except ServerUnavailable as error:
                if not self._leave(way, error) or monotonic() > until:
                    raise

    async def stream(
        self,
        method: str,
        fields: Fields,
        metadata: Metadata,
        patience: float | None,
        tell: Callable[[Told], None] | None = None,
    ) -> AsyncIterator[Any]:
        until, had = monotonic() + SEARCH_SECONDS, 0
        while True:
            way, number = await self._found(), 0
            try:
                async for answer in way.stream(method, fields, metadata, patience, tell):
                    number += 1
                    if number > had or method != "History":  # which is in the order of time: the same as before
                        had = number
                        yield answer
                return
            except ServerUnavailable as error:
                # Who follows goes on from where it has come to, and asks for that itself.
                if not self._leave(way, error) or monotonic() > until or method == "Follow":
                    raise

    async def find(self, fields: Fields, metadata: Metadata, seconds: float) -> tuple[Any, Told, Claim | None]:
        way = await self._found()
        try:
            return await way.find(fields, metadata, seconds)
        except ServerUnavailable as error:
            self._leave(way, error)
            raise

    async def complete(self, task_id: str, output_json: str, labels_json: str) -> str:
        way = await self._found()
        try:
            return await way.complete(task_id, output_json, labels_json)
        except ServerUnavailable as error:
            self._leave(way, error)
            raise

    async def stream_tasks(self, metadata: Metadata, outgoing: Outgoing) -> AsyncGenerator[Any, None]:
        way = await self._found()
        try:
            async for answer in way.stream_tasks(metadata, outgoing):
                yield answer
        except ServerUnavailable as error:
            self._leave(way, error)
            raise

    def _leave(self, way: Way, error: ServerUnavailable) -> bool:
        """Look for another way from now on, if that may help; returns whether it may."""
        if not self._may_help(error):
            return False
        if way is self._way:
            self._way = None
            closing = asyncio.create_task(way.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return True

    async def _found(self) -> Way:
        if self._way is None:
            async with self._finding:
                if self._way is None:
                    self._way = await self._find()
        return self._way


async def listens(host: str, port: int) -> bool:
    """Whether somebody does, at this moment."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LISTENS_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False
