"""The `nexum` command: flags and printing. Everything it does is in the modules it calls, imported when needed."""

from nexum_runtime.cli import dev, people, ps, show, upkeep  # each adds its commands
from nexum_runtime.cli.base import app

__all__ = ["app", "dev", "main", "people", "ps", "show", "upkeep"]

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
]

app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))


def main() -> None:
    app()
