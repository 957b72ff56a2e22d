"""How the processes of this project log: to stderr, and nothing that a message quotes can do harm there."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from nexum_runtime.text import printable, redact

_OF_EVERY_RECORD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Control characters shown, secrets left out; further lines are indented, so that none looks like an entry."""
        return printable(redact(super().format(record))).replace("\n", "\n    ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line: {"time", "level", "logger", "message"}, "error" where there is one, and what the call adds."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            entry["error"] = redact(self.formatException(record.exc_info))
        for name, value in vars(record).items():
            if name not in _OF_EVERY_RECORD:
                entry[name] = value if isinstance(value, int | float) else redact(str(value))
        return printable(json.dumps(entry, ensure_ascii=False))


def log_to_stderr(line_format: str, time_format: str | None = None, *, as_json: bool = False) -> None:
    """Log warnings, and what loggers of a lower level of their own let through; `as_json` an object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else _Formatter(line_format, time_format))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
