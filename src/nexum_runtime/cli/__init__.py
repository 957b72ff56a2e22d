"""The `nexum` command: flags and printing. Everything it does is in the modules it calls, imported when needed."""

from nexum_runtime.cli import (
    compare,
    copy,
    dev,
    doctor,
    follow,
    people,
    ps,
    sessions,
    show,
    upkeep,
    versions,
)  # each adds its commands
from nexum_runtime.cli.base import app
from nexum_runtime.text import spell_what_cannot_be_printed

__all__ = [
    "app",
    "compare",
    "copy",
    "dev",
    "doctor",
    "follow",
    "main",
    "people",
    "ps",
    "sessions",
    "show",
    "upkeep",
    "versions",
]

ORDER = [
    "dev",
    "sessions",
    "ps",
    "show",
    "follow",
    "approvals",
    "answer",
    "approve",
    "reject",
    "stop",
    "go",
    "forget",
    "fork",
    "compare",
    "cancel",
    "resolve",
    "retry",
    "prune",
    "copy",
    "versions",
    "diff",
    "doctor",
]

app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))


def main() -> None:
    spell_what_cannot_be_printed()
    app()
