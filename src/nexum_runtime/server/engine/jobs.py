"""Work that is finished even if whoever asked for it has gone, and who is told what came of it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from nexum_runtime.errors import NexumError
from nexum_runtime.logs import Log
from nexum_runtime.server.model.shapes import Claimed

T = TypeVar("T")

log = Log("nexum.engine")


class Jobs(set[asyncio.Future[Any]]):
    """What is under way."""

    def spawn(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(job)
        self.keep(task)  # the event loop alone would not keep it alive
        return task

    def keep(self, job: asyncio.Future[Any]) -> None:
        self.add(job)
        job.add_done_callback(self.discard)


def tell(told: "asyncio.Future[T]", result: T, _: Claimed) -> None:
    if not told.done():
        told.set_result(result)


def pass_on(told: "asyncio.Future[T]", job: "asyncio.Future[T]") -> None:
    """What has come of the job, to who was told nothing before and still waits."""
    error = None if job.cancelled() else job.exception()
    if told.done():
        return
    if job.cancelled():
        told.cancel()
    elif error is not None:
        told.set_exception(error)
    else:
        told.set_result(job.result())


def for_nobody(job: "asyncio.Future[Any]") -> None:
    """The caller has left: a refusal is of no use to anybody, any other error belongs in the log."""
    error = None if job.cancelled() else job.exception()
    if error is not None and not isinstance(error, NexumError):
        log.error("%s: %s", type(error).__name__, error)
