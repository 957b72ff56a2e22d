"""Whether a server can do its work now, which is to record what it is told.

Anyone may ask, as often as they like: what that costs is bounded, and nobody waits long for a database that is silent.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nexum_runtime.server.engine.jobs import Jobs
from nexum_runtime.server.model.contract import StoreUnavailable

KEPT_SECONDS = 1.0  # that an answer is good for
PATIENCE_SECONDS = 2.0  # with the database; one that takes longer is taken for one that does not answer


class Readiness:
    """`touch` records something. One such write is under way at a time, and begins a second after the last one."""

    def __init__(self, touch: Callable[[], Awaitable[None]], jobs: Jobs, closing: asyncio.Event) -> None:
        self._touch, self._jobs, self._closing = touch, jobs, closing
        self._tried: asyncio.Task[bool] | None = None
        self._tried_at = 0.0

    async def is_ready(self) -> bool:
        if self._closing.is_set():
            return False
        if self._tried is None or (self._tried.done() and time.monotonic() - self._tried_at > KEPT_SECONDS):
            self._tried_at = time.monotonic()
            self._tried = self._jobs.spawn(self._try())
        tried, left = self._tried, self._tried_at + PATIENCE_SECONDS - time.monotonic()
        if not tried.done():
            await asyncio.wait([tried], timeout=max(left, 0))
        return tried.done() and tried.result() and not self._closing.is_set()

    async def _try(self) -> bool:
        try:
            await self._touch()
        except StoreUnavailable:
            return False
        return True
