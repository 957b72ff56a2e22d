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
import termios
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexum_runtime import Client
from nexum_runtime.client.remote import Remote

PATIENCE_SECONDS = 60.0  # for what takes much less, unless the machine is busy with other things
LOOK_SECONDS = 0.01
TESTS = str(Path(__file__).parent)  # on the PYTHONPATH of a test that is a program too
NEXUM = str(Path(sys.executable).with_name("nexum"))

STARTED: list["Process | Terminal"] = []
"""Every process of the test that runs; conftest.py kills what is left of them when it ends."""


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
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env=env if env is not None else environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, stdout.decode(), stderr.decode())


class Process:
    """One process, its stdout and stderr together in the file `log`. Nothing runs before `start()`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self._env = dict(env) if env is not None else environment()
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again once it has ended."""
        assert not self.alive, f"{self} runs already"
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                self.command,
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if self not in STARTED:
            STARTED.append(self)

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self} was never started"
        return self._popen.pid

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
        assert self._popen is not None
        return int(self._popen.returncode)

    def send(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Killing what has ended already is no error."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

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
        self._popen = subprocess.Popen(command, env=own, cwd=cwd, stdin=slave, stdout=slave, stderr=slave)
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
        await eventually(lambda: self.text and self._popen.poll() is not None, "the end of what the terminal runs")
        return int(self._popen.returncode)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        with suppress(OSError):
            os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # there is nothing now, or it has ended
            while data := os.read(self._master, 65536):
                self.raw += self._decoder.decode(data)
