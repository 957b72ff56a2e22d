"""What `nexum dev` logs of executions, in the words of `nexum show`: lost attempts, and all events if `--verbose`."""

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from nexum_runtime.logs import Log, attempt_fields
from nexum_runtime.telling.story import event_text

UNDER_WAY_LIMIT = 10_000  # attempts whose beginning is remembered, the latest ones
LOST_LIMIT = 10  # attempts lost at the same moment, as of a worker that has gone, that are named
STARTS = {"ExecutionStarted": "started", "ExecutionRestarted": "started again"}

log = Log("nexum.events")


class EventLog:
    """Logs what has been committed: what an operator must know, and all of it where the log lets INFO through."""

    def __init__(self) -> None:
        self._began_ms: OrderedDict[tuple[str, str, int], int] = OrderedDict()

    def __call__(self, events: Sequence[tuple[Any, ...]]) -> None:
        lost = 0
        for event in events:
            execution_id, at_ms, type, node_id, attempt, _ = event
            key, took_ms = (execution_id, node_id, attempt), 0
            if type == "AttemptStarted":
                self._began_ms[key] = at_ms
                if len(self._began_ms) > UNDER_WAY_LIMIT:
                    self._began_ms.popitem(last=False)
            else:
                took_ms = at_ms - self._began_ms.pop(key, at_ms)
            lost += type == "LeaseExpired"
            is_lost = type == "LeaseExpired" and lost <= LOST_LIMIT
            if is_lost or log.isEnabledFor(logging.INFO):
                self._tell(logging.WARNING if is_lost else logging.INFO, event, took_ms)
        if lost > LOST_LIMIT:
            log.warning("%d more attempts were lost at the same moment.", lost - LOST_LIMIT)

    def _tell(self, level: int, committed: tuple[Any, ...], took_ms: int) -> None:
        execution_id, at_ms, type, node_id, attempt, data_json = committed
        event = json.loads(data_json) | {"type": type, "at_ms": at_ms, "node_id": node_id, "attempt": attempt}
        words = STARTS.get(type) or event_text("", event, took_ms)
        log.log(level, "%s %s", execution_id, words, extra=attempt_fields(execution_id, attempt) | {"event": type})
