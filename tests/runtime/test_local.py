"""Local effects: what a process executes itself, with a real server and processes that die in the middle of it.

The lease is 30 s, longer than any test waits: what is taken over is so because its process was seen to have gone.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from local_process import ASK
from processes import NexumDev, Process, environment, eventually, remote

from nexum_runtime import (
    Client,
    ExecutionTimeout,
    LimitExceeded,
    Outcome,
    TaskError,
    idempotency_key,
)
from nexum_runtime.client import client as client_module
from nexum_runtime.client import local
from nexum_runtime.client.way import Claim
from nexum_runtime.server.app import Server

MIB = 1024 * 1024
KEY = f"e:ask:{ASK.version_hash}"


class Effect:
    """What is executed here: counts how often it has begun, and goes on when it is let."""

    def __init__(self, text: str = "found") -> None:
        self.begun = 0
        self.go_on = asyncio.Event()
        self._text = text

    async def __call__(self) -> Any:
        self.begun += 1
        await self.go_on.wait()
        return {"text": self._text}


async def at_once() -> Any:
    return {"text": "at once"}


async def never() -> Any:
    raise AssertionError("it is run again")


async def events(client: Client, execution_id: str = "e") -> list[dict[str, Any]]:
    (history,) = [each async for each in client.history(execution_id)]
    found: list[dict[str, Any]] = history["events"]
    return found


async def story(client: Client, execution_id: str = "e") -> list[str]:
    return [event["type"] for event in await events(client, execution_id)]


async def lost(client: Client) -> str:
    """Why the first attempt was given up."""
    return str((await events(client))[2]["error"])


def told(outcome: Outcome) -> tuple[str, str | None, str | None]:
    return outcome.status, outcome.error_code, outcome.error


# In one process


async def test_an_effect_is_executed_once_and_its_result_is_there_for_every_later_run(
    client: Client, address: str
) -> None:
    effect = Effect()
    effect.go_on.set()
    first = await client.run_local(ASK, {"q": 1}, effect, execution_id="e")
    assert (first.before, first.status, first.outputs) == ("NEW", "COMPLETED", {"ask": {"text": "found"}})
    async with Client(address) as another:
        again = await another.run_local(ASK, {"q": 1}, never, execution_id="e")
    assert (again.before, again.outputs, again.attempts) == ("COMPLETED", first.outputs, first.attempts)
    assert await story(client) == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]


async def test_two_coroutines_of_a_process_execute_an_effect_once_and_both_have_its_result(client: Client) -> None:
    effect = Effect()
    runs = [asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e")) for _ in range(2)]
    await eventually(lambda: effect.begun)
    effect.go_on.set()
    assert [(await run).outputs for run in runs] == [{"ask": {"text": "found"}}] * 2
    assert effect.begun == 1


async def test_many_effects_at_once_are_each_executed_once(server: Server, client: Client) -> None:
    effect = Effect()
    runs = [asyncio.create_task(client.run_local(ASK, {}, effect, execution_id=f"s/{n}")) for n in range(30)]
    await eventually(lambda: effect.begun == 30)
    effect.go_on.set()
    assert {(await run).status for run in runs} == {"COMPLETED"}
    assert effect.begun == 30
    await eventually(lambda: not server.waiting._calls, "nobody attends any more")


async def test_every_attempt_has_the_same_idempotency_key(client: Client) -> None:
    async def fail() -> Any:
        raise ValueError(idempotency_key())

    async def succeed() -> Any:
        return {"text": idempotency_key()}

    with pytest.raises(ValueError, match=KEY):
        await client.run_local(ASK, {}, fail, execution_id="e")
    again = await client.run_local(ASK, {}, succeed, execution_id="e", restart="failed")
    assert again.outputs == {"ask": {"text": KEY}}
    with pytest.raises(LookupError):
        idempotency_key()


async def test_what_an_effect_raises_is_raised_and_recorded_and_it_is_run_again_only_when_asked(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")

    async def fail() -> Any:
        raise ConnectionError("401 for sk-0123456789 \ud800")

    with pytest.raises(ConnectionError, match="401"):
        await client.run_local(ASK, {}, fail, execution_id="e")
    failed = await client.run_local(ASK, {}, never, execution_id="e")
    assert told(failed) == ("FAILED", "TOOL_ERROR", "ConnectionError: 401 for [SOME_API_KEY] ?")
    again = await client.run_local(ASK, {}, at_once, execution_id="e", restart="failed")
    assert (again.before, again.status) == ("FAILED", "COMPLETED")


@pytest.mark.parametrize(
    ("error", "code", "runs_again"),
    [
        (TaskError("It is closed."), "TOOL_ERROR", False),
        (TaskError("It is closed.", begun=False), "TOOL_ERROR", True),
        (TaskError("It is closed.", unknown=True), "OUTCOME_UNKNOWN", False),
    ],
    ids=["known", "not begun", "unknown"],
)
async def test_an_effect_that_happens_once_says_itself_what_its_failure_means(
    client: Client, error: TaskError, code: str, runs_again: bool
) -> None:
    async def fail() -> Any:
        raise error

    with pytest.raises(TaskError, match=r"It is closed\."):
        await client.run_local(ASK, {}, fail, execution_id="e", effect="once")
    status, found, text = told(await client.status("e"))
    assert (status, found, str(text).startswith("It is closed")) == ("FAILED", code, True)
    again = await client.run_local(
        ASK, {}, at_once if runs_again else never, execution_id="e", effect="once", restart="failed"
    )
    assert again.status == ("COMPLETED" if runs_again else "FAILED")


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        ("x" * 17 * MIB, LimitExceeded, "is 17.0 MiB; the limit is 16.0 MiB"),
        (object(), TypeError, "Object of type object is not JSON serializable"),
        (float("nan"), ValueError, "Out of range float values are not JSON compliant"),
    ],
    ids=["too large", "no JSON", "no number"],
)
async def test_a_result_that_cannot_be_recorded_leaves_an_effect_that_happens_once_unknown(
    client: Client, result: Any, error: type[Exception], words: str
) -> None:
    async def execute() -> Any:
        return result

    await client.register(ASK)  # by which it learns of the limit
    with pytest.raises(error, match=words.replace(".", r"\.")):
        await client.run_local(ASK, {}, execute, execution_id="e", effect="once")
    outcome = await client.run_local(ASK, {}, never, execution_id="e", effect="once", restart="failed")
    assert (outcome.status, outcome.error_code) == ("FAILED", "OUTCOME_UNKNOWN")
    assert words in str(outcome.error)


async def test_a_result_over_a_limit_that_only_the_server_knows_is_a_failure_that_names_it(
    client: Client, address: str
) -> None:
    await client.register(ASK)

    async def execute() -> Any:
        return "x" * 17 * MIB

    async with Client(address) as knows_no_limit:
        outcome = await knows_no_limit.run_local(ASK, {}, execute, execution_id="e")
    assert (outcome.status, outcome.error_code) == ("FAILED", "TOOL_ERROR")
    assert "is 17.0 MiB; the limit is 16.0 MiB" in str(outcome.error)


async def test_who_leaves_without_a_result_has_gone_and_the_next_one_takes_over(client: Client) -> None:
    async with client.local_effect(ASK, {}, execution_id="e") as effect:
        assert (effect.outcome, effect.before) == (None, "NEW")
    again = await client.run_local(ASK, {}, at_once, execution_id="e")
    assert (again.before, again.attempts) == ("RUNNING", 2)
    assert (await lost(client)).endswith(" has gone.")
    async with client.local_effect(ASK, {}, execution_id="e") as effect:
        assert effect.outcome is not None
        assert effect.outcome.outputs == {"ask": {"text": "at once"}}


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_cancelled_effect_is_taken_over_at_once_unless_it_happens_once(client: Client, effect: str) -> None:
    first, second = Effect(), Effect()
    running = asyncio.create_task(client.run_local(ASK, {}, first, execution_id="e", effect=effect))
    await eventually(lambda: first.begun)
    waiting = asyncio.create_task(client.run_local(ASK, {}, second, execution_id="e", effect=effect))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    second.go_on.set()
    outcome = await waiting
    if effect == "once":
        assert (outcome.error_code, second.begun) == ("OUTCOME_UNKNOWN", 0)
    else:
        assert (outcome.status, outcome.attempts, second.begun) == ("COMPLETED", 2, 1)
    assert (await lost(client)).endswith(" has gone.")


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_an_effect_that_is_done_is_recorded_also_if_its_caller_is_cancelled_meanwhile(
    client: Client, effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, is_being_told = client.complete, asyncio.Event()

    async def tell_when_it_is_too_late(*arguments: Any) -> str:
        monkeypatch.setattr(client, "complete", complete)
        is_being_told.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(client, "complete", tell_when_it_is_too_late)
    executing = asyncio.create_task(client.run_local(ASK, {}, at_once, execution_id="e", effect=effect))
    await is_being_told.wait()
    executing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await executing
    outcome = await client.run_local(ASK, {}, never, execution_id="e", effect=effect)
    assert outcome.outputs == {"ask": {"text": "at once"}}
    assert await story(client) == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]


async def test_an_effect_that_fails_while_others_wait_is_executed_by_one_of_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.client.client.FIRST_WAIT_MS", 20)
    failing, effect = Effect(), Effect()

    async def fail() -> Any:
        await failing()
        raise ValueError("It is broken.")

    running = asyncio.create_task(client.run_local(ASK, {}, fail, execution_id="e"))
    await eventually(lambda: failing.begun)
    waits = list[str]()
    options: Any = {"execution_id": "e", "restart": "failed", "on_wait": waits.append}
    waiting = [asyncio.create_task(client.run_local(ASK, {}, effect, **options)) for _ in range(3)]
    await eventually(lambda: len(waits) == 3)
    failing.go_on.set()
    with pytest.raises(ValueError, match="broken"):
        await running
    await eventually(lambda: effect.begun)
    effect.go_on.set()
    assert {(await each).status for each in waiting} == {"COMPLETED"}
    assert effect.begun == 1


async def test_an_effect_that_happens_once_and_fails_is_not_executed_by_one_that_waits(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.client.client.FIRST_WAIT_MS", 20)
    failing = Effect()

    async def fail() -> Any:
        await failing()
        raise ValueError("It is broken.")

    once: Any = {"execution_id": "e", "effect": "once", "restart": "failed"}
    running = asyncio.create_task(client.run_local(ASK, {}, fail, **once))
    await eventually(lambda: failing.begun)
    waits = asyncio.Event()
    waiting = asyncio.create_task(client.run_local(ASK, {}, never, on_wait=lambda _: waits.set(), **once))
    await waits.wait()
    failing.go_on.set()
    with pytest.raises(ValueError, match="broken"):
        await running
    assert told(await waiting) == ("FAILED", "TOOL_ERROR", "ValueError: It is broken.")


async def test_what_is_cancelled_by_a_person_meanwhile_is_not_recorded(client: Client) -> None:
    effect = Effect()
    running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e"))
    await eventually(lambda: effect.begun)
    await client.cancel("e")
    effect.go_on.set()
    assert told(await running) == ("CANCELLED", "CANCELLED", "The execution was cancelled.")


async def test_who_waits_for_another_process_is_told_so_and_gives_up_in_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.client.client.FIRST_WAIT_MS", 20)
    monkeypatch.setattr("nexum_runtime.client.client.WAIT_MS", 20)
    effect, waits = Effect(), set[str]()
    running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e"))
    await eventually(lambda: effect.begun)
    with pytest.raises(ExecutionTimeout, match=r"nexum show e"):
        await client.run_local(ASK, {}, never, execution_id="e", timeout=0.2, on_wait=waits.add)
    waiting = asyncio.create_task(client.run_local(ASK, {}, at_once, execution_id="e", on_wait=waits.add))
    running.cancel()
    assert (await waiting).status == "COMPLETED"
    assert waits == {"result"}, "no worker is waited for"


async def test_a_lease_is_kept_for_as_long_as_the_effect_takes(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEASE_MS", 1_000)
    effect, beats = Effect(), list[Any]()
    heartbeat = client.heartbeat

    async def noted(worker_id: str, task_ids: Any) -> list[str]:
        beats.append(task_ids)
        return await heartbeat(worker_id, task_ids)

    monkeypatch.setattr(client, "heartbeat", noted)
    running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e"))
    await eventually(lambda: len(beats) >= 5, "heartbeats beyond the first lease")
    effect.go_on.set()
    assert (await running).status == "COMPLETED"
    assert await story(client) == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]
    assert len({task_id for beat in beats for task_id in beat}) == 1


# A server that goes away


@pytest.fixture
async def nexum(tmp_path: Path) -> AsyncIterator[NexumDev]:
    async with NexumDev(tmp_path) as nexum:
        yield nexum


async def test_the_result_of_an_effect_during_which_the_server_was_killed_is_recorded(
    nexum: NexumDev, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SPEAK_UP_SECONDS", 0)
    async with Client(nexum.address) as client:
        effect, waits = Effect(), list[str]()
        running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e", on_wait=waits.append))
        await eventually(lambda: effect.begun)
        nexum.kill()
        effect.go_on.set()
        await eventually(lambda: "server" in waits, "a word on the server that is away")
        await nexum.restart()
        assert (await running).outputs == {"ask": {"text": "found"}}
        assert (await client.run_local(ASK, {}, never, execution_id="e")).attempts == 1


async def test_a_process_that_dies_after_the_server_was_restarted_is_seen_to_have_gone(
    nexum: NexumDev, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Client(nexum.address) as client, Client(nexum.address) as dying:
        effect, attended = Effect(), list[str]()
        attend = dying.attend

        async def noted(owner: str) -> AsyncIterator[None]:
            async for each in attend(owner):
                attended.append(owner)
                yield each

        monkeypatch.setattr(dying, "attend", noted)
        running = asyncio.create_task(dying.run_local(ASK, {}, effect, execution_id="e"))
        await eventually(lambda: effect.begun)
        await client.register(ASK)  # a write, and what was begun before it is committed with it
        await nexum.restart()
        waiting = asyncio.create_task(client.run_local(ASK, {}, at_once, execution_id="e"))
        await eventually(lambda: attended, "it is seen by the new server")
        running.cancel()
        assert (await waiting).attempts == 2
        assert (await lost(client)).endswith(" has gone.")


async def test_a_claim_whose_answer_died_with_the_server_is_had_again_at_once(tmp_path: Path) -> None:
    env = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT="start-committed")
    nexum = NexumDev(tmp_path, env=env)
    nexum.start()
    await nexum.ready()
    async with Client(nexum.address) as client:
        running = asyncio.create_task(client.run_local(ASK, {}, at_once, execution_id="e", effect="once"))
        assert await nexum.ended() == -signal.SIGKILL
        again = NexumDev(tmp_path, port=nexum.port, database=nexum.database)
        async with again:
            assert (await running).status == "COMPLETED"
            assert (await story(client))[:4] == [
                "ExecutionStarted", "AttemptStarted", "AttemptReturned", "AttemptStarted"
            ]  # fmt: skip


@asynccontextmanager
async def effect_of_a_lost_start(folder: Path) -> AsyncIterator[tuple[Client, Effect, "asyncio.Task[Outcome]"]]:
    """An effect that has begun, at a server that was killed before it had committed that, and is there again."""
    env = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT="begun-uncommitted")
    nexum = NexumDev(folder, env=env)
    nexum.start()
    await nexum.ready()
    async with Client(nexum.address) as client:
        effect = Effect()
        running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e"))
        await eventually(lambda: effect.begun)
        assert await nexum.ended() == -signal.SIGKILL
        async with NexumDev(folder, port=nexum.port, database=nexum.database):
            yield client, effect, running


async def test_an_effect_whose_start_was_lost_with_the_server_is_recorded_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with effect_of_a_lost_start(tmp_path) as (client, effect, running):
        left = list[str]()
        leave = remote(client).calls._leave

        def noted(number: str, ended: "asyncio.Future[None]") -> None:
            left.append(number)
            leave(number, ended)

        monkeypatch.setattr(remote(client).calls, "_leave", noted)
        effect.go_on.set()
        assert told(await running) == ("COMPLETED", None, None)
        assert (await client.run_local(ASK, {}, never, execution_id="e")).outputs == {"ask": {"text": "found"}}
        assert await story(client) == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]
        assert (effect.begun, len(left)) == (1, 1), "nothing is left of the claim by which it was recorded"


async def test_an_effect_whose_start_is_lost_again_as_it_is_recorded_is_recorded_all_the_same(tmp_path: Path) -> None:
    env = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT="begun-uncommitted")
    first = NexumDev(tmp_path, env=env)
    first.start()
    await first.ready()
    async with Client(first.address) as client:
        effect = Effect()
        running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="e"))
        assert await first.ended() == -signal.SIGKILL
        effect.go_on.set()
        async with NexumDev(tmp_path, port=first.port, database=first.database, env=env) as second:
            assert await second.ended() == -signal.SIGKILL
        async with NexumDev(tmp_path, port=first.port, database=first.database):
            assert told(await running) == ("COMPLETED", None, None)
            assert effect.begun == 1


async def test_an_effect_whose_start_was_lost_takes_the_result_of_who_was_first_since(tmp_path: Path) -> None:
    async with effect_of_a_lost_start(tmp_path) as (client, effect, running):
        await client.run_local(ASK, {}, at_once, execution_id="e")
        effect.go_on.set()
        assert (await running).outputs == {"ask": {"text": "at once"}}


# Processes that die


class Stage:
    """A server, and processes that execute the effect `e` themselves."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder, self.client = folder, client
        self.ledger, self.gate = folder / "ledger", folder / "gate"
        self.ledger.touch()
        self._count = 0

    def process(self, **changes: str) -> Process:
        self._count += 1
        env = environment(NEXUM_ADDRESS=self.client.address, LEDGER=str(self.ledger), GATE=str(self.gate), **changes)
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("local_process.py"), "e"]
        process = Process(command, self.folder / f"process-{self._count}.log", env=env)
        process.start()
        return process

    async def in_the_middle(self, **changes: str) -> Process:
        """A process that has begun the effect."""
        process = self.process(**changes)
        await eventually(lambda: process.pid in self.begun() or not process.alive)
        assert process.alive, process.output
        return process

    def begun(self) -> list[int]:
        """The pids of those who began it."""
        return [json.loads(line)[0] for line in self.ledger.read_text().splitlines()]

    async def said(self, process: Process) -> Any:
        """What came of it, which is all that it prints."""
        assert await process.ended() == 0, process.output
        return json.loads(process.output)


@pytest.fixture
def stage(tmp_path: Path, client: Client) -> Stage:
    return Stage(tmp_path, client)


async def test_a_process_that_is_killed_in_the_middle_is_followed_at_once_by_one_that_waits(stage: Stage) -> None:
    first = await stage.in_the_middle()
    second = stage.process(OWN_LOOP="1")
    first.kill()
    stage.gate.touch()
    assert await stage.said(second) == ["COMPLETED", f"by {second.pid}"]
    assert stage.begun() == [first.pid, second.pid]
    assert (await lost(stage.client)).startswith(f"The program (process {first.pid}) ")
    assert (await lost(stage.client)).endswith(" has gone.")


async def test_an_effect_that_happens_once_is_unknown_when_its_process_is_killed_and_never_begun_again(
    stage: Stage,
) -> None:
    first = await stage.in_the_middle(EFFECT="once")
    first.kill()
    outcome = await stage.client.run_local(ASK, {}, never, execution_id="e", effect="once", restart="failed")
    status, code, error = told(outcome)
    assert (status, code) == ("FAILED", "OUTCOME_UNKNOWN")
    assert str(error).endswith(" has gone: the effect may or may not have happened.")
    assert stage.begun() == [first.pid]


@pytest.mark.parametrize(("point", "effects"), [("task-claimed", 0), ("effect-done", 1)])
async def test_a_process_that_dies_before_or_after_its_effect_is_followed_at_once(
    stage: Stage, point: str, effects: int
) -> None:
    stage.gate.touch()
    first = stage.process(NEXUM_CRASH_AT=point)
    assert await first.ended() == -signal.SIGKILL
    outcome = await stage.client.run_local(ASK, {}, at_once, execution_id="e")
    assert (outcome.outputs, outcome.attempts) == ({"ask": {"text": "at once"}}, 2)
    assert len(stage.begun()) == effects
    assert (await lost(stage.client)).endswith(" has gone.")


async def test_a_process_that_is_interrupted_by_ctrl_c_is_followed_at_once_and_says_nothing_of_its_own(
    stage: Stage,
) -> None:
    first = await stage.in_the_middle()
    first.send(signal.SIGINT)
    assert await first.ended() != 0
    assert first.output.count("Traceback") <= 2, first.output  # KeyboardInterrupt, and the CancelledError it came of
    for noise in ("Task was destroyed", "never retrieved", "Exception ignored", "RuntimeError"):
        assert noise not in first.output
    assert (await stage.client.run_local(ASK, {}, at_once, execution_id="e")).attempts == 2
    assert (await lost(stage.client)).endswith(" has gone.")


async def test_a_process_that_is_stopped_loses_its_effect_with_its_lease_and_takes_the_other_s_result(
    stage: Stage,
) -> None:
    first = await stage.in_the_middle(LEASE_MS="1000")
    first.send(signal.SIGSTOP)
    assert (await stage.client.run_local(ASK, {}, at_once, execution_id="e")).attempts == 2
    assert (await lost(stage.client)).endswith(" was silent for 1 s.")
    first.send(signal.SIGCONT)
    stage.gate.touch()
    assert await stage.said(first) == ["COMPLETED", "at once"]


async def test_two_processes_at_once_execute_an_effect_once_and_both_have_its_result(stage: Stage) -> None:
    stage.gate.touch()
    processes = [stage.process(), stage.process(OWN_LOOP="1")]
    first, second = [await stage.said(each) for each in processes]
    assert first == second == ["COMPLETED", f"by {stage.begun()[0]}"]
    assert len(stage.begun()) == 1


async def test_a_stream_that_ends_as_the_effect_does_leaves_nobody_present(client: Client) -> None:
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with local.presence(client, "process-1-a", "e1", "task.1", Claim(lambda: None, lost), lambda why: None):
        lost.set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not [each for each in asyncio.all_tasks() if "_attend" in repr(each.get_coro())]


# Who watches


async def test_what_on_wait_raises_is_logged_once_and_is_nobodys_result(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT_MS", 20)
    monkeypatch.setattr(client_module, "WAIT_MS", 20)
    told: list[str] = []

    def watch(waiting: str) -> None:
        told.append(waiting)
        raise RuntimeError("nobody listens")

    executing = asyncio.create_task(client.execute(ASK, {}, execution_id="e", on_wait=watch))
    await eventually(lambda: len(told) >= 3)
    claimed = await client.poll("worker-1", ASK, lease_ms=60_000)
    assert claimed is not None
    await client.complete(claimed.task_id, '{"text": "found"}')
    assert (await executing).status == "COMPLETED"
    assert [record.name for record in caplog.records] == ["nexum.client"]
