"""What `nexum dev --verbose` logs: each event of an execution, in the words of `nexum show`."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from nexum_runtime.cli.story import event_text
from nexum_runtime.logs import Log, attempt_fields

UNDER_WAY_LIMIT = 10_000  # attempts whose beginning is remembered, the latest ones
STARTS = {"ExecutionStarted": "started", "ExecutionRestarted": "started again"}

log = Log("nexum.events")


class EventLog:
    """Logs what has been committed."""

    def __init__(self) -> None:
        self._began_ms: OrderedDict[tuple[str, str, int], int] = OrderedDict()

    def __call__(self, events: Sequence[tuple[Any, ...]]) -> None:
        for execution_id, at_ms, type, node_id, attempt, data_json in events:
            key = (execution_id, node_id, attempt)
            if type == "AttemptStarted":
                self._began_ms[key] = at_ms
                if len(self._began_ms) > UNDER_WAY_LIMIT:
                    self._began_ms.popitem(last=False)
                took_ms = 0
            else:
                took_ms = at_ms - self._began_ms.pop(key, at_ms)
            event = json.loads(data_json) | {"type": type, "at_ms": at_ms, "node_id": node_id, "attempt": attempt}
            words = STARTS.get(type) or event_text("", event, took_ms)
            log.info("%s %s", execution_id, words, extra=attempt_fields(execution_id, attempt) | {"event": type})
