"""What a client tells of an execution: what it waits for, and how that came out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from nexum_runtime.logs import Log

Waiting = Literal["server", "database", "worker", "approval", "result"]
"""What a call waits for: a server that answers, or can write again, a worker that takes its task, a person's yes, or
the end of it."""

OnWait = Callable[[Waiting], None]

log = Log("nexum.client")


class Watcher:
    """Tells whoever watches what a call waits for. What goes wrong there is logged once, and is nobody's result."""

    def __init__(self, on_wait: OnWait | None) -> None:
        self._on_wait, self._has_failed = on_wait, False

    def __call__(self, waiting: Waiting) -> None:
        if self._on_wait is None:
            return
        try:
            self._on_wait(waiting)
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("on_wait raised an error. The call goes on: %s", error, exc_info=error)


@dataclass(frozen=True)
class Outcome:
    """What the server told of an execution: its status, outputs and error."""

    execution_id: str
    status: str  # RUNNING, COMPLETED, FAILED or CANCELLED
    before: str  # NEW, or the status the id had before this call; "" when that is not known
    outputs: dict[str, Any]  # node id → its recorded output
    error: str | None
    error_code: str | None
    attempts: int
