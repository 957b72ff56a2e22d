"""What the demo says before anything is imported that takes time, and the command that runs it again."""

import argparse
import asyncio
import io
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

QUESTION_CHARS = 300
FLAGS = {"offline": "--offline", "worker": "--worker", "save_report": "--save-report", "detach": "--detach"}


def is_session_id(text: str) -> bool:
    """As `nexum_agents` has it, which takes a while to import."""
    return re.fullmatch("[A-Za-z0-9._-]{1,64}", text) is not None


def session_id(default: str = "") -> str:
    """SESSION_ID, or else the default, or else a new one. Raises SystemExit for what is none."""
    named = os.environ.get("SESSION_ID") or default or f"demo-{secrets.token_hex(3)}"
    if not is_session_id(named):
        sys.exit(f"SESSION_ID is {named!r}; it must be 1 to 64 characters of A-Za-z0-9._-")
    return named


def header(question: str, session_id: str, model: str, mode: str) -> None:
    question = question if len(question) <= QUESTION_CHARS else f"{question[: QUESTION_CHARS - 1]}…"
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    nexum = os.environ.get("NEXUM_ADDRESS") or os.environ.get("NEXUM_DATABASE_URL") or "this folder's, .nexum/local.db"
    fields = {"Question": question, "Session": session_id, "Model": model, "Mode": mode, "Nexum": nexum}
    lines = [f"{dim}{name:<9}{plain} {_on_one_line(value)}\n" for name, value in fields.items()]
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a question in letters that its encoding has not
    try:
        print(*lines, sep="", flush=True)
    except BrokenPipeError:  # `| head`: the run is worth more than its output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def interruptible(running: Coroutine[Any, Any, T], cancel_again_seconds: float = 0.1) -> T:
    """What `running` returns. Raises KeyboardInterrupt when SIGINT or SIGTERM comes first, and it has ended."""
    from nexum_runtime.signals import stop_requested

    asking, stopping = asyncio.create_task(running), asyncio.create_task(stop_requested())
    await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if asking.done():
        stopping.cancel()
        return asking.result()
    while not asking.done():  # the SDK may take a cancellation for a tool's failure, tell the model, and go on
        asking.cancel()
        await asyncio.wait({asking}, timeout=cancel_again_seconds)
    await asyncio.gather(asking, return_exceptions=True)
    raise KeyboardInterrupt


def command_line(session_id: str, arguments: argparse.Namespace) -> str:
    """The command that runs this session again from here, with the interpreter and the settings of now."""
    settings = {"SESSION_ID": session_id}
    name = "NEXUM_ADDRESS" if os.environ.get("NEXUM_ADDRESS") else "NEXUM_DATABASE_URL"
    settings |= {name: os.environ[name]} if os.environ.get(name) else {}
    settings |= {"MODEL": os.environ["MODEL"]} if os.environ.get("MODEL") else {}
    flags = [flag for name, flag in FLAGS.items() if getattr(arguments, name)]
    flags += [] if arguments.durable_model else ["--no-durable-model"]
    flags += [] if arguments.tools == "run" else ["--tools", arguments.tools]
    words = [_python(), os.path.relpath(sys.argv[0]), *flags, arguments.question]
    return " ".join([*(f"{name}={quoted(value)}" for name, value in settings.items()), *map(quoted, words)])


def quoted(word: str) -> str:
    """A word for the shell; in the form $'…' when it holds what a terminal would act upon."""
    if _on_one_line(word) == word:
        return shlex.quote(word)
    spelled = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"\\'" else rf"\x{byte:02x}" for byte in os.fsencode(word)
    )
    return f"$'{spelled}'"


def _on_one_line(text: str) -> str:
    r"""Nothing in it acted upon by the terminal: control characters are spelled, `\x1b`."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _python() -> str:
    """As short as it can be and still be this very interpreter."""
    on_path = shutil.which("python")
    if on_path and Path(on_path).absolute() == Path(sys.executable).absolute():
        return "python"
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative
