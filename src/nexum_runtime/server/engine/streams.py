"""The workers that wait at their streams: who can take a task at once.

Only what is in memory: which slots are free, and which task has which. What a task is, and whose, is in the store.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

from nexum_runtime.server.model.shapes import Claimed, Taker

Work: TypeAlias = tuple[str, str]  # workflow id, version hash


UNREAD_CHARS_LIMIT = 64 * 1024**2  # of tasks that one worker was sent and has not read: it is given no more


@dataclass(eq=False)
class Pool:
    """The slots of one worker."""

    free: int
    held: set[str] = field(default_factory=set)  # task ids: each has a slot
    streams: "list[Stream]" = field(default_factory=list)  # those that are open
    filling: bool = False  # tasks are about to be claimed for it
    silent: bool = False  # it has lost a lease and not been heard since: what it is given it would lose as well

    @property
    def has_room(self) -> bool:
        return self.free > 0 and self.reads

    @property
    def reads(self) -> bool:
        """It is heard of, and has read most of what it was sent."""
        return not self.silent and sum(each.unread() for each in self.streams) < UNREAD_CHARS_LIMIT


@dataclass(eq=False)
class Stream:
    """One worker's long call. `push` sends it a task, and `stop` that one is to stop, if it hears that."""

    taker: Taker
    works: Sequence[Work]
    pool: Pool
    push: Callable[[Claimed], None]
    stop: Callable[[str], None] | None = None
    unread: Callable[[], int] = lambda: 0  # how many characters of what was pushed have not been sent
    while_open: ExitStack = field(default_factory=ExitStack)
    closed: bool = False


class Streams:
    """All streams that are open."""

    def __init__(self) -> None:
        self._open: list[Stream] = []
        self._pools: dict[str, Pool] = {}  # by worker id
        self._holders: dict[str, Pool] = {}  # by task id

    def pools(self) -> list[Pool]:
        return list(self._pools.values())

    def held(self) -> dict[str, set[str]]:
        """The tasks that have slots, by worker."""
        return {worker_id: set(pool.held) for worker_id, pool in self._pools.items() if pool.held}

    def pool(self, worker_id: str, slots: int) -> Pool:
        """What this worker's streams share."""
        return self._pools.get(worker_id) or Pool(slots)

    def is_open(self, worker_id: str) -> bool:
        return worker_id in self._pools

    def open(self, stream: Stream, held: Sequence[str]) -> None:
        """`held` are the tasks that its worker has from before."""
        # The newest first: whoever has come back has lost an older one, which may not be known here yet.
        self._open.insert(0, stream)
        stream.pool.streams.insert(0, stream)
        stream.pool.silent = False
        self._pools[stream.taker.worker_id] = stream.pool
        for task_id in held:
            if task_id not in stream.pool.held:
                stream.pool.free -= 1
                self._hold(stream.pool, task_id)

    def close(self, stream: Stream) -> None:
        stream.closed = True
        self._open.remove(stream)
        pool = stream.pool
        pool.streams.remove(stream)
        if not pool.streams:
            del self._pools[stream.taker.worker_id]
            for task_id in pool.held:
                del self._holders[task_id]

    def reserve(self, work: Work) -> Stream | None:
        """Take a slot for a task of this work, of the worker that has most of them."""
        able = [stream for stream in self._open if work in stream.works and stream.pool.has_room]
        if not able:
            return None
        stream = max(able, key=lambda each: each.pool.free)
        stream.pool.free -= 1
        return stream

    def give(self, stream: Stream, claimed: Claimed) -> bool:
        """Send a task into a slot that was reserved; False when its stream was closed meanwhile."""
        if stream.closed:
            stream.pool.free += 1
            return False
        self._hold(stream.pool, claimed.task.task_id)
        stream.push(claimed)
        return True

    def stop(self, task_id: str) -> None:
        """Tell whoever has this task that it is to stop; one that does not hear it is told by its next heartbeat."""
        pool = self._holders.get(task_id)
        for stream in pool.streams if pool else ():
            if stream.stop is not None:
                stream.stop(task_id)
                return

    def release(self, task_id: str) -> bool:
        """Its slot is free, if it had one."""
        pool = self._holders.pop(task_id, None)
        if pool is None:
            return False
        pool.held.discard(task_id)
        pool.free += 1
        return True

    def silence(self, worker_id: str) -> None:
        """It has lost a lease: let others have the tasks until it is heard."""
        if worker_id in self._pools:
            self._pools[worker_id].silent = True

    def hear(self, worker_id: str) -> bool:
        """It is there. Returns whether that was in doubt."""
        pool = self._pools.get(worker_id)
        if pool is None or not pool.silent:
            return False
        pool.silent = False
        return True

    def _hold(self, pool: Pool, task_id: str) -> None:
        pool.held.add(task_id)
        self._holders[task_id] = pool
