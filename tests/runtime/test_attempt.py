"""One attempt: its handler ends, is cancelled, takes no notice; and how that is told, once."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from nexum import workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, eventually
from pydantic import RootModel

from nexum_runtime.errors import TaskError
from nexum_runtime.worker import attempt as attempts
from nexum_runtime.worker.attempt import Attempt

Handler = Callable[[ContextView], Any]
STOPPED = TaskError("Its worker was stopped.")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "CANCEL_SECONDS", 0.05)


class Told:
    """What was told of attempts at a handler of one's own."""

    def __init__(self, slots: int = 1) -> None:
        self.ends: list[tuple[str, str | BaseException | None]] = []
        self._slots = asyncio.Semaphore(slots)

    def begin(
        self, handler: Handler, timeout_ms: int | None = None, stood_still: Callable[[], float] = lambda: 0.0
    ) -> Attempt:
        built = workflow("w").effect("run", RootModel[Any], handler).build()
        task_input: dict[str, Any] = {"input": {}, "deps": {}}
        if timeout_ms is not None:
            task_input["timeout_ms"] = timeout_ms
        claimed = pb.PollResponse(
            task_id="1-a.1", execution_id="e", node_id="run", input_json=json.dumps(task_input), idempotency_key="k"
        )
        return Attempt(built, claimed, "worker", self._slots, self._tell, stood_still)

    async def _tell(self, _: Attempt, output_json: str, error: BaseException | None) -> None:
        self.ends.append((output_json, error if error is None or error is STOPPED else str(error)))

    async def over(self, attempt: Attempt) -> list[tuple[str, str | BaseException | None]]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await attempt.over
        return self.ends


def stubborn(begun: asyncio.Event, release: asyncio.Event) -> Callable[[ContextView], Awaitable[str]]:
    """A handler that goes on when it is cancelled, until it is released."""

    async def handler(_: ContextView) -> str:
        begun.set()
        with suppress(asyncio.CancelledError):
            await release.wait()
        await release.wait()
        return "long after"

    return handler


async def test_a_handler_that_takes_no_notice_is_left_alone_and_its_failure_told_once() -> None:
    told, begun, release = Told(), asyncio.Event(), asyncio.Event()
    attempt = told.begin(stubborn(begun, release), timeout_ms=20)
    assert await told.over(attempt) == [("", "It took longer than its 20 ms.")]
    assert not attempt._job.done(), "it runs on"
    release.set()
    await attempt._job
    assert len(told.ends) == 1, "nobody hears of its end"


async def test_a_handler_whose_thread_takes_no_notice_is_left_alone_too() -> None:
    told, release = Told(), threading.Event()
    attempt = told.begin(lambda _: release.wait(PATIENCE_SECONDS), timeout_ms=20)
    assert await told.over(attempt) == [("", "It took longer than its 20 ms.")]
    release.set()


@pytest.mark.parametrize("how", ["its time is up", "it is stopped"])
async def test_a_handler_that_returns_a_moment_after_it_was_cancelled_is_taken_at_its_word(how: str) -> None:
    told, begun = Told(), asyncio.Event()

    async def hurry(_: ContextView) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "half of it"

    attempt = told.begin(hurry, timeout_ms=20 if how == "its time is up" else None)
    await begun.wait()
    if how == "it is stopped":
        attempt.cancel(STOPPED)
    assert await told.over(attempt) == [('"half of it"', None)]


async def test_a_handler_that_returns_in_the_moment_in_which_it_is_left_alone_is_told_once() -> None:
    told, begun, release = Told(), asyncio.Event(), asyncio.Event()
    attempt = told.begin(stubborn(begun, release))
    await begun.wait()
    attempt.cancel(STOPPED)
    await asyncio.sleep(0)
    release.set()  # it returns at its next turn, before anything that begins now
    attempt._leave_alone()
    await told.over(attempt)
    await attempt._job
    assert told.ends == [("", STOPPED)]


async def test_an_attempt_that_is_cancelled_before_its_first_turn_is_told_and_its_handler_never_runs() -> None:
    told = Told()
    ran: list[ContextView] = []
    attempt = told.begin(ran.append)
    attempt.cancel(STOPPED)
    assert await told.over(attempt) == [("", STOPPED)]
    assert ran == []


async def test_the_first_reason_holds_and_what_has_ended_is_cancelled_no_more() -> None:
    told, begun = Told(), asyncio.Event()

    async def hang(_: ContextView) -> None:
        begun.set()
        await asyncio.Event().wait()

    attempt = told.begin(hang)
    await begun.wait()
    attempt.cancel(STOPPED)
    attempt.cancel(TaskError("another"))
    assert await told.over(attempt) == [("", STOPPED)]
    attempt.cancel(TaskError("too late"))
    await attempt._job
    assert told.ends == [("", STOPPED)]


async def test_an_attempt_has_its_turn_when_another_has_left_its_slot_and_not_when_that_was_told() -> None:
    told, begun, release = Told(slots=1), asyncio.Event(), asyncio.Event()
    ran: list[str] = []
    first = told.begin(stubborn(begun, release))
    await begun.wait()
    waits = told.begin(lambda _: ran.append("waits"))
    given_up = told.begin(lambda _: ran.append("given up"))
    first.cancel(STOPPED)
    await told.over(first)
    await asyncio.sleep(0)
    given_up.cancel(STOPPED)
    await told.over(given_up)
    assert ran == []
    release.set()
    assert (await told.over(waits))[-1] == ("null", None)
    assert ran == ["waits"]


async def test_nothing_is_told_of_what_is_abandoned() -> None:
    told, begun, stopped = Told(), asyncio.Event(), asyncio.Event()

    async def hang(_: ContextView) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    attempt = told.begin(hang)
    await begun.wait()
    attempt.abandon()
    await eventually(attempt._job.done)
    assert stopped.is_set()
    assert told.ends == []


async def test_an_attempt_is_over_also_when_it_could_not_be_told() -> None:
    async def fail(*_: Any) -> None:
        raise asyncio.CancelledError  # as by a stream that is cut off

    built = workflow("w").effect("run", RootModel[Any], lambda _: 1).build()
    claimed = pb.PollResponse(task_id="1-a.1", node_id="run", input_json='{"input":{},"deps":{}}', idempotency_key="k")
    attempt = Attempt(built, claimed, "worker", asyncio.Semaphore(1), fail)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await attempt.over


async def test_the_time_that_the_event_loop_stood_still_does_not_count_for_a_timeout() -> None:
    told, release, looks = Told(), asyncio.Event(), 0

    async def handler(_: ContextView) -> str:
        await release.wait()
        return "in time"

    def stood_still() -> float:
        nonlocal looks
        looks += 1
        return 0.0 if looks == 1 else 1_000.0  # since it began

    attempt = told.begin(handler, timeout_ms=1, stood_still=stood_still)
    await eventually(lambda: looks == 2, "the end of its time, were it not for the standstill")
    release.set()
    assert await told.over(attempt) == [('"in time"', None)]
