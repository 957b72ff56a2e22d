"""Ctrl-C as one line and exit code 130, from the first moment on: a script imports this, and calls it, before all else.

KeyboardInterrupt would not do while a library is imported: it comes out as a traceback, or is lost. What has more to
stop than this process listens for itself, as `stop_requested` does.
"""

import os
import signal
from typing import Any

EXIT_CODE = 130
STDERR = 2

_line = "Interrupted."


def listen() -> None:
    signal.signal(signal.SIGINT, _end)


def says(line: str) -> None:
    """What Ctrl-C says from now on."""
    global _line
    _line = line


def _end(*_: Any) -> None:
    os.write(STDERR, f"\n{_line}\n".encode(errors="backslashreplace"))
    os._exit(EXIT_CODE)
