"""A handler that blocks its worker's event loop costs the other calls of the worker nothing but that time."""

import asyncio
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from nexum import workflow
from nexum.context import ContextView
from processes import NexumDev, Process, eventually
from pydantic import BaseModel
from test_doctor import diagnosed

from nexum_runtime import Client
from nexum_runtime.worker import standstill

PROGRAM = """
import asyncio, pathlib, sys, time
from nexum import workflow
from pydantic import BaseModel
from nexum_runtime import Worker
from nexum_runtime.logs import log_to_stderr
from nexum_runtime.worker import standstill

class Text(BaseModel):
    text: str

async def blocks(context):
    while not pathlib.Path(context.input["until"]).exists(): time.sleep(0.1)  # a mistake
    return {"text": "late"}

async def waits(context):
    with open(context.input["ledger"], "a") as ledger:
        ledger.write("x")
    while not pathlib.Path(context.input["until"]).exists():
        await asyncio.sleep(0.01)
    return {"text": "waited"}

log_to_stderr("%(message)s")
standstill.STANDSTILL_SECONDS_MAX = float(sys.argv[2])
built = [workflow(each.__name__).effect("run", Text, each).build() for each in (blocks, waits)]
asyncio.run(Worker(built, port=int(sys.argv[1]), lease_ms=6000, drain_seconds=0).run())
"""


class Text(BaseModel):
    text: str


async def nothing(context: ContextView) -> Text:
    raise AssertionError("it is executed elsewhere")


BLOCKS, WAITS = (workflow(name).effect("run", Text, nothing).build() for name in ("blocks", "waits"))


class Scene:
    """A worker process, with leases of 6 s, whose loop is blocked until `release()`."""

    def __init__(self, folder: Path, dev: NexumDev, client: Client) -> None:
        self.folder, self.dev, self.client = folder, dev, client
        self.ledger = folder / "ledger"

    def start_worker(self, seconds_max: float = 60.0) -> Process:
        program = self.folder / "worker.py"
        program.write_text(PROGRAM)
        worker = Process([sys.executable, program, str(self.dev.port), str(seconds_max)], self.folder / "worker.log")
        worker.start()
        return worker

    def begin(self, definition: Any, name: str, **options: Any) -> "asyncio.Task[Any]":
        args = {"until": str(self.folder / name), "ledger": str(self.ledger)}
        return asyncio.create_task(self.client.execute(definition, args, execution_id=f"s/{name}", **options))

    async def begun(self) -> None:
        await eventually(lambda: self.ledger.exists() and self.ledger.read_text())

    def release(self, name: str) -> None:
        (self.folder / name).touch()


@pytest.fixture
async def scene(tmp_path: Path) -> Any:
    async with NexumDev(tmp_path) as dev, Client(dev.address) as client:
        for definition in (BLOCKS, WAITS):
            await client.register(definition)
        yield Scene(tmp_path, dev, client)


async def test_a_handler_that_blocks_the_event_loop_costs_no_other_call_its_lease(scene: Scene) -> None:
    worker = scene.start_worker()
    other = scene.begin(WAITS, "other", effect="once")
    await scene.begun()
    blocking = scene.begin(BLOCKS, "blocking", effect="once", attempt_timeout=600)
    where = (await worker.says(r"stood still for \S+ s in (blocks \(worker\.py:\d+\)), of s/blocking"))[1]
    found = await eventually(lambda: diagnosed(scene.dev.address))
    assert list(found) == ["standstill"]
    assert "has stood still for " in found["standstill"]
    assert f"{where}, of s/blocking blocks its event loop" in found["standstill"]
    waiting = scene.begin(WAITS, "waiting", effect="once")  # nothing new is given to it
    await eventually(lambda: _stood_still_for(scene.client, 6_500))  # longer than the leases
    for name in ("other", "waiting", "blocking"):
        scene.release(name)
    assert [(await each).status for each in (other, waiting, blocking)] == ["COMPLETED"] * 3
    assert scene.ledger.read_text() == "xx"
    assert [(await each).attempts for each in (other, waiting, blocking)] == [1, 1, 1]
    await worker.says("The event loop goes on")
    found = await eventually(lambda: diagnosed(scene.dev.address))
    assert " stood still for " in found["standstill"]
    assert " ago: blocks " in found["standstill"]


async def _stood_still_for(client: Client, ms: int) -> bool:
    (worker,) = (await client.inspect())["workers"]
    return bool(worker["standstill"]["ms"] >= ms)


async def test_a_worker_that_never_goes_on_loses_its_calls_to_others(scene: Scene) -> None:
    scene.start_worker(seconds_max=2.0)
    other = scene.begin(WAITS, "other", effect="once")
    await scene.begun()
    blocking = scene.begin(BLOCKS, "blocking", effect="once")
    assert (await other).error_code == "OUTCOME_UNKNOWN"
    assert (await blocking).error_code == "OUTCOME_UNKNOWN"


async def test_a_thread_that_watches_ends_with_its_worker() -> None:
    watching = standstill.Standstill(lambda: Client("localhost:1"), "w", 1.0, lambda _: "")
    watching.stop()
    await eventually(lambda: "nexum-standstill" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.parametrize("goes_on", ["before it is said", "as it is said"])
async def test_a_standstill_that_ends_as_it_is_looked_at_is_not_one_of_0_ms(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, goes_on: str
) -> None:
    """The loop runs in another thread than who looks, and may go on between any two lines of that."""
    looks = iter([True])
    monkeypatch.setattr(standstill.Standstill, "_looks", lambda _: next(looks, False))
    watched = standstill.Standstill.__new__(standstill.Standstill)  # whose thread is this test's
    watched._goes_on, watched._seconds, watched._seconds_before, watched._beat_seconds = False, 5.0, 0.0, 60.0
    watched._open_client = _no_client

    def where(_: Any) -> str:
        if goes_on == "before it is said":
            watched._note()
        else:
            watched._seconds = 0.0
        return "fetch (tools.py:12)"

    monkeypatch.setattr(standstill.Standstill, "_where", where)
    with suppress(AssertionError):
        await asyncio.to_thread(watched._watch)
    said = [each for each in caplog.messages if "stood still" in each]
    assert len(said) == (0 if goes_on == "before it is said" else 1)
    assert all("has stood still for 5.0 s in fetch" in each for each in said), said


def _no_client() -> Client:
    raise AssertionError("it is not asked")
