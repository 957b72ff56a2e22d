"""Who watches a session is told in a thread of its own, so that a slow watcher holds up no run.

A quick one is waited for: what it prints then stands in its place among what the program prints. A session waits for
its watcher for `HELD_SECONDS` in all. Then its events queue up, and the run goes on.
"""

import atexit
import copy
import os
import threading
import time
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from weakref import WeakSet

from nexum_agents.events import CallEvent, DurableEvent, OnEvent
from nexum_runtime.logs import Log

QUICK_SECONDS = 0.005  # what a watcher may take for an event without being called slow
HELD_SECONDS = 0.25  # that a session waits for a slow one in all
LOOK_SECONDS = 0.02  # between two looks whether it has become slow
IDLE_SECONDS = 5.0  # without an event, after which the thread ends
EXIT_SECONDS = 2.0  # that the end of the process waits for events that are still to be heard
MAX_WAITING = 10_000  # events that are kept for a slow one; the ones after them are lost
LOOP_HINT = (
    " (on_event is called in a thread of its own; asyncio.run_coroutine_threadsafe reaches your loop from there)"
)

log = Log("nexum_agents")


@dataclass(slots=True)
class _Told:
    event: DurableEvent
    context: Context = field(default_factory=copy_context)
    heard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.heard.acquire()

    def is_heard(self, seconds: float) -> bool:
        """Waits for it, for at most so long."""
        if is_heard := self.heard.acquire(timeout=seconds):
            self.heard.release()
        return is_heard


class Watcher:
    """Calls `on_event` with one event after another, in the context in which each was told."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._seconds_left = HELD_SECONDS
        self._has_failed = self._has_lost = False
        self._ends: BaseException | None = None  # SystemExit, say, which ends the run as it would anywhere
        self._begin()
        _watchers.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._events: SimpleQueue[_Told] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: int | None = None
        self._last: _Told | None = None
        self._hears_since = 0.0  # the event that it hears now

    def tell(self, event: DurableEvent) -> None:
        """Raises only what `on_event` raised that is no Exception."""
        if self._pid != os.getpid():  # a fork has none of its parent's threads
            self._begin()
        if isinstance(event, CallEvent):  # theirs, to change as they like: what is executed stays as it is
            event = replace(event, tool_args=copy.deepcopy(event.tool_args))
        if self._events.qsize() >= MAX_WAITING:
            if not self._has_lost:
                self._has_lost = True
                log.warning("on_event has %d events still to hear, and loses those that come now.", MAX_WAITING)
            return
        told = self._last = _Told(event)
        with self._starting:
            self._events.put(told)
            if self._thread is None:
                thread = threading.Thread(target=self._hear, name="nexum-on-event", daemon=True)
                thread.start()
                self._thread = thread.ident
        if self._thread != threading.get_ident():  # else `on_event` runs something of the session itself
            self._wait(told)

    def _wait(self, told: _Told) -> None:
        while self._seconds_left > 0 and not told.is_heard(LOOK_SECONDS):
            if self._hears_since and time.monotonic() - self._hears_since > self._seconds_left:
                self._seconds_left = 0.0
                log.warning("on_event is slow: the run no longer waits for it, and its events come late.")
        if self._ends is not None:
            ends, self._ends = self._ends, None
            raise ends

    def _hear(self) -> None:
        while (told := self._next()) is not None:
            self._hears_since = began = time.monotonic()
            try:
                told.context.run(self._on_event, told.event)
            except Exception as error:
                if not self._has_failed:
                    self._has_failed = True
                    hint = LOOP_HINT if isinstance(error, RuntimeError) and "event loop" in str(error) else ""
                    log.warning("on_event raised, which changes nothing for the run: %s%s", error, hint, exc_info=error)
            except BaseException as error:
                self._ends = error
            self._hears_since = 0.0
            if (took := time.monotonic() - began) > QUICK_SECONDS:
                self._seconds_left -= took
            told.heard.release()

    def _next(self) -> _Told | None:
        """None after a while without any; then the thread ends."""
        with suppress(Empty):
            return self._events.get(timeout=IDLE_SECONDS)
        with self._starting:
            if self._events.empty():
                self._thread = None
                return None
        return self._events.get()

    def hear_all(self, until: float) -> None:
        """Wait until all is heard, or until that time by `time.monotonic`."""
        if self._pid == os.getpid() and self._last is not None:
            self._last.is_heard(max(until - time.monotonic(), 0))


_watchers: WeakSet[Watcher] = WeakSet()


@atexit.register
def _let_all_hear() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for watcher in list(_watchers):
        watcher.hear_all(until)
