"""How a process of this project is told to stop."""

import asyncio
import os
import signal
from contextlib import suppress

EXIT_WITH_PARENT = "NEXUM_EXIT_WITH_PARENT"  # environment: set to stop as soon as the process that started us is gone
PARENT_CHECK_SECONDS = 0.5


async def stop_requested() -> None:
    """Wait for SIGTERM or Ctrl-C, or with NEXUM_EXIT_WITH_PARENT set for the parent's death.

    A second signal ends the process at once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if not os.environ.get(EXIT_WITH_PARENT):
        await stop.wait()
        return
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PARENT_CHECK_SECONDS)
