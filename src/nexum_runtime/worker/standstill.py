"""An event loop that stands still, and a worker's other calls with it, since a handler blocks it.

It is everyone's mistake, and costs the other calls no more than the time that it takes: a thread of its own looks
whether the loop goes on. While it does not, the thread says that the worker lives, so that nobody takes its tasks for
lost, and what it is that blocks; the server gives new tasks to other workers meanwhile.

A handler that keeps Python's interpreter for itself, such as a regular expression that does not end, stops this thread
as well: then the leases end.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from nexum_runtime.client import Client
from nexum_runtime.errors import NexumError
from nexum_runtime.logs import Log
from nexum_runtime.text import duration_text

LOOK_SECONDS = 0.25  # between two looks
STANDSTILL_SECONDS = 1.0  # from then on, or from when a heartbeat is due, it is said, and the leases are kept
STANDSTILL_SECONDS_MAX = 60.0  # for so long they are; a loop that does not go on then has lost its calls to others
ADVICE = "Await what it waits for, or make it a sync function, which runs in a thread."

log = Log("nexum.worker")


class Standstill:
    """Watches the loop that runs, until `stop()`. `beat_seconds` is how often a worker speaks up.

    `named(task)` tells which call a task of the loop is of, or "".
    """

    def __init__(
        self,
        open_client: Callable[[], Client],
        worker_id: str,
        beat_seconds: float,
        named: Callable[["asyncio.Task[object] | None"], str],
    ) -> None:
        self._open_client, self._worker_id, self._beat_seconds, self._named = (
            open_client,
            worker_id,
            beat_seconds,
            named,
        )
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._goes_on = True
        self._seconds = 0.0  # of the standstill now, as the looks have it: a process that was paused has made none
        self._seconds_before = 0.0  # of those that are over
        threading.Thread(target=self._watch, name="nexum-standstill", daemon=True).start()

    @property
    def seconds(self) -> float:
        """For how long the loop stood still, all in all."""
        return self._seconds_before + self._seconds

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while self._looks():
            seconds = self._seconds
            is_long = seconds >= min(STANDSTILL_SECONDS, self._beat_seconds)
            if is_long and (where := self._where()) and not self._goes_on:  # or it does by now
                asyncio.run(self._speak_up(where, seconds))

    def _looks(self) -> bool:
        """Wait until the next look, and take it. Returns whether there is anything to look at."""
        self._goes_on = False
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._note)
            if not self._over.wait(LOOK_SECONDS):
                self._seconds += 0 if self._goes_on else LOOK_SECONDS
                return True
        return False  # the worker has ended, or its loop is closed

    def _note(self) -> None:
        self._goes_on = True
        self._seconds_before, self._seconds = self._seconds_before + self._seconds, 0.0

    async def _speak_up(self, where: str, seconds: float) -> None:
        """Say that the worker lives, and what it is busy with, until the loop goes on."""
        log.warning(
            "The event loop has stood still for %s in %s, and no other call of this worker goes on. %s",
            duration_text(round(seconds * 1000)),
            where,
            ADVICE,
        )
        async with self._open_client() as client:
            spoke = 0.0
            while not self._goes_on and self._seconds <= STANDSTILL_SECONDS_MAX:
                if not spoke or self._seconds - spoke >= self._beat_seconds:
                    spoke = self._seconds
                    with suppress(NexumError):
                        await client.heartbeat(self._worker_id, None, standstill=(round(spoke * 1000), where))
                if not self._looks():
                    return
            if self._goes_on:
                log.warning("The event loop goes on.")
                with suppress(NexumError):
                    await client.heartbeat(self._worker_id, None)
        while not self._goes_on and self._looks():
            pass

    def _where(self) -> str:
        """Which function blocks the loop, and for which call: "fetch (tools.py:12), of s1/fetch/…/0".

        "" when none does, and it is the machine that gives the loop no time.
        """
        frames: list[FrameType] = []
        frame = sys._current_frames().get(self._thread_id)
        while frame is not None and not _is_of(frame, "asyncio"):
            if not _is_of(frame, "nexum_") and not _is_of(frame, "selectors"):
                frames.append(frame)
            frame = frame.f_back
        if not frames:
            return ""
        call, code = self._named(asyncio.current_task(self._loop)), frames[-1].f_code
        where = f"{code.co_name} ({Path(code.co_filename).name}:{frames[-1].f_lineno})"
        return f"{where}, of {call}" if call else where


def _is_of(frame: FrameType, package: str) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(package)
