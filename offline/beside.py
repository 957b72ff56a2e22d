"""A worker beside the demo, as a child process: for a first run in one command.

It stops when the block ends, and by itself should this process be killed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nexum_runtime import NexumError
from nexum_runtime.signals import EXIT_WITH_PARENT

STOP_SECONDS = 15.0


@contextmanager
def worker_beside(folder: Path, *flags: str) -> Iterator[Callable[[], bool]]:
    """worker.py, which finds the same engine as we do; its log is in `folder`. Raises NexumError.

    Yields what tells whether it runs. If it has not connected when the block ends, it has no work, and is killed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = (folder / "worker.log").open("wb")
    except OSError as error:
        raise NexumError(f"Cannot write the worker's log in {folder.absolute()}: {error.strerror}.") from None
    with log:
        worker = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "worker.py"), *flags],
            env=os.environ | {EXIT_WITH_PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; we tell it
        )

        try:
            yield lambda: worker.poll() is None
        finally:
            has_work = b"Connected to Nexum" in Path(log.name).read_bytes()
            worker.send_signal(signal.SIGTERM if has_work else signal.SIGKILL)
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
