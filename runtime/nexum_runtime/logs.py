"""How the processes of this project log: to stderr, and nothing that a message quotes can do harm there."""

import logging

from nexum_runtime.text import printable, redact


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Control characters shown, secrets left out; further lines are indented, so that none looks like an entry."""
        return printable(redact(super().format(record))).replace("\n", "\n    ")


def log_to_stderr(line_format: str, time_format: str | None = None) -> None:
    """Log warnings, and what loggers of a lower level of their own let through."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(line_format, time_format))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
