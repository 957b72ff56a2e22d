"""Attempts that are given back until an execution ends, or until a time, on every store."""

import asyncio
import json
from typing import Any

import pytest
from test_engine import LEASE_MS, ONE, Bench, bench, sqlite_bench

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.model.shapes import Claimed, Forget, Resolution
from nexum_runtime.server.model.states import State
from nexum_runtime.server.rules import attempts

__all__ = ["bench", "sqlite_bench"]

ASK = {"ask": "HUMAN_APPROVAL"}
DAY_MS = 86_400_000


def until(*ended: str, ms: int | None = None) -> str:
    return json.dumps({"ended": ended} | ({} if ms is None else {"ms": ms}))


async def ask(bench: Bench, execution_id: str) -> None:
    await bench.engine.register(
        "asked", "h", json.dumps({"nodes": {"ask": {"type": "HUMAN_APPROVAL", "dependencies": []}}})
    )
    await bench.start(execution_id, workflow_id="asked")


@pytest.fixture
async def run(bench: Bench) -> str:
    """The attempt of an execution s/run, whose session also has what a person is asked: s/a, s/b and s/c."""
    await bench.register(ONE)
    for name in "abc":
        await ask(bench, f"s/{name}")
    await bench.start("s/run")
    return await bench.claim()


async def parked(bench: Bench, execution_id: str = "s/run") -> bool:
    found, _ = await bench.engine.history(execution_id)
    return found.state == State.PARKED


async def test_what_is_parked_goes_on_when_one_of_what_it_waits_for_has_ended_and_no_attempt_is_counted(
    bench: Bench, run: str
) -> None:
    for name in "abc":
        assert await bench.engine.park(run, until(*[f"s/{each}" for each in "abc" if each >= name])) == ""
        assert await parked(bench)
        await bench.pass_time(3 * LEASE_MS)
        assert await bench.poll() is None
        await bench.approve(execution_id=f"s/{name}")
        run = await bench.claim("another")
    snapshot = await bench.snapshot("s/run")
    assert snapshot.attempts == 1
    assert await bench.engine.complete(run, "1") == ""
    assert (await bench.story("s/run"))[1:5] == [
        "AttemptStarted run 1", "AttemptParked run 1", "TaskWoken run", "AttemptStarted run 2",
    ]  # fmt: skip
    assert [each["ended"] for each in await bench.events("s/run") if each["type"] == "TaskWoken"] == [
        "s/a",
        "s/b",
        "s/c",
    ]


async def test_what_is_parked_until_a_time_goes_on_then_also_after_a_restart(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until(ms=DAY_MS))
    bench.engine = bench.new_engine()
    await bench.engine.take_over()
    bench.now_ms += DAY_MS - 1
    await bench.engine.sweep()
    assert await bench.poll() is None
    bench.now_ms += 1
    await bench.engine.sweep()
    assert await bench.claim() == f"{run.rpartition('.')[0]}.2"


async def test_what_comes_first_wakes_it_once(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a", ms=1_000))
    await bench.pass_time(1_000)
    again = await bench.claim()
    await bench.approve(execution_id="s/a")
    assert await bench.poll() is None
    assert (await bench.story("s/run")).count("TaskWoken run") == 1
    assert await bench.engine.complete(again, "1") == ""


@pytest.mark.parametrize("ends", ["yes", "no", "cancelled"])
async def test_what_has_ended_by_then_lets_it_go_on_at_once(bench: Bench, run: str, ends: str) -> None:
    if ends == "cancelled":
        await bench.engine.cancel("s/b")
    else:
        await (bench.approve if ends == "yes" else bench.reject)(execution_id="s/b")
    await bench.engine.park(run, until("s/a", "s/b", ms=DAY_MS))
    again = await bench.claim()
    await bench.engine.park(again, until("s/a"))
    await bench.approve(execution_id="s/a")
    await bench.claim()


async def test_the_end_of_what_an_earlier_attempt_waited_for_wakes_nothing(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a", "s/b"))
    await bench.approve(execution_id="s/a")
    await bench.engine.park(await bench.claim(), until("s/c"))
    await bench.approve(execution_id="s/b")
    assert await bench.poll() is None
    await bench.approve(execution_id="s/c")
    await bench.claim()


async def test_a_poll_that_waits_gets_what_goes_on(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a"))
    polling = asyncio.create_task(bench.poll(wait_ms=60_000))
    await bench.approve(execution_id="s/a")
    claimed = await polling
    assert claimed is not None
    assert claimed.task.attempt == 2


async def test_what_cannot_be_waited_for_is_told_in_a_sentence_and_changes_nothing(bench: Bench, run: str) -> None:
    await bench.start("t/other")
    for given, error, words in [
        (until("s/none"), InvalidRequest, "s/run cannot be parked until s/none ends: that is not known"),
        (until("s/run"), InvalidRequest, "that is none of the other executions of its session"),
        (until("t/other"), InvalidRequest, "that is none of the other executions of its session"),
        (until("a b"), InvalidRequest, "The execution id 'a b' is not"),
        (until(), InvalidRequest, "What an attempt is parked until must be"),
        ("{", InvalidRequest, "What an attempt is parked until must be"),
        ('{"ended": "s/a"}', InvalidRequest, "What an attempt is parked until must be"),
        ('{"ms": -1}', InvalidRequest, "What an attempt is parked until must be"),
        ('{"ms": true}', InvalidRequest, "What an attempt is parked until must be"),
        (until(*["s/a"] * (wire.PARK_LIMIT + 1)), LimitExceeded, "one of 101 executions ends; the limit is 100"),
    ]:
        with pytest.raises(error, match=words):
            await bench.engine.park(run, given)
    assert await bench.engine.complete(run, "1") == ""


async def test_an_effect_that_happens_once_and_what_is_no_effect_are_not_parked(bench: Bench) -> None:
    await bench.register(ONE | {"run": "COMPUTE"}, version_hash="h")
    await bench.start("s/pure")
    with pytest.raises(InvalidRequest, match="Node run cannot be parked: only an EFFECT that may be repeated can"):
        await bench.engine.park(await bench.claim(), until(ms=1))
    await bench.engine.register("once", "h", json.dumps({"nodes": {"run": {"type": "EFFECT", "dependencies": []}}}))
    await bench.start("s/once", workflow_id="once", effect="once", max_attempts=1)
    claimed = await bench.engine.poll("worker", "h", ["once"], LEASE_MS)
    assert claimed is not None
    with pytest.raises(InvalidRequest, match="only an EFFECT that may be repeated can"):
        await bench.engine.park(claimed.task.task_id, until(ms=1))


async def test_no_more_than_a_hundred_attempts_wait_for_one_execution(
    bench: Bench, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "AWAITED_BY_LIMIT", 1)
    await bench.engine.park(run, until("s/a"))
    await bench.start("s/more")
    with pytest.raises(LimitExceeded, match="1 attempts are parked until s/a ends; that is the limit"):
        await bench.engine.park(await bench.claim(), until("s/a"))


async def test_an_attempt_that_is_over_is_not_parked(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a"))
    assert await bench.engine.park(run, until("s/b")) == "Attempt 1 of node run is over; nothing was changed."


async def test_the_late_word_of_a_lost_attempt_ends_what_is_parked(bench: Bench, run: str) -> None:
    await bench.pass_time(LEASE_MS)
    await bench.engine.park(await bench.claim(), until("s/a"))
    assert await bench.engine.complete(run, '"late"') == ""
    assert (await bench.snapshot("s/run")).outputs == {"run": '"late"'}
    await bench.approve(execution_id="s/a")
    assert await bench.poll() is None


async def test_what_is_parked_is_cancelled_and_tried_again_as_what_is_ready(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a", ms=DAY_MS))
    await bench.engine.cancel("s/run")
    assert await bench.status("s/run") == "CANCELLED"
    await bench.approve(execution_id="s/a")
    assert await bench.poll() is None
    await bench.engine.resolve("s/run", "", Resolution("retry", ""))
    await bench.claim()


async def test_of_a_stopped_session_nothing_goes_on_before_it_does(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a", ms=1_000))
    await bench.engine.stop_session("s", "anna", "")
    await bench.pass_time(2_000)
    assert await bench.poll() is None
    await bench.engine.go_session("s")
    await bench.claim()


async def test_what_it_waits_for_is_taken_back_and_it_asks_again(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start("s/run")
    await ask(bench, "s/turn")
    await bench.engine.park(await bench.claim(), until("s/turn"))
    await bench.engine.stop_session("s", "", "")
    await bench.engine.forget("s", Forget(turn="s/turn"))
    assert await bench.poll() is None
    await bench.engine.go_session("s")
    again = await bench.claim()
    with pytest.raises(InvalidRequest, match="that is not known"):
        await bench.engine.park(again, until("s/turn"))


async def test_it_is_counted_as_parked_wherever_states_are_counted(bench: Bench, run: str) -> None:
    await bench.engine.park(run, until("s/a"))
    (session,) = await bench.engine.sessions("s/", 1)
    assert (session.parked, session.running, session.waiting) == (["s/run"], [], [])
    assert [each.execution_id for each, _ in await bench.engine.listed("", "PARKED", "", 9)] == ["s/run"]
    told: dict[str, Any] = await bench.engine.inspect()
    assert told["executions"] == {"PARKED": 1, "WAITING": 3}
    assert told["waiting"] == told["running"] == []
    assert (await bench.store.read(lambda reader: reader.count_tasks()))["WAITING", "EFFECT"] == 1


async def test_all_that_sleep_go_on_when_they_are_due_at_once(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    await bench.register(ONE)
    for n in range(300):
        await bench.start(f"s/{n}")
        await bench.engine.park(await bench.claim(), until(ms=1_000))
    await bench.pass_time(30_000)
    claimed: list[Claimed] = []
    while (found := await bench.poll()) is not None:
        claimed.append(found)
    assert len(claimed) == 300
