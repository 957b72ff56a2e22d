"""Runs of workers that wait for a person, or sleep: they hold nothing, and go on whatever dies meanwhile."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from processes import NexumDev, Process, environment, eventually

from nexum_agents import StartedRun, durable_session, durable_sleep, parking, start_run
from nexum_runtime import Client, Parked

WORKER = Path(__file__).with_name("paying_worker.py")
PAID = "paid 0"


class Stage:
    """A server, workers in processes of their own, and the ledger of what they did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nexum = NexumDev(folder)
        self._folder, self._monkeypatch, self._workers = folder, monkeypatch, list[Process]()

    async def begin(self, **env: str) -> None:
        """The server, which may die somewhere."""
        self.nexum._env = environment(NEXUM_EXIT_WITH_PARENT="1") | env
        await self.nexum.__aenter__()
        self._monkeypatch.setenv("NEXUM_ADDRESS", self.nexum.address)

    async def again(self) -> None:
        """The server, which lives."""
        self.nexum._env = environment(NEXUM_EXIT_WITH_PARENT="1")
        await self.nexum.restart()

    def work(self, **env: str) -> Process:
        env = environment(LEDGER=str(self._folder / "ledger"), NEXUM_ADDRESS=self.nexum.address) | env
        worker = Process([sys.executable, str(WORKER)], self._folder / f"worker-{len(self._workers)}.log", env=env)
        worker.start()
        self._workers.append(worker)
        return worker

    @property
    def effects(self) -> Counter[str]:
        lines = (self._folder / "ledger").read_text().splitlines()
        return Counter(" ".join(map(str, json.loads(line))) for line in lines)

    async def parked(self, count: int = 1) -> None:
        async def are_parked() -> bool:
            async with Client(self.nexum.address) as client:
                return len(await client.listed("", 1_000, status="PARKED")) == count

        await eventually(are_parked, "runs that are parked")

    async def answer(self) -> None:
        """All that is asked, as often as it takes until the server has it."""
        async with Client(self.nexum.address) as client:
            for each in await client.approvals():
                await client.approve(
                    each.execution_id, each.node_id, "anna", "main" if each.node_id == "answer" else ""
                )

    async def story(self, run: StartedRun) -> list[str]:
        async with Client(self.nexum.address) as client:
            return [each["type"] async for found in client.history(run.execution_id) for each in found["events"]]


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, monkeypatch)
    yield stage
    for worker in stage._workers:
        worker.kill()
    stage.nexum.kill()


async def test_twenty_runs_that_wait_for_a_person_hold_no_place_and_all_end_when_they_are_answered(
    stage: Stage,
) -> None:
    await stage.begin()
    stage.work()
    runs = [await start_run("Payer", "1", session_id=f"s{n}") for n in range(20)]
    await stage.parked(20)
    await stage.answer()
    outcomes = await asyncio.gather(*(run.result(timeout=60) for run in runs))
    assert {each.final_output for each in outcomes} == {PAID}
    assert stage.effects == {"pay 0": 20, "model 0": 20, "model 1": 20}
    for run in runs:
        assert await stage.story(run) == [
            "ExecutionStarted", "AttemptStarted", "AttemptParked", "TaskWoken", "AttemptStarted", "TaskCompleted",
            "ExecutionCompleted",
        ]  # fmt: skip


@pytest.mark.parametrize("point", ["in-park", "in-wake"])
async def test_the_server_dies_while_a_run_is_parked_or_woken(stage: Stage, point: str) -> None:
    await stage.begin(NEXUM_CRASH_AT=point)
    stage.work()
    run = await start_run("Payer", "1", session_id="s1")
    if point == "in-wake":
        await stage.parked()
        await asyncio.gather(stage.answer(), return_exceptions=True)
    await stage.nexum.ended()
    await stage.again()
    await stage.parked()
    await stage.answer()
    assert (await run.result(timeout=60)).final_output == PAID
    assert stage.effects == {"pay 0": 1, "model 0": 1, "model 1": 1}


@pytest.mark.parametrize("point", ["parking", "parked"])
async def test_the_worker_dies_when_it_parks_a_run_and_another_one_has_it(stage: Stage, point: str) -> None:
    await stage.begin()
    dying = stage.work(NEXUM_CRASH_AT=point)
    run = await start_run("Payer", "1", session_id="s1")
    await dying.ended()
    stage.work()
    await stage.parked()
    await stage.answer()
    assert (await run.result(timeout=60)).final_output == PAID
    assert stage.effects == {"pay 0": 1, "model 0": 1, "model 1": 1}


async def test_a_run_goes_on_when_server_and_worker_die_while_it_is_parked(stage: Stage) -> None:
    await stage.begin()
    dying = stage.work()
    run = await start_run("Payer", "3", session_id="s1")
    await stage.parked()
    dying.kill()
    stage.nexum.kill()
    await stage.again()
    stage.work()
    await stage.answer()
    assert (await run.result(timeout=60)).final_output == "paid 0; paid 1; paid 2"
    assert stage.effects == {"pay 0": 1, "pay 1": 1, "pay 2": 1, "model 0": 1, "model 3": 1}


async def test_a_tool_that_asks_a_person_and_sleeps_is_begun_again_and_each_is_once(stage: Stage) -> None:
    await stage.begin()
    stage.work(SLEEP_SECONDS="2")
    run = await start_run("Payer", "0", session_id="s1")
    await stage.parked()
    await stage.answer()
    began = time.monotonic()
    await stage.parked()
    assert (await run.result(timeout=60)).final_output == "main"
    assert time.monotonic() - began > 1
    assert (await stage.story(run)).count("AttemptParked") == 2
    assert stage.effects == {"model 0": 1, "model 1": 1}


async def test_a_sleep_ends_when_it_was_to_end_at_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.begin()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with monkeypatch.context() as quickly:
        quickly.setattr("nexum_agents.sleeping.asyncio.sleep", sleep)
        for _ in range(2):
            async with durable_session("s1"):
                await durable_sleep(3_600)
    assert slept[0] > slept[1] > 3_000


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e12])
async def test_a_time_that_cannot_be_slept_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="it can be 0 to 10 years"):
        await durable_sleep(seconds)


async def test_what_is_under_way_keeps_a_run_from_being_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "PARK_SECONDS", 0.01)
    done: list[Any] = []

    async def waits() -> None:
        with parking.waiting("s/asked"):
            await asyncio.sleep(3_600)

    async def works(*, may_be_cut: bool) -> None:
        with parking.busy(may_be_cut=may_be_cut):
            await asyncio.sleep(0.2)
            done.append(may_be_cut)

    async def asks(*, may_be_cut: bool) -> None:
        with parking.busy(may_be_cut=may_be_cut):
            await waits()

    for beside in (False, True):
        with pytest.raises(Parked) as parked:
            await parking.parkable(lambda: asyncio.gather(waits(), works(may_be_cut=beside)))  # noqa: B023
        assert list(parked.value.ended) == ["s/asked"]
    assert done == [False, True]
    with pytest.raises(Parked):
        await parking.parkable(lambda: asks(may_be_cut=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await parking.parkable(lambda: asks(may_be_cut=False))
