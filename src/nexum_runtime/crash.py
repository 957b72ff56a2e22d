"""Points at which a process can be made to die, for the tests that pull plugs.

`NEXUM_CRASH_AT=name` makes the process that comes to the point of that name kill itself with SIGKILL, as if its plug
had been pulled; `name:3` lets it pass twice before.
"""

import os
import signal

_armed, _, _nth = os.environ.get("NEXUM_CRASH_AT", "").partition(":")
_passes_left = int(_nth or 1)


def crash_point(name: str) -> None:
    global _passes_left
    if name == _armed:
        _passes_left -= 1
        if _passes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
