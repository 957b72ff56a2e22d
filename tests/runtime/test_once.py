"""What is attempted at most once: the rules on a real store, and the demo as a person sees it."""

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import NEXUM, PATIENCE_SECONDS, Finished, environment, eventually, run
from test_demo import ROOT, SHORT_LEASE_MS, Stage, completed, ended_calls, no_traceback, stage
from test_engine import CHAIN, LEASE_MS, ONE, PAIR, Bench, bench

from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.model.shapes import Resolution, Started

__all__ = ["bench", "stage"]

RETRY = Resolution("retry")


def happened(value: Any) -> Resolution:
    return Resolution("result", json.dumps(value))


async def start_once(bench: Bench, restart: str = "") -> Started:
    return await bench.start(effect="once", max_attempts=1, restart=restart)


async def resolve(bench: Bench, word: Resolution, node_id: str = "") -> str:
    return await bench.engine.resolve("e", node_id, word)


async def outcome(bench: Bench) -> tuple[str, str | None, str | None]:
    execution = (await bench.snapshot()).execution
    return str(execution.status), execution.error_code, execution.error


async def nothing_is_left_to_do(bench: Bench) -> bool:
    await bench.pass_time(60_000)
    return await bench.poll() is None


async def lost(bench: Bench) -> str:
    """A `once` execution whose worker vanished; returns the attempt's task id."""
    await bench.register(ONE)
    await start_once(bench)
    (task_id,) = await bench.lose(1)
    return task_id


# One attempt, whatever ends it


async def vanish(bench: Bench, _: str) -> None:
    await bench.pass_time(LEASE_MS)


async def stop(bench: Bench, task_id: str) -> None:
    await bench.engine.fail(task_id, "Its worker was stopped.", interrupted=True)


async def time_out(bench: Bench, task_id: str) -> None:
    await bench.engine.fail(task_id, "It took longer than its 60.0 s.", unknown=True)


async def outgrow(bench: Bench, task_id: str) -> None:
    bench.engine.max_message_bytes = 10
    await bench.engine.complete(task_id, json.dumps("x" * 10))


async def cancel(bench: Bench, _: str) -> None:
    await bench.engine.cancel("e")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (vanish, "Worker worker was silent for 10 s"),
        (stop, "Its worker was stopped"),
        (time_out, "It took longer than its 60.0 s"),
        (outgrow, "The result is 12 B; the limit is 10 B (nexum dev --max-message-mib)"),
        (cancel, "It was cancelled while it ran"),
    ],
)
async def test_an_effect_that_happens_once_and_was_cut_short_is_unknown_and_never_begun_again(
    bench: Bench, end: Callable[[Bench, str], Any], reason: str
) -> None:
    await bench.register(ONE)
    await start_once(bench)
    await end(bench, await bench.claim())
    unknown = ("FAILED", "OUTCOME_UNKNOWN", f"{reason}: the effect may or may not have happened.")
    assert await outcome(bench) == unknown
    for restart in ("", "failed", "unknown"):
        assert (await start_once(bench, restart=restart)).before == "FAILED"
    assert await outcome(bench) == unknown
    assert await nothing_is_left_to_do(bench)


async def test_an_effect_that_happens_once_and_says_itself_that_it_failed_has_failed(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    await bench.engine.fail(await bench.claim(), "The card was refused.")
    assert await outcome(bench) == ("FAILED", "TOOL_ERROR", "The card was refused.")
    await start_once(bench, restart="failed")
    await bench.start(effect="read", restart="failed")
    assert await nothing_is_left_to_do(bench), "who restarts what failed means nothing that happens once"
    await bench.start(effect="read", restart="unknown")
    assert await bench.poll() is not None, "unless all of it is asked for"


async def test_what_is_not_declared_once_is_not_unknown_because_its_last_attempt_timed_out(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="read", max_attempts=2)
    for _ in range(2):
        await bench.engine.fail(await bench.claim(), "It took longer than its 60.0 s.", unknown=True)
        await bench.pass_time(30_000)
    assert await outcome(bench) == ("FAILED", "TOOL_ERROR", "It took longer than its 60.0 s.")


async def test_an_effect_that_happens_once_has_one_attempt_and_no_other_number(bench: Bench) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match="An effect that happens once has one attempt, not 2"):
        await bench.start(effect="once", max_attempts=2)
    with pytest.raises(InvalidRequest, match="nexum-effect is 'twice'; it can be read, idempotent, once"):
        await bench.start(effect="twice")


# The worker's late word


async def test_a_slow_worker_of_an_unknown_outcome_is_let_finish_and_its_result_settles_it(bench: Bench) -> None:
    task_id = await lost(bench)
    assert await bench.engine.heartbeat("worker", [task_id]) == [], "it is not told to stop"
    assert await bench.engine.complete(task_id, '"sent"') == ""
    assert await outcome(bench) == ("COMPLETED", None, None)
    assert (await start_once(bench)).before == "COMPLETED"


async def test_a_slow_worker_s_failure_settles_an_unknown_outcome_as_well(bench: Bench) -> None:
    task_id = await lost(bench)
    assert await bench.engine.fail(task_id, "The card was refused.") == ""
    assert await outcome(bench) == ("FAILED", "TOOL_ERROR", "The card was refused.")
    assert [(e["type"], e.get("late")) for e in await bench.events()][-1] == ("AttemptFailed", True)
    assert "is over" in await bench.engine.fail(task_id, "again")
    assert "is FAILED" in await bench.engine.complete(task_id, "1")


@pytest.mark.parametrize("flags", [{"unknown": True}, {"interrupted": True}])
async def test_a_late_word_that_does_not_know_either_settles_nothing(bench: Bench, flags: dict[str, bool]) -> None:
    task_id = await lost(bench)
    assert "is over; nothing was changed" in await bench.engine.fail(task_id, "It was too slow.", **flags)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"


async def test_a_cancelled_effect_that_happens_once_is_let_finish_and_tells_what_came_of_it(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    task_id = await bench.claim()
    assert "may or may not have happened" in await bench.engine.cancel("e")
    assert await bench.engine.heartbeat("worker") == []
    assert await bench.engine.heartbeat("worker", [task_id]) == []
    assert await bench.engine.complete(task_id, '"sent"') == ""
    assert await outcome(bench) == ("COMPLETED", None, None)


# A person's word


async def test_a_person_s_result_is_the_result(bench: Bench) -> None:
    task_id = await lost(bench)
    assert await resolve(bench, happened("receipt 17")) == "Execution e is COMPLETED."
    assert (await bench.snapshot()).outputs == {"run": '"receipt 17"'}
    assert (await start_once(bench, restart="failed")).before == "COMPLETED"
    assert await bench.engine.heartbeat("worker", [task_id]) == [task_id], "its word is no longer waited for"
    assert "was completed already" in await bench.engine.complete(task_id, '"late"')
    assert (await bench.snapshot()).outputs == {"run": '"receipt 17"'}
    assert await bench.story() == [
        "ExecutionStarted",
        "AttemptStarted run 1",
        "LeaseExpired run 1",
        "ExecutionFailed",
        "OutcomeResolved run 1",
        "ExecutionRestarted",
        "ExecutionCompleted",
    ]


async def test_a_person_s_reason_is_why_it_failed_for_good(bench: Bench) -> None:
    task_id = await lost(bench)
    assert await resolve(bench, Resolution("failed", "The bank never saw it.")) == "Execution e is FAILED."
    failed = ("FAILED", "TOOL_ERROR", "The bank never saw it.")
    assert await outcome(bench) == failed
    assert (await start_once(bench, restart="failed")).before == "FAILED"
    assert await bench.engine.heartbeat("worker", [task_id]) == [task_id]
    assert "is FAILED; this result was not recorded" in await bench.engine.complete(task_id, '"late"')
    assert "is over; nothing was changed" in await bench.engine.fail(task_id, "late")
    assert await outcome(bench) == failed
    assert await nothing_is_left_to_do(bench)


async def test_a_retry_is_exactly_one_attempt_more_by_any_worker_and_wakes_whoever_waits(bench: Bench) -> None:
    await lost(bench)
    assert await resolve(bench, RETRY) == "Execution e is tried again."
    waiting = asyncio.create_task(bench.engine.snapshot("e", wait_ms=60_000))
    assert (await start_once(bench)).before == "RUNNING"
    await bench.engine.complete(await bench.claim("another"), '"sent"')
    assert (await waiting).outputs == {"run": '"sent"'}


async def test_a_retry_that_is_lost_as_well_is_unknown_again(bench: Bench) -> None:
    await lost(bench)
    await resolve(bench, RETRY)
    await bench.lose(1)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"
    assert await nothing_is_left_to_do(bench)
    assert (await bench.story()).count("AttemptStarted run 2") == 1


async def test_after_a_retry_the_first_result_wins(bench: Bench) -> None:
    first = await lost(bench)
    await resolve(bench, RETRY)
    second = await bench.claim("another")
    assert await bench.engine.complete(first, '"by the slow one"') == ""
    assert "was completed already" in await bench.engine.complete(second, '"by the other"')
    assert (await bench.snapshot()).outputs == {"run": '"by the slow one"'}


async def test_what_failed_in_its_own_words_or_was_cancelled_can_be_tried_again_by_a_person(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    await bench.engine.fail(await bench.claim(), "no luck")
    await resolve(bench, RETRY)
    await bench.engine.cancel("e")
    await resolve(bench, RETRY)
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


@pytest.mark.parametrize("word", [happened(1), Resolution("failed", "no"), RETRY], ids=lambda word: str(word.kind))
async def test_only_what_ended_without_a_result_can_be_resolved(bench: Bench, word: Resolution) -> None:
    with pytest.raises(NotFound, match="No execution 'e' is known"):
        await resolve(bench, word)
    await bench.register(ONE)
    await start_once(bench)
    with pytest.raises(InvalidRequest, match="Execution e is RUNNING; "):
        await resolve(bench, word)
    task_id = await bench.claim()
    with pytest.raises(InvalidRequest, match="Execution e is RUNNING; "):
        await resolve(bench, word)
    await bench.engine.complete(task_id, "1")
    with pytest.raises(InvalidRequest, match="Execution e is COMPLETED; "):
        await resolve(bench, word)
    assert "OutcomeResolved" not in " ".join(await bench.story())


async def test_a_failure_that_is_known_cannot_be_settled_otherwise(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    await bench.engine.fail(await bench.claim(), "no luck")
    for word in (happened(1), Resolution("failed", "no")):
        with pytest.raises(InvalidRequest, match=r"is FAILED \(TOOL_ERROR\); no outcome of it is unknown"):
            await resolve(bench, word)


@pytest.mark.parametrize(
    ("word", "node_id", "sentence"),
    [
        (Resolution("maybe"), "", "nexum-resolution is 'maybe'; it can be result, failed or retry"),
        (Resolution("result", "{"), "", "The result of e is not JSON"),
        (Resolution("failed", " "), "", "Say why e failed: the reason is empty"),
        (RETRY, "run", "To try again is said of a whole execution, not of one node: leave --node away"),
        (happened(1), "ghost", r"Say which node of e \(--node\); its outcome is unknown at run"),
    ],
)
async def test_a_word_that_makes_no_sense_is_refused_and_changes_nothing(
    bench: Bench, word: Resolution, node_id: str, sentence: str
) -> None:
    await lost(bench)
    story = await bench.story()
    with pytest.raises(InvalidRequest, match=sentence):
        await resolve(bench, word, node_id)
    assert await bench.story() == story


@pytest.mark.parametrize("words", [(happened(1), Resolution("failed", "no")), (happened(1), happened(2)), (RETRY,) * 2])
async def test_of_two_people_who_resolve_at_once_one_wins_and_the_other_is_told(
    bench: Bench, words: tuple[Resolution, Resolution]
) -> None:
    await lost(bench)
    answers = await asyncio.gather(*(resolve(bench, word) for word in words), return_exceptions=True)
    assert sorted(isinstance(answer, InvalidRequest) for answer in answers) == [False, True]
    assert (await bench.story()).count("OutcomeResolved run 1") + (await bench.story()).count("OutcomeResolved") == 1


# Several nodes


async def test_two_unknown_nodes_are_settled_each_by_its_name(bench: Bench) -> None:
    await bench.register(PAIR)
    await start_once(bench)
    await bench.claim(), await bench.claim()
    await bench.pass_time(LEASE_MS)
    with pytest.raises(InvalidRequest, match=r"Say which node of e \(--node\); its outcome is unknown at a, b"):
        await resolve(bench, happened(1))
    assert await resolve(bench, happened(1), "a") == "Execution e is FAILED."
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"
    assert await resolve(bench, happened(2)) == "Execution e is COMPLETED.", "only one is left: no name is needed"
    assert (await bench.snapshot()).outputs == {"a": "1", "b": "2"}


async def test_a_retry_leaves_the_settled_node_alone(bench: Bench) -> None:
    await bench.register(PAIR)
    await start_once(bench)
    await bench.claim(), await bench.claim()
    await bench.pass_time(LEASE_MS)
    await resolve(bench, happened(1), "b")
    await resolve(bench, RETRY)
    await bench.engine.complete(await bench.claim(), '"again"')
    assert (await bench.snapshot()).outputs == {"b": "1", "a": '"again"'}
    assert await bench.status() == "COMPLETED"


async def test_a_result_in_the_middle_of_a_graph_lets_the_rest_begin(bench: Bench) -> None:
    await bench.register(CHAIN)
    await start_once(bench)
    await bench.engine.complete(await bench.claim(), '"hits"')
    await bench.lose(1)
    assert await resolve(bench, happened("page")) == "Execution e is RUNNING."
    last = await bench.poll()
    assert last is not None
    assert json.loads(last.input_json)["deps"] == {"search": "hits", "visit": "page"}
    await bench.engine.complete(last.task.task_id, '"summary"')
    assert await bench.status() == "COMPLETED"


async def test_a_pure_node_of_an_execution_that_happens_once_is_begun_again_by_the_next_run(bench: Bench) -> None:
    await bench.register(CHAIN)
    await start_once(bench)
    for output in ('"hits"', '"page"'):
        await bench.engine.complete(await bench.claim(), output)
    await bench.lose(1)
    assert (await outcome(bench))[1] == "TOOL_ERROR", "what has no effect cannot have had one"
    assert (await start_once(bench, restart="failed")).before == "FAILED"
    await bench.engine.complete(await bench.claim(), '"summary"')
    assert await bench.status() == "COMPLETED"
    assert [each for each in await bench.story() if "AttemptStarted" in each] == [
        "AttemptStarted search 1",
        "AttemptStarted visit 1",
        "AttemptStarted sum 1",
        "AttemptStarted sum 2",
    ]


async def test_cancelling_stops_the_pure_node_beside_an_effect_that_happens_once(bench: Bench) -> None:
    await bench.register({"pay": "EFFECT", "sum": "COMPUTE"})
    await start_once(bench)
    pay, sum_ = await bench.claim(), await bench.claim()
    await bench.engine.cancel("e")
    assert await bench.engine.heartbeat("worker", [pay, sum_]) == [sum_]
    assert await resolve(bench, happened("paid")) == "Execution e is CANCELLED."
    assert await bench.poll() is None
    await resolve(bench, RETRY)
    await bench.engine.complete(await bench.claim(), "1")
    assert (await bench.snapshot()).outputs == {"pay": '"paid"', "sum": "1"}


async def test_the_late_result_of_what_was_cancelled_begins_none_of_the_nodes_after_it(bench: Bench) -> None:
    await bench.register({"pay": "EFFECT", "mail": "EFFECT pay"})
    await start_once(bench)
    task_id = await bench.claim()
    await bench.engine.cancel("e")
    assert await bench.engine.complete(task_id, '"paid"') == ""
    assert await bench.poll() is None
    assert await outcome(bench) == ("CANCELLED", "CANCELLED", "The execution was cancelled.")
    assert (await bench.snapshot()).outputs == {"pay": '"paid"'}, "it is not forgotten"
    await start_once(bench, restart="failed")
    await bench.engine.complete(await bench.claim(), '"sent"')
    assert await bench.status() == "COMPLETED"


async def test_a_retry_after_a_cancellation_goes_on_to_the_end(bench: Bench) -> None:
    await bench.register({"pay": "EFFECT", "mail": "EFFECT pay"})
    await start_once(bench)
    await bench.claim()
    await bench.engine.cancel("e")
    await resolve(bench, RETRY)
    await bench.lose(1)
    assert await resolve(bench, happened("paid")) == "Execution e is RUNNING."


# What never began


async def test_what_was_cancelled_before_it_began_may_be_begun(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    assert await bench.engine.cancel("e") == "Execution cancelled"
    assert await outcome(bench) == ("CANCELLED", "CANCELLED", "The execution was cancelled.")
    await start_once(bench)
    assert await bench.poll() is None, "not without having been asked for"
    assert (await start_once(bench, restart="failed")).before == "CANCELLED"
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_what_failed_before_it_could_begin_is_begun_by_the_next_run(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    claimed = await bench.claim()
    await bench.engine.fail(claimed, "This worker knows no such tool.", retryable=False, begun=False)
    assert (await outcome(bench))[:2] == ("FAILED", "TOOL_ERROR")
    await start_once(bench, restart="failed")
    assert (await outcome(bench))[0] == "RUNNING"
    claimed = await bench.claim()
    await bench.engine.fail(claimed, "no", retryable=False)
    await start_once(bench, restart="failed")
    assert (await outcome(bench))[0] == "FAILED", "this time it had begun"


async def test_an_attempt_that_was_given_back_unused_has_not_begun(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    claimed = await bench.poll()
    assert claimed is not None
    await bench.engine._commits.make(lambda tx, notices: bench.engine._attempts.give_back(tx, notices, claimed.task))
    await bench.engine.cancel("e")
    await start_once(bench, restart="failed")
    await bench.lose(1)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN", "given back is not begun; lost is"
    await start_once(bench, restart="failed")
    assert await nothing_is_left_to_do(bench)


async def test_what_was_cancelled_after_a_retry_has_begun_before(bench: Bench) -> None:
    await lost(bench)
    await resolve(bench, RETRY)
    await bench.engine.cancel("e")
    assert await bench.status() == "CANCELLED"
    await start_once(bench, restart="failed")
    assert await nothing_is_left_to_do(bench)


async def test_a_node_that_had_not_begun_when_another_s_failure_ended_all_waits_for_a_person(bench: Bench) -> None:
    await bench.register(PAIR)
    await start_once(bench)
    await bench.engine.fail(await bench.claim(), "no luck")
    await start_once(bench, restart="failed")
    assert await nothing_is_left_to_do(bench), "to begin b would begin a again"


# Another declaration in the code of the next run


async def test_what_failed_as_a_read_is_not_begun_again_once_it_is_declared_once(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="read")
    await bench.engine.fail(await bench.claim(), "no luck", retryable=False)
    await start_once(bench, restart="failed")
    assert await nothing_is_left_to_do(bench)
    await bench.start(effect="read", restart="unknown")
    assert await bench.status() == "RUNNING"


async def test_what_is_unknown_may_be_begun_again_once_it_is_declared_to_do_no_harm(bench: Bench) -> None:
    await lost(bench)
    assert (await bench.start(effect="idempotent", restart="failed")).before == "FAILED"
    assert await bench.poll() is None
    await bench.start(effect="idempotent", restart="unknown", max_attempts=2)
    await bench.lose(2)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"
    assert (await bench.snapshot()).attempts == 2, "as many as it is declared to have by now"


async def test_what_was_cancelled_before_it_began_is_begun_once_if_it_is_declared_so_by_now(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="idempotent")
    await bench.engine.cancel("e")
    await start_once(bench, restart="failed")
    await bench.lose(1)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"
    assert await nothing_is_left_to_do(bench)


async def test_what_waits_to_be_begun_happens_once_if_it_is_declared_so_by_now(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="idempotent", max_attempts=3)
    await start_once(bench, restart="failed")
    await bench.lose(1)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"
    assert await nothing_is_left_to_do(bench)


async def test_what_has_begun_goes_on_as_it_was_declared_when_it_began(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="idempotent", max_attempts=2)
    await bench.claim()
    await start_once(bench, restart="failed")
    await bench.pass_time(LEASE_MS)
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_what_is_under_way_and_happens_once_does_so_whatever_another_run_declares(bench: Bench) -> None:
    await bench.register(ONE)
    await start_once(bench)
    await bench.claim()
    await bench.start(effect="read", restart="unknown")
    await bench.pass_time(LEASE_MS)
    assert (await outcome(bench))[1] == "OUTCOME_UNKNOWN"


async def test_what_took_too_long_has_the_time_that_the_next_run_declares(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(timeout_ms=5_000, max_attempts=1)
    await bench.engine.fail(await bench.claim(), "It took longer than its 5.0 s.", unknown=True)
    await bench.start(timeout_ms=60_000, restart="unknown")
    claimed = await bench.poll()
    assert claimed is not None
    assert json.loads(claimed.input_json)["timeout_ms"] == 60_000


# As a person sees it

COMMAND = r"^ +((?:NEXUM_ADDRESS=\S+ )?nexum resolve \S+) OUTCOME$"


async def once_demo(stage: Stage, **changes: str) -> Finished:
    env = stage.environment(SESSION_ID="s1", **changes)
    return await run(sys.executable, ROOT / "tests" / "example" / "once_demo.py", env=env, cwd=stage.folder)


async def say(stage: Stage, command: str, *words: str) -> Finished:
    """Run a command as it was printed, with more words behind it, in a shell that knows no NEXUM_ADDRESS."""
    env = environment(PATH=f"{Path(NEXUM).parent}:{os.environ['PATH']}")
    return await run("bash", "-c", f"{command} {shlex.join(words)}", env=env, cwd=stage.folder)


async def cut_short(stage: Stage) -> Finished:
    """A first run, whose worker is killed while it visits three pages; another one is there at once."""
    stage.gate.unlink()
    worker = stage.worker(HELD="visit_webpage", LEASE_MS=SHORT_LEASE_MS)
    running = asyncio.create_task(once_demo(stage))
    await eventually(lambda: len(stage.executions) == 5, "three pages being visited")
    worker.kill()
    stage.gate.touch()
    stage.worker()
    return await running


async def test_a_worker_killed_in_the_middle_of_an_effect_that_happens_once_leaves_it_to_a_person(
    stage: Stage,
) -> None:
    first = await cut_short(stage)
    second = await once_demo(stage)
    for finished in (first, second):
        assert finished.code == 0
        assert no_traceback(finished)
        assert ended_calls(finished.stdout, "unknown") == 3
        assert re.search(
            r"^\[Nexum\] visit_webpage\(.*\) unknown \? Worker \S+ was silent for 2 s: "
            r"the effect may or may not have happened\. It is not run again\.$",
            finished.stdout,
            re.MULTILINE,
        )
        assert "This call of visit_webpage may or may not have run. Assume neither" in finished.stdout, "so the model"
        assert "Unsettled: 3 calls that may or may not have run, and are not run again." in finished.stdout
    assert ended_calls(second.stdout, "cached") == 2
    assert len(stage.executions) == 5, "nothing is executed again"

    commands = re.findall(COMMAND, second.stdout, re.MULTILINE)
    assert len(commands) == 3
    assert (await say(stage, commands[0], "OUTCOME")).code == 2, "as it stands it decides nothing"
    for command in commands:
        settled = await say(stage, command, "--result", "# A page\n\nDurable execution records it's calls.")
        assert (settled.code, settled.stderr) == (0, "")
        assert settled.stdout.endswith(" is COMPLETED.\n")
    again = await say(stage, commands[0], "--failed", "no")
    assert again.code == 1
    assert again.stderr.endswith(" is COMPLETED; no outcome of it is unknown.\n")

    third = await once_demo(stage)
    assert third.code == 0
    assert ended_calls(third.stdout, "cached") == 5
    assert "Unsettled" not in third.stdout
    assert "Durable execution records it's calls." in third.stdout
    assert len(stage.executions) == 5

    shown = await run(NEXUM, "show", "s1", "--events", env=stage.environment())
    assert shown.stdout.count("tool_call: a person said: it happened, and this is its result") == 3


async def test_after_a_person_said_that_it_failed_every_run_tells_so_and_executes_nothing(stage: Stage) -> None:
    first = await cut_short(stage)
    for command in re.findall(COMMAND, first.stdout, re.MULTILINE):
        assert (await say(stage, command, "--failed", "The page was never asked for.")).code == 0
    for _ in range(2):
        again = await once_demo(stage)
        assert ended_calls(again.stdout, "failed ✗ The page was never asked for.") == 3
        assert "- The page was never asked for." in again.stdout, "so the model was told"
    assert len(stage.executions) == 5
    shown = await run(NEXUM, "show", "s1", "--events", env=stage.environment())
    assert shown.stdout.count("tool_call: a person said: it failed: The page was never asked for.") == 3


async def test_after_a_person_said_to_try_again_one_attempt_more_is_made(stage: Stage) -> None:
    first = await cut_short(stage)
    for command in re.findall(COMMAND, first.stdout, re.MULTILINE):
        assert (await say(stage, command, "--retry")).stdout.endswith(" is tried again.\n")
    again = await once_demo(stage)
    assert ended_calls(again.stdout, "stored") + ended_calls(again.stdout, "cached") == 5
    assert len(stage.executions) == 5 + 3
    shown = await run(NEXUM, "show", "s1", "--events", env=stage.environment())
    assert shown.stdout.count("a person said: try again") == 3


async def test_a_worker_that_was_only_stopped_for_a_while_settles_its_calls_itself(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(HELD="visit_webpage", LEASE_MS=SHORT_LEASE_MS)
    running = asyncio.create_task(once_demo(stage))
    await eventually(lambda: len(stage.executions) == 5, "three pages being visited")
    worker.send(signal.SIGSTOP)
    assert ended_calls((await running).stdout, "unknown") == 3
    stage.gate.touch()
    worker.send(signal.SIGCONT)

    async def all_completed() -> bool:
        listed = await run(NEXUM, "ps", "s1/", env=stage.environment())
        return completed(listed.stdout, "/web_search/") + completed(listed.stdout, "/visit_webpage/") == 5

    await eventually(all_completed, "its late results")
    again = await once_demo(stage)
    assert ended_calls(again.stdout, "cached") == 5
    assert len(stage.executions) == 5


async def test_a_terminal_shows_what_is_unsettled_last_and_its_command_whole(stage: Stage) -> None:
    await cut_short(stage)
    here, there = pty.openpty()
    env = stage.environment(SESSION_ID="s1", COLUMNS="80", TERM="xterm")
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "tests" / "example" / "once_demo.py"),
        stdin=subprocess.DEVNULL,
        stdout=there,
        stderr=there,
        env=env,
        cwd=stage.folder,
    )
    os.close(there)

    def read() -> str:
        text = b""
        while True:
            try:
                chunk = os.read(here, 65536)
            except OSError:  # the other end is closed
                return text.decode()
            text += chunk

    try:
        text = re.sub(r"\x1b\[[0-9;]*m", "", await asyncio.wait_for(asyncio.to_thread(read), PATIENCE_SECONDS))
    finally:
        with suppress(ProcessLookupError):
            demo.kill()
        await demo.wait()
        os.close(here)
    lines = text.replace("\r", "").splitlines()
    beginning = next(n for n, line in enumerate(lines) if line.startswith("Unsettled: 3 calls"))
    assert re.fullmatch(COMMAND, lines[beginning + 4]), lines[beginning:]
    assert lines[-2] == "Then run it again:"
    assert beginning > max(n for n, line in enumerate(lines) if line.startswith("[Nexum]"))
