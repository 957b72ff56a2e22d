"""How the processes of this project log: to stderr, and nothing that a message quotes can do harm there."""

import json
import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from nexum_runtime.text import printable, redact

_attempt: ContextVar[tuple[str, int] | None] = ContextVar("nexum_logged_attempt", default=None)
_OF_EVERY_RECORD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose filters and handlers, which may be anybody's, are nobody's result.

    What they raise is printed to stderr, once, as logging does with what it cannot log; unless
    `logging.raiseExceptions` is false.
    """

    _has_failed = False

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs  # with the `extra` of the call

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, stacklevel=2, **kwargs)  # of whoever called us
        except Exception:
            if logging.raiseExceptions and not Log._has_failed:
                Log._has_failed = True
                with suppress(Exception):  # stderr may be gone as well, and there is nobody else to tell
                    traceback.print_exc(file=sys.stderr)


@contextmanager
def about_attempt(execution_id: str, attempt: int) -> Iterator[None]:
    """What is logged inside, by whatever logger and in threads that take the context along, says which attempt it is
    about."""
    token = _attempt.set((execution_id, attempt))
    try:
        yield
    finally:
        _attempt.reset(token)


def attempt_fields(execution_id: str, attempt: int | None) -> dict[str, str | int]:
    """What a line of JSON says of an execution, and of one attempt if it is about one."""
    session, slash, _ = execution_id.partition("/")
    which: dict[str, str | int] = {"session": session} if slash else {}
    return which | {"execution": execution_id} | ({"attempt": attempt} if attempt else {})


def _tell_attempt(record: logging.LogRecord) -> bool:
    if (attempt := _attempt.get()) is not None and not hasattr(record, "execution"):
        vars(record).update(attempt_fields(*attempt))
    return True


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Control characters shown, secrets left out; further lines are indented, so that none looks like an entry."""
        text = super().format(record)
        if (which := _attempt.get()) is not None:
            first, newline, rest = text.partition("\n")
            text = f"{first}  · {which[0]} attempt {which[1]}{newline}{rest}"
        return printable(redact(text)).replace("\n", "\n    ")


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
    handler.addFilter(_tell_attempt)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
