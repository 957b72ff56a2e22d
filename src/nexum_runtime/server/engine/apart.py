"""Heavy work in a process of its own: to parse or compare what is legal, and large.

Python's parsers of JSON let nobody else run, whatever the thread, and one of 16 MiB may take two seconds and half a
gigabyte. So what has more than HEAVY_CHARS is parsed by another process, one at a time, which is ended when it takes
too much.

As a program, this is that process: it answers each pickled call on stdin by its pickled result, or what it raised, on
stdout.
"""

import asyncio
import gc
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, TypeVar

from nexum_runtime.errors import LimitExceeded

T = TypeVar("T")

APART_SECONDS = 60.0  # for one call
APART_MIB = 2_048  # of memory for the process
ENDS_SECONDS = 5.0  # for a process to have ended that says no more
KEPT_MIB = 256  # a process that has grown larger than this is not kept


class Apart:
    """Runs functions in a process that is begun when it is first needed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nexum-apart")
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def run(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """What `function(*args)` returns or raises; a function of a module, whose arguments can be pickled.

        Raises LimitExceeded when it takes more time or memory than it may, of which `what` is the name, and
        MemoryError when the system has no more.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, what, function, args)

    def close(self) -> None:
        """End it. A call that is under way fails."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
            self._thread.submit(self._end)
        self._thread.shutdown()

    def _run(self, what: str, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        try:
            process = self._process = self._process or _start()
        except OSError as refused:
            raise MemoryError from refused
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(APART_SECONDS, give_up)
        timer.start()
        try:
            pickle.dump((function, args), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            result, error, is_full = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_SECONDS)
            is_killed = process.returncode == -signal.SIGKILL
            self._end()
            if is_killed and not is_late.is_set() and not self._closed:
                raise MemoryError from None  # the system, which has no more, ended it
            raise LimitExceeded(
                f"{what} takes more than {APART_SECONDS:g} s or {APART_MIB:,} MiB of memory to check; make it smaller."
            ) from None
        finally:
            timer.cancel()
        if is_full:
            self._end()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(APART_MIB), str(KEPT_MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the server
    )


def _serve(calls: IO[bytes], results: IO[bytes], memory_mib: int, kept_mib: int) -> None:
    with suppress(ValueError, OSError):  # of a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 1024**2, resource.getrlimit(resource.RLIMIT_AS)[1]))
    gc.disable()  # JSON has no cycles, and to look for some while it is parsed takes as long again
    while True:
        try:
            function, args = pickle.load(calls)
        except EOFError:
            return
        result, error = None, None
        try:
            result = function(*args)
        except MemoryError:
            return
        except Exception as raised:
            error = raised
        unit_bytes = 1 if sys.platform == "darwin" else 1024
        is_full = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes > kept_mib * 1024**2
        pickle.dump((result, error, is_full), results, pickle.HIGHEST_PROTOCOL)
        results.flush()
        del function, args, result, error
        gc.collect()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]), int(sys.argv[2]))
