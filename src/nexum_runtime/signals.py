"""How a process is told to stop."""

import asyncio
import os
import signal
import threading
from typing import Any

# Environment: the process that started us, to stop as soon as it is gone; "1" for the parent of now.
EXIT_WITH_PARENT = "NEXUM_EXIT_WITH_PARENT"
PARENT_CHECK_SECONDS = 0.5


async def stop_requested() -> int:
    """Wait for SIGTERM or Ctrl-C, or with NEXUM_EXIT_WITH_PARENT set for the parent's death. Returns the signal or 0.

    A second signal ends the process at once. Cancelled, it leaves the handlers of these signals as they were.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def set_handlers(handlers: dict[signal.Signals, Any]) -> None:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # else it was set by something that is not Python
                signal.signal(number, handler)

    def on_signal(number: int) -> None:
        set_handlers(dict.fromkeys(before, signal.SIG_DFL))
        if not stop.done():
            stop.set_result(number)

    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    told = os.environ.get(EXIT_WITH_PARENT, "")
    parent = int(told) if told.isdecimal() and int(told) > 1 else os.getppid()
    look_seconds = PARENT_CHECK_SECONDS if told else None
    try:
        while not stop.done() and (look_seconds is None or os.getppid() == parent):
            await asyncio.wait({stop}, timeout=look_seconds)
    except asyncio.CancelledError:
        if not stop.done():
            set_handlers(before)
        raise
    return stop.result() if stop.done() else 0


def end_at_next_ctrl_c() -> bool:
    """After Ctrl-C has cancelled `asyncio.run`, which waits for its threads: let the next one end the process at once.

    Otherwise that one, too, would wait for the threads. Returns False, and changes nothing, if there was no Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)  # what runs `asyncio.run`, if it is its
    if not getattr(runner, "_interrupt_count", 0) or threading.current_thread() is not threading.main_thread():
        return False
    loop = asyncio.get_running_loop()

    def end(*_: Any) -> None:
        has_waited = loop.is_closed()
        signal.signal(signal.SIGINT, signal.default_int_handler if has_waited else signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, end)
    return True
