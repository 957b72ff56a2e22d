"""A process for test_engines.py, which needs an engine: `python engine_process.py SESSION STEPS`.

Every real execution of a step is a line in the file LEDGER; from the step GATED on it waits while the file GATE does
not exist. It prints what it does, and at last whether it has imported gRPC. With FORK set, what needs the engine is a
child that was forked from a process which has it; with THREADS, that many event loops in threads need it at once.
"""

import asyncio
import logging
import multiprocessing
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from nexum_runtime.definition import Node, Workflow
from nexum_runtime.engines import near

STEP = Workflow("step", (Node("step", "EFFECT"),))
EFFECT = os.environ.get("EFFECT")


async def step(session: str, number: int) -> Any:
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        ledger.write(f"{session}/{number}\n")
    print(f"began {number}", flush=True)
    gate = os.environ.get("GATE")
    while gate and number >= int(os.environ.get("GATED", "0")) and not Path(gate).exists():
        await asyncio.sleep(0.01)
    if blocked := os.environ.get("BLOCKS"):
        time.sleep(float(blocked))  # noqa: ASYNC251
    return {"by": os.getpid()}


async def main(session: str, steps: int) -> None:
    async with near() as client:
        for number in range(steps):
            execution_id = f"{session}/{number}"
            outcome = await client.run_local(
                STEP, number, partial(step, session, number), execution_id=execution_id, effect=EFFECT
            )
            print(f"{outcome.status} {number}", flush=True)
        print(f"ended at {client.address}, with gRPC: {'grpc' in sys.modules}", flush=True)


def begin(session: str, steps: int) -> None:
    asyncio.run(main(session, steps))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    session, steps = sys.argv[1], int(sys.argv[2])
    if keep_seconds := os.environ.get("KEEP_SECONDS"):
        from nexum_runtime.client import local
        from nexum_runtime.engines import host

        host.KEEP_SECONDS, local.LEASE_MS = float(keep_seconds), 1_000
    if door_seconds := os.environ.get("DOOR_SECONDS"):
        from nexum_runtime.server.door import Door

        at_once, seconds = Door.open, float(door_seconds)

        async def late(door: Door) -> None:
            await asyncio.sleep(seconds)
            await at_once(door)

        setattr(Door, "open", late)  # noqa: B010 - mypy takes no method for another
    if "FORK" in os.environ:
        begin(f"{session}-parent", 1)
        child = multiprocessing.get_context("fork").Process(target=begin, args=(session, steps))
        child.start()
        if os.environ["FORK"] == "orphan":
            os._exit(0)
        child.join()
        begin(f"{session}-after", 1)
    elif threads := os.environ.get("THREADS"):
        running = [threading.Thread(target=begin, args=(f"{session}-{n}", steps)) for n in range(int(threads))]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    else:
        begin(session, steps)
