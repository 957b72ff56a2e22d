"""The engine in this process, in a thread and on an event loop of its own.

So it goes on while a tool blocks the loop of whoever uses it, and several loops share it. There is one for each
database; it ends with the interpreter.
"""

import asyncio
import atexit
import ctypes
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from contextvars import Context, copy_context
from functools import cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, Generic, TypeVar

from nexum_runtime.errors import ForkedWhileConnected, NexumError, ServerUnavailable
from nexum_runtime.logs import Log
from nexum_runtime.server.door import Door
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.store.sqlite import SqliteStore

T = TypeVar("T")

LEFT_SECONDS = 5.0  # for so long a process that has handed its database over does not take it again
KEEP_SECONDS = 5.0  # between two renewals of the leases of this process
LOOK_AGAIN_SECONDS = 1.0  # … and between two looks, of who only reads, whether somebody has the database
END_SECONDS = 2.0  # what the engine gets at the end of the interpreter: its last commit, and to tidy up

log = Log("nexum.engine")

_hosts: dict[Path, "Host"] = {}  # by the real paths of their databases
_left: dict[Path, float] = {}  # those that were left to a server, and when
_lock = threading.Lock()
_inherited: list["Host"] = []  # in a process that was forked: the parent's


class Crossing:
    """Calls from the event loop that runs here to one of another thread: those of one turn of the loop go together.

    To wake another thread costs both of them the interpreter, more than most calls take.
    """

    def __init__(self, there: asyncio.AbstractEventLoop) -> None:
        self._there = there
        self._here = asyncio.get_running_loop()
        self._waiting: list[tuple[Context, Callable[..., object], tuple[Any, ...]]] = []

    def call(self, function: Callable[..., object], *args: Any) -> None:
        if not self._waiting:
            self._here.call_soon(self._send)
        self._waiting.append((copy_context(), function, args))

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        call_soon(self._there, _run_each, waiting)


def _run_each(calls: list[tuple[Context, Callable[..., object], tuple[Any, ...]]]) -> None:
    for context, function, args in calls:
        try:
            context.run(function, *args)
        except Exception:  # the others are not its
            log.exception("A call between two event loops failed.")


class _Begun(Generic[T]):
    """What the engine's loop does for somebody: see `Host.begin`."""

    def __init__(
        self,
        host: "Host",
        start: "Callable[[], asyncio.Future[T]]",
        ended: "Callable[[asyncio.Future[T] | None], None]",
    ) -> None:
        self._host, self._start, self._ended = host, start, ended
        self._job: asyncio.Future[T] | None = None
        self._is_left = False

    def begin(self) -> None:
        if self._is_left:
            return
        if self._host.is_leaving:
            self._ended(None)
            return
        self._job = self._start()
        self._host.jobs.add(self._job)
        self._job.add_done_callback(self._over)

    def _over(self, job: "asyncio.Future[T]") -> None:
        self._job = None  # its frames refer to who may leave, and so to here
        self._host.jobs.discard(job)
        if not self._is_left:
            self._ended(job)
        elif not job.cancelled():
            job.exception()  # it is nobody's

    def leave(self) -> None:
        call_soon(self._host.loop, self._leave)

    def _leave(self) -> None:
        self._is_left = True
        if self._job is not None:
            self._job.cancel()


class Present:
    """Who executes a task in this process: here, for the engine, until it leaves, which also keeps its lease.

    But for `is_over` it belongs to the engine's loop. `lost` is called when this process leaves the database.
    """

    def __init__(self, host: "Host", owner: str, lost: Callable[[], None]) -> None:
        self.is_over = False
        self._host, self._owner, self._lost = host, owner, lost
        self._while_here = ExitStack()
        self.task_id = ""

    def begin(self, task_id: str, claiming: "asyncio.Future[Any]", stop: Callable[[str], None]) -> None:
        engine, self.task_id = self._host.engine, task_id
        self._while_here.enter_context(engine.here(self._owner, task_id, claiming))
        self._while_here.enter_context(engine.telling_to_stop(task_id, stop))
        self._host.present.add(self)
        if self.is_over:
            self.leave()

    async def beat(self) -> None:
        with suppress(NexumError, StoreUnavailable):
            await self._host.engine.heartbeat(self._owner, [self.task_id])

    def leave(self) -> None:
        self.is_over = True
        self._host.present.discard(self)
        self._while_here.close()

    def lose(self) -> None:
        self.leave()
        self._lost()


class Host:
    """Of the database at `path`, from its `ready` on: a future that has the error if it cannot be opened."""

    def __init__(self, path: Path, is_had: "Callable[[], Awaitable[object]] | None" = None) -> None:
        """With `is_had` it only reads, until that says that somebody has the database, who knows more."""
        self.path = path
        self._is_had, reads_only = is_had, is_had is not None
        self.ready: Future[None] = Future()
        self.is_leaving = False
        self._reads_only = reads_only
        self.jobs: set[asyncio.Future[Any]] = set()  # for those who call
        self.present: set[Present] = set()
        self._thread = threading.Thread(target=self._run, name="nexum-engine", daemon=True)
        self._thread.start()

    async def opened(self) -> None:
        """Wait until it is `ready`; whoever is cancelled meanwhile cancels it for nobody else."""
        await asyncio.shield(asyncio.wrap_future(self.ready))

    def begin(
        self,
        start: "Callable[[], asyncio.Future[T]]",
        ended: "Callable[[asyncio.Future[T] | None], None]",
        there: Crossing,
    ) -> Callable[[], None]:
        """Have the engine's loop `start` this. `ended` is told there of what came of it, or of None if it never began.

        Returns what cancels it; then `ended` is told nothing.
        """
        if self.loop.is_closed():
            raise self.has_left()
        begun = _Begun(self, start, ended)
        there.call(begun.begin)
        return begun.leave

    def has_left(self) -> ServerUnavailable:
        return ServerUnavailable(f"This process has left the database {self.path} to another one.")

    def close(self) -> None:
        """What was recorded is synced; the rest is left as a crash would leave it."""
        if self.ready.done() and self.ready.exception() is None:
            call_soon(self.loop, self._closing.set)
        self._thread.join(END_SECONDS)

    def hand_over(self) -> None:
        """Leave the database to a server that starts. Called on the engine's loop, by one of its callers."""
        self.loop.call_soon(self._closing.set)
        self._hands_over = True

    def forget(self) -> None:
        """In a process that was forked."""
        if self.ready.done() and self.ready.exception() is None and not self._reads_only:
            self._door.forget()
            self.store.forget()

    def _run(self) -> None:
        with suppress(Exception):  # it is told by `ready`
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._hands_over = False
        try:
            self.store = SqliteStore(self.path, reads_only=self._reads_only)
            try:
                await self._begin()
            except BaseException:  # or this process would keep the database from itself
                await self.store.close()
                raise
        except BaseException as error:
            self.ready.set_exception(error)
            raise
        own = [self._until_it_is_had()] if self._reads_only else [self.engine.run_sweeper(), self._keep_leases()]
        running = [asyncio.create_task(each) for each in own]
        self.ready.set_result(None)
        await self._closing.wait()
        self.is_leaving = True
        if self._hands_over:
            _left[self.path] = monotonic()
            _hosts.pop(self.path, None)
            log.info("The database %s is handed over to a server that starts.", self.path)
        for each in running:
            each.cancel()
        if not self._reads_only:
            await self.engine.close()
            if self._hands_over:
                await self.engine.hand_over()
            await self._door.close()
        for present in list(self.present):
            present.lose()
        for job in self.jobs:
            job.cancel()
        if self.jobs:
            await asyncio.wait(self.jobs, timeout=END_SECONDS)
        self.engine.end()
        await self.store.close()

    async def _until_it_is_had(self) -> None:
        assert self._is_had is not None, "it only reads"
        while not await self._is_had():
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        self._closing.set()

    async def _keep_leases(self) -> None:
        """Of all who are here, for as long as this process does not leave."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await asyncio.gather(*(present.beat() for present in self.present))
            except Exception:  # or no lease would be kept from now on
                log.exception("The leases of this process could not be renewed. The next try follows.")

    async def _begin(self) -> None:
        self.engine = Engine(self.store)
        self.methods = Methods(self.engine, self.hand_over)
        if not self._reads_only:
            await self.engine.take_over()
            self._door = Door(self.store.path, self.methods, self.store.tell_where)
            await self._door.open()


def running(path: Path) -> Host | None:
    """The host of this database, if this process has it."""
    return _hosts.get(path)


def is_left(path: Path) -> bool:
    """Whether this database is for a server that is about to have it."""
    return monotonic() - _left.get(path, -LEFT_SECONDS) < LEFT_SECONDS


async def opened(path: Path) -> Host:
    """The host of this database, in this process from now on.

    Raises StoreUnavailable, StoreInUse if another process has it, and ForkedWhileConnected.
    """
    if _inherited:  # SQLite may have been at work in the parent's thread, and would never end here
        raise ForkedWhileConnected(
            "This process was forked from one that ran the Nexum engine itself and has gone, and cannot run it. Start "
            'it with the "spawn" method of multiprocessing, or fork it before the first call to Nexum.'
        )
    with _lock:
        host = _hosts.get(path)
        if host is None:
            _close_at_the_end()
            host = _hosts[path] = Host(path)
            host.ready.add_done_callback(partial(_opened, host))
    await host.opened()
    return host


async def looking_at(path: Path, is_had: Callable[[], Awaitable[object]]) -> Host:
    """A host that only reads this database, until somebody has it. Raises StoreUnavailable."""
    host = Host(path, is_had)
    await host.opened()
    return host


def _opened(host: Host, ready: "Future[None]") -> None:
    if ready.exception() is not None:
        _hosts.pop(host.path, None)
    else:
        log.info("Nexum runs in this process, with the database %s.", host.path)


def close_all() -> None:
    """At the end of the interpreter."""
    while _hosts:
        _hosts.popitem()[1].close()


@cache
def _close_at_the_end() -> None:
    # Before the executors of the standard library end, which the store's last words need, if Python lets us say so.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(close_all)


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for host in _hosts.values():
        host.forget()
    if _hosts:
        _inherited.extend(_hosts.values())
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_inherited))  # never freed: SQLite would tidy up the parent's files
        _hosts.clear()


def call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """On a loop of another thread, unless that has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
