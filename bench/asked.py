"""A process that measures what it is asked for: a line of JSON each on its stdin, and samples on its stdout.

{"kind": "step", "calls": 100}        → [2.91, 2.87, …]  in milliseconds
"""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.context import Context
from bench.measure import BenchmarkError, Samples
from bench.processes import clean_environment

LINE_BYTES = 2**20


class Asked:
    """`python -m MODULE FOLDER …`, until the context ends."""

    def __init__(self, process: Process, log: Path, name: str) -> None:
        self._process, self._log, self._name = process, log, name

    @classmethod
    async def start(cls, context: Context, module: str, *arguments: str, name: str) -> "Asked":
        log = context.folder / f"{name}.log"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, str(context.folder), *arguments),
            cwd=context.folder,
            env=clean_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=context.stack.enter_context(log.open("wb")),
            limit=LINE_BYTES,
            start_new_session=True,
        )
        asked = cls(process, log, name)
        context.stack.push_async_callback(asked.stop)
        await asked._answer()
        return asked

    async def measure(self, kind: str, calls: int, callers: int = 1) -> Samples:
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.write(json.dumps({"kind": kind, "calls": calls, "callers": callers}).encode() + b"\n")
        return await self._answer()

    async def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()

    async def _answer(self) -> Samples:
        assert self._process.stdout is not None, "it was started with a pipe"
        line = await self._process.stdout.readline()
        if not line:
            last_words = " ".join(self._log.read_text(errors="replace").splitlines()[-1:]) or "it said nothing"
            raise BenchmarkError(f"The process that runs {self._name} has ended: {last_words}")
        samples: Samples = json.loads(line)
        return samples


async def answer(measure: Callable[..., Awaitable[Any]]) -> None:
    """Be such a process: ready now, until stdin ends."""
    print("[]", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(await measure(**json.loads(line))), flush=True)
