"""Each fault of chaos.py by itself, some at random, and whether its checks would see what is wrong.

A test's own assertion is that the fault did strike; that all went well nevertheless is what `check` finds nothing in.
"""

import copy
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import chaos_runs
import pytest
from chaos import FAULTS, Chaos, Embedded, Story, check, read_stories
from chaos_client import Call
from chaos_people import LEGAL, answer_of, check_done_anew, check_questions, check_taken_back
from chaos_tools import DEADLINE_SECONDS, HERE

ROUNDS_AT_RANDOM = 3


async def survived(chaos: Chaos, *faults: str) -> list[Story]:
    async with chaos:
        for fault in faults:
            await chaos.round(fault)
        await chaos.settle()
    problems = check(chaos.folder, chaos.calls, chaos.settled)
    assert not problems, "\n".join(map(str, problems))
    return read_stories(chaos.folder, chaos.calls)


def given_up(stories: list[Story]) -> list[Story]:
    """The calls that lost an attempt without a word."""
    return [story for story in stories if "x" in story.happenings]


@pytest.mark.parametrize(
    "fault",
    [
        "whoever has the engine dies",
        "whoever has the engine is paused",
        "whoever has the engine dies before a start is committed",
        "a worker dies before it sends a completion",
        "a server comes and goes",
    ],
)
async def test_without_a_server_another_process_has_the_engine(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_DATABASE_URL", "")  # it is set for those that are started
    chaos = Embedded(tmp_path, seed=23)
    await survived(chaos, fault)
    assert chaos.kills or chaos.pauses


async def test_the_server_is_killed_after_it_committed_a_start_and_before_its_answer(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=1)
    await survived(chaos, "the server dies after it committed a start")
    assert chaos.kills == {"server start-committed": 1}


async def test_the_server_is_killed_after_it_committed_a_claim_and_before_the_worker_hears_of_it(
    tmp_path: Path,
) -> None:
    chaos = Chaos(tmp_path, seed=2)
    stories = await survived(chaos, "the server dies after it committed a claim")
    assert chaos.kills == {"server claim-committed": 1}
    assert given_up(stories), "nobody ever worked on what was claimed"


async def test_the_server_is_killed_before_it_committed_a_start_that_a_worker_executes_already(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=21)
    stories = await survived(chaos, "the server dies before a start is committed that is executed already")
    assert chaos.kills == {"server begun-uncommitted": 1}
    assert any(len(story.effects) > story.attempts for story in stories), "one effect has no attempt that is recorded"


async def test_the_server_is_killed_before_it_committed_a_start_that_a_client_executes_already(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=22)
    await survived(chaos, "the server dies before the start of a local effect is committed")
    assert chaos.kills == {"server begun-uncommitted": 1}


async def test_the_server_is_killed_in_the_middle_of_a_commit_that_many_calls_share(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=3)
    await survived(chaos, "the server dies in the middle of a group commit")
    assert chaos.kills == {"server in-group-commit": 1}


async def test_the_server_is_killed_after_it_committed_a_result_and_before_its_acknowledgement(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=4)
    await survived(chaos, "the server dies after it committed a completion")
    assert chaos.kills == {"server completion-committed": 1}
    assert any("was completed already" in log.read_text() for log in tmp_path.glob("worker-*")), "it was sent again"


async def test_a_worker_is_killed_after_its_claim_and_before_the_tool_begins(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=5)
    stories = await survived(chaos, "a worker dies after its claim")
    assert chaos.kills == {"worker task-claimed": 1}
    assert any(len(story.effects) < story.attempts for story in given_up(stories))


async def test_a_worker_is_killed_in_the_middle_of_a_tool_before_its_effect(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=6)
    stories = await survived(chaos, "a worker dies in a tool, before its effect")
    assert chaos.kills == {"worker before-effect": 1}
    assert any(len(story.effects) < story.attempts for story in given_up(stories))


async def test_a_worker_is_killed_in_the_middle_of_a_tool_after_its_effect(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=7)
    stories = await survived(chaos, "a worker dies in a tool, after its effect")
    assert chaos.kills == {"worker after-effect": 1}
    assert any(len(story.effects) == story.attempts for story in given_up(stories))


async def test_a_worker_is_killed_after_the_tool_is_done_and_before_it_can_say_so(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=8)
    stories = await survived(chaos, "a worker dies before it sends a completion")
    assert chaos.kills == {"worker effect-done": 1}
    assert any(len(story.effects) == story.attempts for story in given_up(stories))


async def test_a_client_is_killed_right_after_its_calls_are_started(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=9)
    await survived(chaos, "a client dies as its calls are started")
    assert chaos.kills == {"client calls started": 1}


async def test_a_client_is_killed_when_it_is_told_a_result_and_before_it_can_keep_it(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=10)
    await survived(chaos, "a client dies as it is told")
    assert chaos.kills == {"client answer come": 1}


def executed_by_clients(stories: list[Story]) -> list[Story]:
    return [story for story in stories if story.tool in HERE]


async def test_a_client_is_killed_after_its_claim_and_before_its_local_effect_begins(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=16)
    stories = await survived(chaos, "a client dies after its claim")
    assert chaos.kills == {"client task-claimed": 1}
    assert any(len(story.effects) < story.attempts for story in given_up(executed_by_clients(stories)))


async def test_a_client_is_killed_in_a_local_effect_before_it_happens(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=17)
    stories = await survived(chaos, "a client dies in a local effect, before it happens")
    assert chaos.kills == {"client before-effect": 1}
    assert any(len(story.effects) < story.attempts for story in given_up(executed_by_clients(stories)))


async def test_a_client_is_killed_in_a_local_effect_after_it_happened(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=18)
    stories = await survived(chaos, "a client dies in a local effect, after it happened")
    assert chaos.kills == {"client after-effect": 1}
    assert any(len(story.effects) == story.attempts for story in given_up(executed_by_clients(stories)))


async def test_a_client_is_killed_after_a_local_effect_and_before_it_can_record_it(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=19)
    stories = await survived(chaos, "a client dies before it records a local effect")
    assert chaos.kills == {"client effect-done": 1}
    assert any(len(story.effects) == story.attempts for story in given_up(executed_by_clients(stories)))


async def test_a_client_is_paused_for_longer_than_its_lease_and_then_goes_on(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=20)
    stories = await survived(chaos, "a client is paused beyond its lease")
    assert chaos.pauses == {"client": 1}
    assert given_up(executed_by_clients(stories))


async def test_a_worker_is_paused_for_longer_than_its_lease_and_then_goes_on(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=11)
    stories = await survived(chaos, "a worker is paused beyond its lease")
    assert chaos.pauses == {"worker": 1}
    assert any("l" in story.happenings for story in given_up(stories)), "its late word is taken"


async def test_a_worker_is_paused_until_others_have_done_its_work_and_then_goes_on(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=15)
    stories = await survived(chaos, "a worker is paused until others have done its work")
    assert chaos.pauses == {"worker": 1}
    assert any(len(story.effects) == 2 for story in given_up(stories)), "both have done it"


async def test_the_server_is_paused_and_then_goes_on(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=12)
    await survived(chaos, "the server is paused")
    assert chaos.pauses == {"server": 1}


async def test_the_server_and_all_workers_and_clients_are_killed_at_once(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=13)
    await survived(chaos, "all die at once")
    assert {"server all at once", "worker all at once"} <= set(chaos.kills)


async def test_any_process_is_killed_or_paused_at_any_time(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # pytest shows it if the test fails
    chaos = Chaos(tmp_path, seed)
    await survived(chaos, *["any die at any time"] * ROUNDS_AT_RANDOM)
    assert chaos.kills.total() + chaos.pauses.total() >= 2 * ROUNDS_AT_RANDOM


def test_every_fault_has_a_test_of_its_own() -> None:
    source = Path(__file__).read_text()
    elsewhere = {
        "a MAP and its parents run, and the server dies of it",  # in test_parts.py, at each of its points
        "a run of workers is followed, and any of them die",  # in test_killed_and_followed.py, at each of its effects
    }
    assert [fault for fault in FAULTS.keys() - elsewhere if f'"{fault}"' not in source] == []


# Would the checks see it?


EVENTS: list[dict[str, Any]] = [
    {"kind": "begun", "attempt": 1},
    {"kind": "broken_off", "attempt": 1},
    {"kind": "ended"},
]
HISTORY = {
    "execution_id": "s/a",
    "labels": {},
    "events": [
        {"type": type, "attempt": attempt}
        for type, attempt in (
            ("AttemptStarted", 1),
            ("LeaseExpired", 1),
            ("TaskCompleted", 1),
            ("ExecutionCompleted", None),
        )
    ],
}


@pytest.mark.parametrize(
    ("heard", "sound"),
    [([0, 1, 2], True), ([0, 2], False), ([0, 1], False), ([0, 1, 1, 2], False), ([0, 2, 1], False), ([], False)],
)
def test_a_follower_that_misses_something_or_hears_it_twice_is_noticed(
    tmp_path: Path, heard: list[int], sound: bool
) -> None:
    told = tmp_path / "told"
    lines = [json.dumps({"cursor": str(n), "execution_id": "s/a"} | EVENTS[n]) for n in heard]
    told.write_text("".join(f"{line}\n" for line in lines))
    assert (not list(chaos_runs.check_followed([HISTORY], told))) == sound


@pytest.mark.parametrize(("more", "sound"), [([], True), (["look"], True), (["look"] * 3, False), (["send"], False)])
def test_effects_of_a_run_that_happen_too_often_are_noticed(tmp_path: Path, more: list[str], sound: bool) -> None:
    turns = [f"turn {n}" for n in range(len(chaos_runs.PLAN) + 1)]
    all_of_it = ["note", "look", "put", "send", "send_here", "pay", *turns, *more]
    ledger = tmp_path / "ledger"
    ledger.write_text("".join(json.dumps({"label": "s", "what": what}) + "\n" for what in all_of_it))
    assert (not list(chaos_runs.check_effects([HISTORY], "s", 1, ledger))) == sound


Tampering = Callable[[Path, sqlite3.Connection], object]


def sql(statement: str) -> Tampering:
    return lambda folder, database: database.executescript(statement)


def one_more_effect(of_tool: str, times: int = 1, deaths: int = 0, **changes: str) -> Tampering:
    """A line of the ledger so many times more, of a call whose tool's name begins like that."""

    def tamper(folder: Path, database: sqlite3.Connection) -> None:
        effects = [json.loads(line) for line in (folder / "ledger").read_text().splitlines()]
        tools = dict(database.execute(TOOL_OF_EACH_LABEL))
        effect = next(effect for effect in effects if tools[effect["label"]].startswith(of_tool))
        with (folder / "ledger").open("a") as ledger:
            ledger.write((json.dumps(effect | changes) + "\n") * times)
        with (folder / "deaths").open("a") as lines:
            lines.write((json.dumps({"at_ms": 0, "labels": [effect["label"]]}) + "\n") * deaths)

    return tamper


def an_answer_told(folder: Path) -> tuple[Path, str]:
    """The first line about a result that a client wrote down, and where it stands."""
    lines = ((path, line) for path in sorted(folder.glob("told-*")) for line in path.read_text().splitlines(True))
    return next((path, line) for path, line in lines if json.loads(line)["kind"] == "result")


def another_value(folder: Path, database: sqlite3.Connection) -> None:
    path, line = an_answer_told(folder)
    path.write_text(path.read_text().replace(line, json.dumps(json.loads(line) | {"value": "another"}) + "\n"))


def one_more_answer(folder: Path, database: sqlite3.Connection) -> None:
    path, line = an_answer_told(folder)
    path.write_text(path.read_text() + json.dumps(json.loads(line) | {"kind": "unknown"}) + "\n")


TOOL_OF_EACH_LABEL = """
    SELECT input_json ->> '$.tool_args.label', input_json ->> '$.tool_name' FROM executions ORDER BY seq"""
ONE = "execution_id = (SELECT min(execution_id) FROM executions WHERE status = 'COMPLETED')"
ITS_EVENTS = f"seq IN (SELECT seq FROM story WHERE {ONE})"
TAMPERINGS: dict[str, tuple[str, Tampering]] = {
    "a recorded result is overwritten": (
        "loss",
        sql(f"UPDATE tasks SET output_json = json_set(output_json, '$.result', 'other') WHERE {ONE}"),
    ),
    "a client is told another result": ("loss", another_value),
    "a result is followed by something else": ("loss", one_more_answer),
    "an execution is gone": (
        "loss",
        sql(
            f"DELETE FROM events WHERE {ITS_EVENTS}; DELETE FROM tasks WHERE {ONE}; DELETE FROM executions WHERE {ONE}"
        ),
    ),
    "an effect that may happen once happens twice": ("duplicate", one_more_effect("send")),
    "an effect happens without an attempt": ("duplicate", one_more_effect("read")),
    "a local effect happens without an attempt": ("duplicate", one_more_effect("put_here")),
    "an effect happens more often than the server died": ("duplicate", one_more_effect("read", 2, deaths=1)),
    "two attempts see two keys": ("untrue", one_more_effect("read", key="another")),
    "an execution is stuck": ("stuck", sql(f"UPDATE executions SET status = 'RUNNING' WHERE {ONE}")),
    "a task is stuck": ("stuck", sql(f"UPDATE tasks SET status = 'READY', output_json = NULL WHERE {ONE}")),
    "a result is recorded twice": (
        "duplicate",
        sql(
            f"INSERT INTO events SELECT (SELECT max(seq) + 1 FROM story WHERE {ONE}), at_ms, type, node_id, attempt, "
            f"data_json FROM events WHERE type = 'TaskCompleted' AND {ITS_EVENTS}"
        ),
    ),
    "the beginning is missing": ("untrue", sql(f"DELETE FROM events WHERE type = 'ExecutionStarted' AND {ITS_EVENTS}")),
    "an attempt's number is wrong": (
        "untrue",
        sql(f"UPDATE events SET attempt = 7 WHERE type = 'TaskCompleted' AND {ITS_EVENTS}"),
    ),
    "a row refers to nothing": (
        "untrue",
        sql(f"PRAGMA foreign_keys = OFF; UPDATE tasks SET execution_id = 'r0-0/nothing' WHERE {ONE}"),
    ),
    "an event is of no execution": (
        "untrue",
        sql("UPDATE events SET seq = -1 WHERE seq = (SELECT max(seq) FROM events)"),
    ),
    "a task's key has another number": ("untrue", sql(f"UPDATE tasks SET task_key = '0-0' WHERE {ONE}")),
}


async def test_the_checks_see_whatever_was_tampered_with(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    async with Chaos(tmp_path / "sound", seed=14) as chaos:
        chaos.enter_clients()  # and nothing strikes: each call is plain, and what is tampered with the only fault
        await chaos.finish()
        await chaos.settle()
    assert check(chaos.folder, chaos.calls, chaos.settled) == []
    for what, (kind, tamper) in TAMPERINGS.items():
        folder = tmp_path / what
        shutil.copytree(chaos.folder, folder)
        with closing(sqlite3.connect(folder / "nexum.db")) as database:
            tamper(folder, database)
            database.commit()
        assert kind in [problem.kind for problem in check(folder, chaos.calls, chaos.settled)], what


@pytest.mark.parametrize(
    "fault", ["a session is stopped, and goes on", "a session is stopped, and the server dies of it"]
)
async def test_of_a_stopped_session_nothing_happens_until_it_goes_on(tmp_path: Path, fault: str) -> None:
    chaos = Chaos(tmp_path, seed=31)
    stories = await survived(chaos, fault, fault)
    assert chaos.stops
    assert any("s" in story.happenings for story in stories), "something ran when it was stopped"


async def test_a_fork_is_whole_or_not_there_and_executes_nothing_again(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=32)
    await survived(chaos, *["a session is forked, and the server dies of it"] * 3)
    assert chaos.forks == 3


async def test_what_was_taken_back_is_done_anew_and_what_it_was_can_be_read(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=33)
    await survived(chaos, *["a session is taken back, and the server dies of it"] * 3)
    assert chaos.taken_back == 3


async def test_a_question_is_asked_and_answered_once_whoever_dies_meanwhile(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=34)
    await survived(chaos, *["questions are asked, and the server and who asks die"] * 2)
    assert chaos.questions == 16


def history(execution_id: str, nonce: str, *more: str) -> dict[str, Any]:
    """Of a call that is COMPLETED with that result."""
    types = ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted", *more]
    return {
        "execution_id": execution_id,
        "status": "COMPLETED",
        "input": {"tool_args": {"label": execution_id.partition("/")[2]}},
        "events": [{"type": type, "at_ms": number} for number, type in enumerate(types)],
        "outputs": {"run": {"result": nonce}},
    }


def test_the_checks_see_what_a_taking_back_has_lost_or_changed() -> None:
    before = [history("s/a", "1"), history("s/b", "2"), history("s/c", "3")]
    record = [history(f"s~1/{name}", nonce, "ExecutionTakenBack") for name, nonce in (("b", "2"), ("c", "3"))]
    assert list(check_taken_back(before, 1, before[:1], record)) == []
    for kept, tampered in (
        (before[:2], record),
        ([], record),
        (before[:1], record[:1]),
        (before[:1], record[::-1]),
        (before[:1], [history("s~1/b", "2"), record[1]]),
        (before[:1], [record[0], history("s~1/c", "4", "ExecutionTakenBack")]),
    ):
        assert list(check_taken_back(before, 1, kept, tampered))


def test_the_checks_see_what_was_not_done_anew_after_a_taking_back() -> None:
    before, after = [history("s/a", "1"), history("s/b", "2")], [history("s/a", "1"), history("s/b", "3")]
    told = {"a": [("result", "1"), ("result", "1")], "b": [("result", "2"), ("result", "3")]}
    assert list(check_done_anew(before, 1, after, {"3"}, told)) == []
    for then, nonces, answers in (
        (before, {"3"}, told | {"b": [("result", "2")]}),
        (after, {"4"}, told),
        (after[:1], {"3"}, told),
        ([history("s/a", "1", "ExecutionRestarted"), after[1]], {"3"}, told),
        (after, {"3"}, told | {"b": [("result", "2")]}),
        (after, {"3"}, told | {"a": [("failed", "1")]}),
    ):
        assert list(check_done_anew(before, 1, then, nonces, answers))


def test_the_checks_see_whatever_is_wrong_with_a_question() -> None:
    answers_of = {
        "answered": ("result", answer_of("ann", "answered")),
        "refused": ("failed", f"Rejected by bob: {answer_of('bob', 'refused')}"),
        "by_default": ("result", "as usual"),
        "in_vain": ("failed", "Nobody answered within 1.5 s."),
    }
    due_at_ms = round(DEADLINE_SECONDS * 1000)
    calls = [Call(kind, kind, "idempotent", 0) for kind in LEGAL]
    told = {kind: [answer, answer] for kind, answer in answers_of.items()}
    sound: dict[str, Any] = {
        kind: {
            "input": {"question": kind},
            "events": [{"type": type, "at_ms": 0, "due_at_ms": due_at_ms} for type in LEGAL[kind][0]],
        }
        for kind in LEGAL
    }
    for kind in ("by_default", "in_vain"):
        sound[kind]["events"][2]["at_ms"] = due_at_ms
    acknowledged = {"answered": {answer_of("ann", "answered")}, "refused": set[str]()}

    def found(histories: dict[str, Any] = sound, **tampered: Any) -> list[str]:
        of_people = acknowledged | tampered.pop("acknowledged", {})
        return list(check_questions(calls, list(histories.values()), told | tampered, of_people))

    def with_events(kind: str, number: int, **changes: Any) -> dict[str, Any]:
        histories: dict[str, Any] = copy.deepcopy(sound)
        histories[kind]["events"][number] |= changes
        return histories

    assert found() == []
    assert found(sound | {"again": sound["answered"]})
    assert found({kind: sound[kind] for kind in LEGAL if kind != "in_vain"})
    assert found(with_events("answered", 2, type="DeadlinePassed"))
    assert found(with_events("in_vain", 2, at_ms=due_at_ms - 1))
    assert found(with_events("by_default", 1, due_at_ms=due_at_ms + 1))
    assert found(by_default=[("result", "as usual"), ("result", "another")])
    assert found(by_default=[("result", "another")])
    assert found(in_vain=[("result", "as usual")])
    assert found(answered=[("result", "what nobody said")])
    assert found(answered=[("result", answer_of("bob", "answered"))])
    assert found(acknowledged={"refused": {answer_of(who, "refused") for who in ("ann", "bob")}})
