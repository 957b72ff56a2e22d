"""The processes that the benchmark starts: real ones, in a folder of its own, stopped when their block ends."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchmarkError
from nexum_runtime.signals import EXIT_WITH_PARENT

ROOT = Path(__file__).parents[1]
START_SECONDS = 30.0
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.005


@dataclass
class Child:
    """A process that has said `ready`, and how long that took."""

    pid: int
    log: Path
    ready_ms: float
    said: str  # the line with which it was ready

    def memory_mb(self) -> float:
        """What it holds of the machine's memory (RSS), in MB."""
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=True)
        return int(told.stdout) / 1000


@asynccontextmanager
async def child(command: Sequence[str | Path], log: Path, ready: str, **environment: str) -> AsyncIterator[Child]:
    """Start Python with `command`, and wait until a line of its output has `ready` in it.

    Raises BenchmarkError with its last words when it ends before.
    """
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, *map(str, command)],
            cwd=log.parent,
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us; we tell them
        )
    try:
        said = await _until_said(ready, process, log)
        yield Child(process.pid, log, (time.perf_counter() - started) * 1000, said)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def clean_environment() -> dict[str, str]:
    """Ours, without a developer's NEXUM_* settings; a child ends by itself should we be killed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("NEXUM_")}
    return own | {EXIT_WITH_PARENT: "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"}


async def _until_said(ready: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.perf_counter() + START_SECONDS
    while True:
        ended = process.poll() is not None
        lines = log.read_text(errors="replace").splitlines()
        for line in lines:
            if ready in line:
                return line
        if ended or time.perf_counter() > deadline:
            last_words = " ".join(lines[-1:]) or "it said nothing"
            raise BenchmarkError(f"A process of the benchmark did not start: {last_words}")
        await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def server(folder: Path, database: Path | str, port: int = 0) -> AsyncIterator[tuple[Child, str]]:
    """`nexum dev` on this database and port (0 is any), and its address."""
    command = ("-m", "nexum_runtime.cli", "dev", "--port", str(port), "--db", database)
    log = folder / f"server-{time.monotonic_ns()}.log"
    async with child(command, log, "Nexum is ready at") as nexum:
        yield nexum, nexum.said.partition("Nexum is ready at ")[2].split()[0]


@asynccontextmanager
async def worker(folder: Path, address: str, module: str, *arguments: str) -> AsyncIterator[Child]:
    """A worker of this server."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    async with child(("-m", module, *arguments), log, "Connected to Nexum", NEXUM_ADDRESS=address) as process:
        yield process
