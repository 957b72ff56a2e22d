"""What has just been committed, for who watches: the last events, each with a number, so that one can go on from it.

A number is "{start}-{n}": of another start of the server, or too old, it says that something was missed. Then, and
every few seconds where other servers have the database as well, who watches is told to look at all of it again.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeAlias

from nexum_runtime.server.model.contract import session_of

KEPT_LIMIT = 2_000  # events
QUIET_SECONDS = 15.0  # without a word, and one is sent that says nothing: else proxies hang up
SHARED_SECONDS = 3.0  # between two looks at what other servers may have done
GATHER_SECONDS = 0.1  # events that come within this are told together

Told: TypeAlias = tuple[str, str, dict[str, Any]]  # its number, "event", "again", "hello" or "quiet", and data


class Feed:
    """Belongs to one event loop. `hear` is a store's `watch`."""

    def __init__(self, closing: asyncio.Event, is_shared: bool, before: Callable[[Any], None] | None) -> None:
        self._closing, self._is_shared, self._before = closing, is_shared, before
        self._start = secrets.token_hex(4)
        self._count = 0
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT_LIMIT)
        self._news = asyncio.Event()

    def hear(self, events: Sequence[tuple[Any, ...]]) -> None:
        for execution_id, at_ms, type, node_id, attempt, _ in events:
            self._count += 1
            told = {"type": type, "at_ms": at_ms, "node_id": node_id, "attempt": attempt}
            self._kept.append((self._count, {"execution_id": execution_id} | told))
        self._news.set()
        if self._before is not None:
            self._before(events)

    async def follow(self, session_id: str, last_id: str) -> AsyncGenerator[list[Told], None]:
        """What happens from now on, or since `last_id`, what came together in one list. "" is every session."""
        start, _, number = last_id.partition("-")
        position = self._count
        if last_id and start == self._start and number.isdecimal() and int(number) <= self._count:
            position = int(number)
            if self._kept and position < self._kept[0][0] - 1:
                position, last_id = self._count, "?"
        if last_id and position == self._count and last_id != self._id(position):
            yield [(self._id(position), "again", {})]
        else:
            yield [(self._id(position), "hello", {})]
        while not self._closing.is_set():
            news = [each for each in self._kept if each[0] > position]
            if news and news[0][0] > position + 1:  # it was too slow
                position = self._count
                yield [(self._id(position), "again", {})]
                continue
            position = news[-1][0] if news else position
            its = [each for each in news if not session_id or session_of(each[1]["execution_id"]) == session_id]
            if its:
                yield [(self._id(number), "event", event) for number, event in its]
            told = await self._wait(SHARED_SECONDS if self._is_shared else QUIET_SECONDS)
            if not told:
                yield [(self._id(position), "again" if self._is_shared else "quiet", {})]

    def _id(self, number: int) -> str:
        return f"{self._start}-{number}"

    async def _wait(self, seconds: float) -> bool:
        """Whether there is news, or the server ends."""
        self._news.clear()
        waiting = [asyncio.create_task(each.wait()) for each in (self._news, self._closing)]
        try:
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        if done:
            await asyncio.sleep(GATHER_SECONDS)
        return bool(done)
