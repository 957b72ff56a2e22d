"""The `nexum` command: flags and printing. Everything it does is in the modules it calls, imported when needed."""

from nexum_runtime.cli import dev, doctor, people, ps, show, upkeep, versions  # each adds its commands
from nexum_runtime.cli.base import app

__all__ = ["app", "dev", "doctor", "main", "people", "ps", "show", "upkeep", "versions"]

ORDER = [
    "dev",
    "ps",
    "show",
    "approvals",
    "approve",
    "reject",
    "cancel",
    "resolve",
    "retry",
    "prune",
    "versions",
    "diff",
    "doctor",
]

app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))


def main() -> None:
    app()
