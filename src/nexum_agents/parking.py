"""A run of a worker that waits holds nothing: after a minute it is given back until what it waits for has come.

What a run waits for says so (`waiting`), and what is under way does (`busy`). When nothing is, but for waits and what
they are part of, the run's task is cancelled, as when its worker stops. A worker that takes it up replays it to there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from nexum_runtime import Parked
from nexum_runtime.wire import PARK_LIMIT

T = TypeVar("T")

PARK_SECONDS = 60.0  # of nothing but waits, after which a run is parked


@dataclass(frozen=True, eq=False)
class _Busy:
    """Something that is under way."""

    may_be_cut: bool  # when it does nothing but wait: it is begun anew


@dataclass(frozen=True, eq=False)
class _Wait:
    execution_id: str  # that it ends; or "", and it is until a time
    ends_at: float  # in seconds since 1970
    part_of: tuple[_Busy, ...]


class _Parking:
    """Of one run."""

    def __init__(self) -> None:
        self.cut: asyncio.Task[object] | None = None  # what is cancelled to park it
        self.parked: Parked | None = None  # once it is
        self._waits: set[_Wait] = set()
        self._busy: set[_Busy] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def noted(self, what: _Wait | _Busy) -> Iterator[None]:
        self._note(what, begins=True)
        try:
            yield
        finally:
            self._note(what, begins=False)

    def _note(self, what: _Wait | _Busy, *, begins: bool) -> None:
        if isinstance(what, _Wait):
            (self._waits.add if begins else self._waits.discard)(what)
        else:
            (self._busy.add if begins else self._busy.discard)(what)
        may_be = self._may_be_parked()
        if may_be and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PARK_SECONDS, self._park)
        elif not may_be:
            self.stop()

    def _may_be_parked(self) -> bool:
        waiting = {each for wait in self._waits for each in wait.part_of}
        return 0 < len(self._waits) <= PARK_LIMIT and all(each.may_be_cut and each in waiting for each in self._busy)

    def _park(self) -> None:
        assert self.cut is not None, "it runs"
        self._timer = None
        ends = [each.ends_at for each in self._waits if not each.execution_id]
        ms = max(0, round((min(ends) - time.time()) * 1000)) if ends else None
        self.parked = Parked([each.execution_id for each in self._waits if each.execution_id], ms)
        self.cut.cancel()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_parking: ContextVar[_Parking | None] = ContextVar("_parking", default=None)
_part_of: ContextVar[tuple[_Busy, ...]] = ContextVar("_part_of", default=())


@contextmanager
def waiting(execution_id: str = "", *, ends_at: float = 0) -> Iterator[None]:
    """A block that only waits until this execution of the session has ended, or until that time."""
    parking = _parking.get()
    if parking is None:
        yield
        return
    with parking.noted(_Wait(execution_id, ends_at, _part_of.get())):
        yield


@contextmanager
def busy(*, may_be_cut: bool = False) -> Iterator[None]:
    """A block in which a call is under way, or a turn."""
    parking = _parking.get()
    if parking is None:
        yield
        return
    what = _Busy(may_be_cut)
    if not may_be_cut:  # what it waits for makes no difference
        with parking.noted(what):
            yield
        return
    token = _part_of.set((*_part_of.get(), what))
    try:
        with parking.noted(what):
            yield
    finally:
        _part_of.reset(token)


async def parkable(run: Callable[[], Awaitable[T]]) -> T:
    """What `run` returns. Raises Parked when it does nothing but wait for too long, and what it raises."""
    parking = _Parking()

    async def cut() -> T:
        _parking.set(parking)
        return await run()

    parking.cut = running = asyncio.create_task(cut())
    try:
        return await running
    except BaseException:
        own = asyncio.current_task()
        if parking.parked is None or (own is not None and own.cancelling()):  # its worker stops it
            raise
        raise parking.parked from None
    finally:
        parking.stop()
