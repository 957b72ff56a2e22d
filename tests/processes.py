"""Real processes for the tests: started with their output in a file, waited for by condition, never left behind."""

import asyncio
import codecs
import fcntl
import inspect
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks

from nexum_runtime import Client
from nexum_runtime.client.remote import Remote

PATIENCE_SECONDS = 60.0  # for what takes much less, unless the machine is busy with other things
LOOK_SECONDS = 0.01
TESTS = str(Path(__file__).parent)  # on the PYTHONPATH of a test that is a program too
NEXUM = str(Path(sys.executable).with_name("nexum"))

STARTED: list["Process | Terminal"] = []
"""Every process of the test that runs; conftest.py kills what is left of them when it ends."""


def kill_all() -> None:
    while STARTED:
        STARTED.pop().kill()


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]], what: str = "", seconds: float = PATIENCE_SECONDS
) -> Any:
    """Wait until `condition()`, plain or async, is truthy, and return that. Fails the test after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what or 'the condition'} did not come true within {seconds:g} s")
        await asyncio.sleep(LOOK_SECONDS)


def remote(client: Client) -> Remote:
    """The way of a client whose engine is in another process."""
    assert isinstance(client.way, Remote)
    return client.way


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without its NEXUM_* and OTEL_* settings: none of a developer's reach a test.

    An address of "" is that of a test whose engine is found by the file.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NEXUM_", "OTEL_"))}
    own.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile what it imports
    own["NEXUM_WEB_PORT"] = "0"
    own["NEXUM_PORT"] = "0"  # no server is looked for that a developer runs
    if "NEXUM_ADDRESS" in changes:
        own |= engine_at(changes["NEXUM_ADDRESS"])
    return own | {"PYTHONUNBUFFERED": "1"} | changes


def engine_at(address: str) -> dict[str, str]:
    """The settings of a process that is to use the engine at this address, or that of the test's own file."""
    return {"NEXUM_ADDRESS": address} if address else {"NEXUM_DATABASE_URL": os.environ["NEXUM_DATABASE_URL"]}


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str


async def run(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = 60.0
) -> Finished:
    """Run a command to its end; the event loop, and the server in it, goes on meanwhile."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = forks.start(
            [str(word) for word in command],
            env=env if env is not None else environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )
        try:
            await eventually(lambda: process.poll() is not None, f"the end of {command}", seconds)
        finally:
            process.kill()
            code = process.wait()
        stdout.seek(0)
        stderr.seek(0)
        return Finished(code, stdout.read().decode(), stderr.read().decode())


class Process:
    """One process, its stdout and stderr together in the file `log`. Nothing runs before `start()`.

    It can read `typed` from its stdin.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        typed: str = "",
    ) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self._env = dict(env) if env is not None else environment()
        self._cwd = cwd
        self._typed = typed
        self._process: forks.Forked | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again once it has ended."""
        assert not self.alive, f"{self} runs already"
        with self.log.open("wb") as log, tempfile.TemporaryFile() as typed:
            typed.write(self._typed.encode())
            typed.seek(0)
            self._process = forks.start(
                self.command,
                env=self._env,
                cwd=self._cwd,
                stdin=typed.fileno(),
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        if self not in STARTED:
            STARTED.append(self)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self} was never started"
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has printed since it was last started."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    async def says(self, pattern: str, seconds: float = PATIENCE_SECONDS) -> re.Match[str]:
        """Wait until its output matches the regular expression `pattern`. Fails as soon as it ends without."""

        def said() -> re.Match[str] | None:
            ended = not self.alive  # before looking: its last words are in the file by then
            match = re.search(pattern, self.output)
            assert match or not ended, f"{self} ended without {pattern!r}:\n{self.output}"
            return match

        try:
            match: re.Match[str] = await eventually(said, f"{pattern!r} in the output of {self}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None
        return match

    async def ended(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end and return its exit code: negative when a signal ended it."""
        await eventually(lambda: not self.alive, f"the end of {self}", seconds)
        assert self._process is not None
        return self._process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Killing what has ended already is no error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __str__(self) -> str:
        return " ".join(self.command)


class NexumDev(Process):
    """`nexum dev` with its database in `folder`.

    `async with NexumDev(tmp_path) as nexum:` waits until it is ready and kills it at the end. `restart()` starts it
    again on the same port and database.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        database: Path | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.prefix = prefix  # of its command
        self.database = database or folder / "nexum.db"
        self._options = options
        # Should the tests themselves be killed, the server goes with them.
        super().__init__(
            [], folder / f"nexum-dev-{len(STARTED)}.log", env=env or environment(NEXUM_EXIT_WITH_PARENT="1")
        )

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        self.command = [
            *self.prefix,
            NEXUM,
            "dev",
            "--port",
            str(self.port),
            "--db",
            str(self.database),
            *([] if "--web-port" in self._options else ["--no-web"]),
            *self._options,
        ]
        super().start()

    async def ready(self) -> None:
        match = await self.says(r"Nexum is ready at \S+:(\d+) [·-] database ")
        self.port = int(match[1])

    async def restart(self) -> None:
        """Start it again, killing it first if it still runs, and wait until it is ready."""
        self.kill()
        self.start()
        await self.ready()

    async def __aenter__(self) -> "NexumDev":
        self.start()
        await self.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()


class Terminal:
    """A command on a terminal of its own, of 24 lines. It runs from the beginning."""

    def __init__(self, *command: str, env: Mapping[str, str], columns: int = 80, cwd: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.raw = ""  # all that was written to it
        own = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self._process = forks.start(command, env=own, cwd=cwd, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        os.set_blocking(self._master, False)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        STARTED.append(self)

    @property
    def text(self) -> str:
        """The same without what moves and colors it."""
        self._read()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r", "")

    async def says(self, pattern: str) -> None:
        await eventually(lambda: re.search(pattern, self.text), f"{pattern!r} on the terminal")

    async def ended(self) -> int:
        await eventually(lambda: self.text and self._process.poll() is not None, "the end of what the terminal runs")
        return self._process.wait()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # there is nothing now, or it has ended
            while data := os.read(self._master, 65536):
                self.raw += self._decoder.decode(data)
