"""A process that uses Nexum from many event loops, or forks: `python connection_process.py WHAT HOW [COUNT]`.

It says what came of it in lines of JSON. The server is at NEXUM_ADDRESS.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if "grpc-first" in sys.argv:
    import grpc.aio  # noqa: F401

from nexum import workflow
from pydantic import BaseModel

import nexum_agents.clients
from nexum_agents.clients import nexum_client
from nexum_runtime import Client, NexumError
from nexum_runtime.client import connection

CALL_SECONDS = 10.0
DEATH_SECONDS = 15.0


class Answer(BaseModel):
    n: int


async def answer(context: Any) -> Answer:
    return Answer(n=1)


DEFINITION = workflow("answers").effect("answer", Answer, answer).build()


async def call(client: Client | None = None) -> str:
    """A unary call and one on the stream of calls."""
    client = client or nexum_client()
    async with asyncio.timeout(CALL_SECONDS):
        await client.executions(limit=1)
        async with client.local_effect(DEFINITION, {}, execution_id=uuid.uuid4().hex) as effect:
            await effect.record({"n": 1})
    return "answered"


# Many event loops


def census() -> dict[str, int]:
    """What this process holds of the system."""
    links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if is_open(number)]
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    tables = [Path(f"/proc/self/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    connections = [line for table in tables for line in table if line.split()[9] in sockets]
    threads = os.listdir("/proc/self/task")
    return {"connections": len(connections), "descriptors": len(links), "threads": len(threads)}


def is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def settled() -> dict[str, int]:
    """The census, once the threads that are about to end have ended."""
    deadline = time.monotonic() + DEATH_SECONDS
    last: dict[str, int] = {}
    while (now := census()) != last or now["threads"] > 1:
        if time.monotonic() > deadline:
            return now
        last = now
        time.sleep(0.02)
    return now


def asyncio_run() -> None:
    asyncio.run(call())


def run_until_complete() -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(call())
    loop.close()


def run_until_complete_at_once() -> None:
    connection.SETTLE_SECONDS = 0.0
    run_until_complete()


def by_a_stopped_clock() -> None:
    """As in a test that sets the time."""
    real = time.time, time.monotonic
    time.time, time.monotonic = lambda: 1e9, lambda: 100.0
    try:
        asyncio.run(call())
    finally:
        time.time, time.monotonic = real


def unfinished() -> None:
    """The loop ends in the midst of calls."""

    async def main() -> None:
        await call()
        calls = [nexum_client().execute(DEFINITION, {}), nexum_client().inspect()]
        tasks = [asyncio.create_task(each) for each in calls]
        await asyncio.wait(tasks, timeout=0.002)

    asyncio.run(main())
    if asyncio_keeps_tasks():
        gc.collect()


def asyncio_keeps_tasks() -> bool:
    """Whether a task that is cancelled with its loop is there until the garbage collector comes: asyncio of Python 3.13
    refers to it from a frame, to which its exception refers."""
    kept: list[weakref.ref[Any]] = []

    async def wait(what: Answer) -> None:
        kept.append(weakref.ref(what))
        await asyncio.sleep(DEATH_SECONDS)

    async def main() -> None:
        task = asyncio.create_task(wait(Answer(n=1)))
        await asyncio.sleep(0)
        del task

    asyncio.run(main())
    return kept[0]() is not None


def refused() -> None:
    """Calls that end by an error."""

    async def main() -> None:
        for each in (nexum_client().execute(DEFINITION, {}, execution_id="not an id"), nexum_client().status("none")):
            with suppress(NexumError):
                await each

    asyncio.run(main())


def threads() -> None:
    in_threads(asyncio_run, 4)


def in_threads(work: Callable[[], None], count: int) -> None:
    each = [threading.Thread(target=work) for _ in range(count)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()


def run_sync() -> None:
    from agents import Agent, Runner, function_tool, set_tracing_disabled
    from agents.testing import ScriptedModel, assistant_message, function_call

    async def use_nexum() -> str:
        return await call()

    set_tracing_disabled(True)
    model = ScriptedModel([[function_call("use_nexum", "{}", call_id="1")], [assistant_message("Done.", item_id="m")]])
    result = Runner.run_sync(Agent(name="a", tools=[function_tool(use_nexum)], model=model), "q")
    assert result.final_output == "Done.", result


def interrupted() -> None:
    async def main() -> None:
        await call()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(DEATH_SECONDS)

    with suppress(KeyboardInterrupt):
        asyncio.run(main())


def closed_from_another_loop() -> None:
    loop = asyncio.new_event_loop()

    def use() -> None:
        loop.run_until_complete(call())

    in_threads(use, 1)

    async def main() -> None:
        loop.close()

    asyncio.run(main())


def beside_each_other() -> None:
    """Loops that end in the midst of calls, while others go on."""
    stop = threading.Event()

    async def busy() -> None:
        while not stop.is_set():
            await call()

    going_on = threading.Thread(target=lambda: asyncio.run(busy()))
    going_on.start()
    in_threads(unfinished, 3)
    stop.set()
    going_on.join()


def left_open() -> None:
    """At the end of the process its loop is neither closed nor shut down."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(call())
    tell(left=loop.is_closed())


def loops(how: str, count: int) -> None:
    use: Callable[[], None] = globals()[how]
    use()  # what is imported and opened once is there from here on
    before = settled()
    for _ in range(count):
        use()
    tell(before=before, after=settled())


# Forks


def attempt(client: Client | None = None) -> str:
    try:
        return asyncio.run(call(client))
    except NexumError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return repr(error)


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process, which ends as processes do; or how that ended."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.write(writing, json.dumps(work()).encode())
        sys.exit(0)
    os.close(writing)
    deadline, status = time.monotonic() + DEATH_SECONDS, 0
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.005)
    else:
        status = ended[1]
    with open(reading, "rb") as answer:
        said = answer.read()
    code = os.waitstatus_to_exitcode(status)
    return f"ended by {code}" if code else json.loads(said) if said else "hung"


def unused(count: int) -> None:
    """Before the first use."""
    for _ in range(count):
        tell(child=forked(attempt))
    tell(parent=attempt())


def closed(count: int) -> None:
    """Between two uses."""
    for _ in range(count):
        tell(parent=attempt(), child=forked(lambda: [attempt(), forked(attempt)]))


def connected(count: int) -> None:
    """While a thread makes one call after the other; the child asks for a client, or has one, or wants none."""
    stop = threading.Event()
    made: list[Client] = []
    answers: list[str] = []

    async def busy() -> None:
        made.append(nexum_client())
        while not stop.is_set():
            answers.append(await call())

    thread = threading.Thread(target=lambda: asyncio.run(busy()))
    thread.start()
    for number in range(count):
        seen = len(answers)
        while thread.is_alive() and len(answers) < seen + 2:
            time.sleep(0.002)
        child: Callable[[], Any] = [attempt, lambda: attempt(made[0]), lambda: "wants none"][number % 3]
        tell(child=forked(child), parent="goes on" if thread.is_alive() else "has stopped")
    stop.set()
    thread.join()
    made.clear()
    tell(parent=attempt(), child=forked(attempt))


def idle(count: int) -> None:
    """Between two calls on a loop that stays open, with its client; some children let go of what they can."""
    loop = asyncio.new_event_loop()
    clients: list[Client] = []

    async def use() -> str:
        clients[:] = [nexum_client()]
        await clients[0].executions(limit=1)  # a stream would hold all that there is to let go of
        return "answered"

    def let_go() -> str:
        clients.clear()
        vars(nexum_agents.clients)["_clients"].clear()
        gc.collect()
        return "wants none"

    loop.run_until_complete(use())
    for number in range(count):
        child: Callable[[], Any] = [attempt, lambda: attempt(clients[0]), let_go][number % 3]
        tell(child=forked(child), parent=loop.run_until_complete(use()))
    loop.close()


def pools(count: int) -> None:
    """By multiprocessing, from a running loop, and when that has ended."""

    async def main(method: str) -> None:
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            await call()
            child = await asyncio.get_running_loop().run_in_executor(pool, attempt)
            tell(method=method, child=child, parent=await call())

    for method in ("fork", "spawn"):
        asyncio.run(main(method))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        tell(method="fork, closed", child=pool.submit(attempt).result(), parent=attempt())


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    what, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "loops" and count:
        loops(how, count)
    elif what == "loops":
        globals()[how]()
    else:
        globals()[how](count)
