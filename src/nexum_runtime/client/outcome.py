"""What a client tells of an execution: what it waits for, and how that came out."""

from dataclasses import dataclass
from typing import Any, Literal

Waiting = Literal["server", "database", "worker", "approval", "result"]
"""What a call waits for: a server that answers, or can write again, a worker that takes its task, a person's yes, or
the end of it."""


@dataclass(frozen=True)
class Outcome:
    """An execution as the server told it."""

    execution_id: str
    status: str  # RUNNING, COMPLETED, FAILED or CANCELLED
    before: str  # NEW, or the status the id had before this call; "" when that is not known
    outputs: dict[str, Any]  # node id → its recorded output
    error: str | None
    error_code: str | None
    attempts: int
