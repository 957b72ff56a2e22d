"""Those who wait for something to happen, and are woken when it may have."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from nexum_runtime.server.rules.snapshots import Snapshot

T = TypeVar("T")


class Waiter(asyncio.Event):
    """Set when there is something to see; `ended` is what, when that is the end of an execution."""

    ended: Snapshot | None = None

    async def next(
        self, closing: asyncio.Event, look: Callable[[], Coroutine[Any, Any, T | None]], wait_ms: int
    ) -> T | None:
        """What `look()` finds, asked whenever there is something to see, but not beyond `wait_ms` or `closing`."""
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        while not closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):  # wait_for may lose a cancellation that comes with the wake
                    await self.wait()
            if not self.is_set():
                return None
            self.clear()  # before looking, so that nothing that happens from here on is missed
            if (found := await look()) is not None:
                return found
        return None


class Waiters(defaultdict[str, set[Waiter]]):
    """Who waits, by what each waits for."""

    def __init__(self) -> None:
        super().__init__(set)

    @contextmanager
    def waiter(self, key: str) -> Iterator[Waiter]:
        """Woken from now on whenever `key` is."""
        woken = Waiter()
        self[key].add(woken)
        try:
            yield woken
        finally:
            self[key].discard(woken)
            if not self[key]:
                del self[key]

    def wake(self, key: str, ended: Snapshot | None = None) -> None:
        for woken in self.get(key, ()):
            woken.ended = ended
            woken.set()

    def count(self) -> int:
        return sum(map(len, self.values()))
