"""What is left of gRPC in a forked process: nothing that works, if gRPC was at work.

A forked process has one thread, the one that forked. The threads of gRPC are gone, perhaps with a lock that they held,
and its connections are the parent's: whatever the child writes to them, be it to tidy up, breaks them. So a child that
was forked while gRPC was at work must not use it, and must not let go of what it has inherited. A child that was forked
before the first use, or after the last client was closed, starts gRPC anew.
"""

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

from nexum_runtime.errors import ForkedWhileConnected

POLLER = "_poll_wrapper"  # the Python thread of grpc.aio, which runs from the first client or server to the last
GRPC_THREADS = {"event_engine", "lifeguard", "grpc_global_tim", "grpc_shutdown"}  # the others, as Linux names them
ENDING_SECONDS = 2.0  # what they get to end after the last client was closed; it takes them some 5 ms
LOOK_SECONDS = 0.001
TASKS = Path("/proc/self/task")  # the threads of this process, on Linux


class _State:
    def __init__(self) -> None:
        self.clients: WeakSet[Any] = WeakSet()  # all that hold objects of gRPC
        self.open: WeakSet[Any] = WeakSet()  # those of them that were not closed
        self.used = False  # since its threads were last seen to be gone
        self.strangers: set[int] = set()  # threads that are neither Python's nor gRPC's
        self.at_work = False  # gRPC, at the last fork
        self.unusable = False  # in this process, a child


_state = _State()


def is_unusable() -> bool:
    """Whether gRPC must not be touched in this process."""
    return _state.unusable


def check() -> None:
    """Raise ForkedWhileConnected where gRPC must not be touched."""
    if _state.unusable:
        raise ForkedWhileConnected(
            "This process was forked from one that had an open connection to Nexum, and cannot have one of its own. "
            'Start it with the "spawn" method of multiprocessing, or fork it before the first call to Nexum.'
        )


def begin() -> None:
    """gRPC is about to be used. Raises ForkedWhileConnected."""
    check()
    if not _state.used:
        _state.used = True
        _state.strangers = {number for number, name in _threads().items() if name not in GRPC_THREADS}


def opened(client: Any) -> None:
    """`client` holds objects of gRPC from now on, and is at work until it was `closed`."""
    _state.clients.add(client)
    _state.open.add(client)


def closed(client: Any) -> None:
    _state.open.discard(client)


def _before() -> None:
    _state.at_work = _is_at_work()
    _state.used = bool(_state.open)  # else whatever is at work now is not ours: it will not end


def _in_child() -> None:
    if _state.at_work and not _state.unusable:
        _state.unusable = True
        inherited = list(_state.clients)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))  # never freed, not even at the interpreter's end


def _is_at_work() -> bool:
    """Whether gRPC has threads, once those had time to end that are about to."""
    if not TASKS.exists():
        return _state.used or _polls()
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        threads = _threads()
        _state.strangers &= threads.keys()  # a number may be used again
        unknown = {number: name for number, name in threads.items() if number not in _state.strangers}
        is_at_work = _polls() or not GRPC_THREADS.isdisjoint(unknown.values())
        if not unknown and not is_at_work:
            return False
        if _state.open or not _state.used:
            return is_at_work
        if time.monotonic() > deadline:  # a thread of gRPC's that has just begun would have its name by now
            if not is_at_work:
                _state.strangers |= unknown.keys()
            return is_at_work
        time.sleep(LOOK_SECONDS)


def _polls() -> bool:
    return any(POLLER in thread.name for thread in threading.enumerate())


def _threads() -> dict[int, str]:
    """The names of the threads that are not Python's, by their numbers."""
    if not TASKS.exists():
        return {}
    numbers: set[int] = set()
    while len(numbers) != _count():  # Linux leaves some out when others end while it lists them
        numbers = {int(task.name) for task in TASKS.iterdir()}
    numbers -= {thread.native_id for thread in threading.enumerate()}
    return {number: _name(number) for number in numbers}


def _count() -> int:
    """… of all threads."""
    status = (TASKS.parent / "status").read_text(errors="replace")
    return int(status.partition("\nThreads:")[2].split()[0])


def _name(number: int) -> str:
    try:
        return (TASKS / str(number) / "comm").read_text(errors="replace").strip()
    except OSError:  # it is ending, and may have begun another one
        return ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
