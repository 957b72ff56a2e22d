"""What a session has recorded: taken back from a turn on, and copied into a new session."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from command import ECHO, GATE, assert_refused, claim, finish, nexum, start
from local_process import ASK
from processes import Finished, NexumDev, environment

from nexum_runtime import Client, InvalidRequest, NotFound, SessionStopped
from nexum_runtime.cli.base import FAILED, NO_SERVER, USAGE
from nexum_runtime.server.app import Server, ServerConfig

TURN, CALL, END = "turn", "call", "run"
NO_ID = r"is not 1 to 200 of"


async def did(client: Client, execution_id: str, kind: str = "", text: str = "done", **how: Any) -> None:
    """An effect of this process that is recorded, with the label that says what it is."""

    async def do() -> Any:
        return {"text": text}

    name = execution_id.split("/")[1]
    labels = {"kind": kind, "name": name} | ({"numbers": {"tokens": 10}} if kind == TURN else {}) if kind else None
    await client.run_local(ASK, {}, do, execution_id=execution_id, labels=labels, **how)


async def a_session(client: Client, session: str = "s1", turns: int = 3) -> None:
    """Each turn is followed by a call of the same number."""
    for n in range(1, turns + 1):
        await did(client, f"{session}/turn/{n}", TURN)
        await did(client, f"{session}/search/{n}", CALL)


async def ids(client: Client, session: str) -> list[str]:
    """What a session has recorded, in the order in which it was started."""
    return [each["execution_id"].partition("/")[2] for each in reversed(await client.listed(f"{session}/", 100))]


async def events(client: Client, execution_id: str) -> list[str]:
    return [event["type"] async for history in client.history(execution_id) for event in history["events"]]


async def everything(client: Client) -> Any:
    """All that the server tells of its sessions."""
    histories = {
        each["session_id"]: [history async for history in client.history(f"{each['session_id']}/")]
        for each in await client.sessions() + await client.sessions("s1~")
    }
    return await client.sessions(), histories


async def unknown(client: Client, execution_id: str) -> None:
    """One that happens once, and nobody knows whether it has."""
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id=execution_id, effect="once"))
    await client.register(ECHO)
    await client.fail(await claim(client, 20_000), "Its worker was stopped.", interrupted=True)
    assert (await executing).error_code == "OUTCOME_UNKNOWN"


# Taken back


async def test_the_first_turns_and_what_was_called_between_them_stay(client: Client) -> None:
    await a_session(client)
    told = await client.forget_session("s1", after=1, by="ann")
    assert told == {"session_id": "s1~1", "executions": 4, "turns": 1}
    assert await ids(client, "s1") == ["turn/1", "search/1"]
    assert await ids(client, "s1~1") == ["turn/2", "search/2", "turn/3", "search/3"]
    assert list(await client.journal("s1/")) == ["s1/search/1", "s1/turn/1"]


async def test_what_was_taken_back_is_done_anew_and_can_be_read_with_who_took_it_back(client: Client) -> None:
    await a_session(client)
    await client.forget_session("s1", after=1, by="ann")
    await did(client, "s1/turn/2", TURN, "another answer")
    assert (await client.status("s1/turn/2")).outputs == {"ask": {"text": "another answer"}}
    assert (await client.status("s1~1/turn/2")).outputs == {"ask": {"text": "done"}}
    (history,) = [each async for each in client.history("s1~1/turn/2")]
    assert history["events"][-1].items() >= {"type": "ExecutionTakenBack", "session_id": "s1", "by": "ann"}.items()
    assert history["events"][0]["type"] == "ExecutionStarted"
    assert (await client.forget_session("s1", after=1))["session_id"] == "s1~2"
    assert await ids(client, "s1~2") == ["turn/2"]


@pytest.mark.parametrize("turn", ["turn/2", "s1/turn/2", "2"])
async def test_a_turn_is_taken_back_with_all_that_began_after_it(client: Client, turn: str) -> None:
    await a_session(client)
    await client.forget_session("s1", turn=turn)
    assert await ids(client, "s1") == ["turn/1", "search/1"]


async def test_all_of_a_session_can_be_taken_back_and_begins_anew(client: Client) -> None:
    await a_session(client)
    await client.forget_session("s1", after=0)
    assert await client.sessions() == []
    assert await client.journal("s1/") == {}
    await did(client, "s1/turn/1", TURN)
    (told,) = await client.sessions()
    assert (told["session_id"], told["kinds"], told["taken_back"]) == ("s1", {"turn": 1}, ["s1~1"])


async def test_other_sessions_of_a_like_name_are_left_alone(client: Client) -> None:
    for session in ("s1", "s10", "s1-", "s"):
        await a_session(client, session, 1)
    await client.forget_session("s1", after=0)
    for session in ("s10", "s1-", "s"):
        assert await ids(client, session) == ["turn/1", "search/1"]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"after": 3}, "Session s1 has 3 turns; there is none to take back."),
        ({"turn": "4"}, "Session s1 has no turn 4; it has 3 turns."),
        ({"turn": "turn/9"}, "Session s1 has no 'turn/9'. See what it has with: nexum show s1"),
        ({}, "Say from where on"),
        ({"after": 1, "turn": "turn/1"}, "Say from where on"),
    ],
)
async def test_a_turn_that_is_none_is_refused(client: Client, named: dict[str, Any], words: str) -> None:
    await a_session(client)
    before = await everything(client)
    with pytest.raises((InvalidRequest, NotFound), match=re.escape(words)):
        await client.forget_session("s1", **named)
    assert await everything(client) == before


async def test_what_still_runs_is_not_taken_back_and_a_stopped_session_s_is_cancelled(client: Client) -> None:
    await a_session(client, turns=1)
    await start(client, "s1/ready")
    refused = r"s1/ready has not ended\. Stop the session first: nexum stop s1"
    with pytest.raises(InvalidRequest, match=refused):
        await client.forget_session("s1", after=0)
    task_id = await claim(client)
    with pytest.raises(InvalidRequest, match=r"s1/ready still runs\. Stop the session first: nexum stop s1"):
        await client.forget_session("s1", after=0)
    await client.stop_session("s1", "ann")
    assert (await client.forget_session("s1", after=0))["executions"] == 3
    assert (await client.status("s1~1/ready")).status == "CANCELLED"
    assert (await client.complete(task_id, '{"text": "late"}')) != ""
    assert await client.poll("worker-1", ECHO, lease_ms=60_000) is None
    (session,) = await client.sessions()
    assert (session["session_id"], session["state"], session["executions"]) == ("s1", "STOPPED", 0)
    await client.go_session("s1")
    await finish(client, "s1/ready")


async def test_what_happens_once_and_still_runs_is_waited_for_also_in_a_stopped_session(client: Client) -> None:
    await a_session(client, turns=1)
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/once", effect="once"))
    await client.register(ECHO)
    task_id = await claim(client, 20_000)
    await client.stop_session("s1")
    with pytest.raises(SessionStopped):
        await executing
    with pytest.raises(InvalidRequest, match=r"s1/once still runs\. It happens once, and is let finish: wait for its"):
        await client.forget_session("s1", after=0)
    await client.complete(task_id, '{"text": "sent"}')
    with pytest.raises(InvalidRequest, match="s1/once happens once"):
        await client.forget_session("s1", after=0)


async def test_what_waits_for_a_yes_in_a_stopped_session_is_asked_for_no_more(client: Client) -> None:
    await a_session(client, turns=1)
    await start(client, "s1/gate", GATE)
    await client.stop_session("s1")
    await client.forget_session("s1", after=0)
    assert await client.approvals() == []


async def test_what_happens_once_or_had_a_yes_is_taken_back_only_when_one_says_so(client: Client) -> None:
    await did(client, "s1/turn/1", TURN)
    await did(client, "s1/invoice/1", CALL, effect="once")
    await did(client, "s1/turn/2", TURN)
    for n in range(2, 5):
        await did(client, f"s1/invoice/{n}", CALL, effect="once")
    await unknown(client, "s1/pay")
    await start(client, "s1/gate", GATE)
    await client.approve("s1/gate", "approve", "ann")
    before = await everything(client)
    with pytest.raises(InvalidRequest) as refused:
        await client.forget_session("s1", after=1)
    assert str(refused.value) == (
        "5 calls happen once, or had a yes, and may have been made. The next run would make them again. If it may, say "
        "--even-once. They are s1/invoice/2, s1/invoice/3, s1/invoice/4 and 2 more."
    )
    assert await everything(client) == before
    await client.forget_session("s1", after=1, even_once=True)
    assert await ids(client, "s1") == ["turn/1", "invoice/1"]
    assert (await client.inspect())["unknown"] == []
    with pytest.raises(SessionStopped, match=r"s1~1 was taken back of session s1\. None of it goes on"):
        await client.resolve("s1~1/pay", "retry")


async def test_what_happens_once_and_has_not_begun_or_was_refused_is_taken_back_as_any_other(client: Client) -> None:
    await did(client, "s1/turn/1", TURN)
    await start(client, "s1/gate", GATE)
    await client.reject("s1/gate", "approve", "ann", "no")
    await client.register(ECHO)
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/once", effect="once", timeout=1))
    await asyncio.wait([executing])
    assert executing.exception() is not None
    await client.stop_session("s1")
    assert (await client.forget_session("s1", after=0))["executions"] == 3


async def test_nothing_begins_in_what_was_taken_back(client: Client) -> None:
    await a_session(client, turns=1)
    await client.forget_session("s1", after=0)
    with pytest.raises(InvalidRequest, match=NO_ID):
        await did(client, "s1~1/new")
    for refused in (client.forget_session("s1~1", after=0), client.fork_session("s1~1", "s2")):
        with pytest.raises(InvalidRequest, match=r"s1~1 is what was taken back of session s1, and can only be read"):
            await refused
    with pytest.raises(InvalidRequest, match=r"s1~1 was taken back of session s1\. None of it goes on"):
        await client.go_session("s1~1")


async def test_what_was_taken_back_is_listed_only_when_it_is_asked_for(client: Client, address: str) -> None:
    await a_session(client)
    await client.forget_session("s1", after=1, by="ann")
    (session,) = await client.sessions()
    assert (session["session_id"], session["taken_back"], session["kinds"]) == ("s1", ["s1~1"], {"turn": 1, "call": 1})
    (record,) = await client.sessions("s1~")
    assert (record["session_id"], record["state"], record["kinds"]) == ("s1~1", "TAKEN_BACK", {"turn": 2, "call": 2})
    assert "s1~1" not in (await nexum(address, "sessions")).stdout
    assert (await client.inspect())["stopped"] == []
    assert re.search(r"s1~1 +TAKEN_BACK", (await nexum(address, "sessions", "s1~")).stdout)


async def test_what_was_taken_back_can_be_pruned_also_when_its_outcome_is_unknown(client: Client) -> None:
    await did(client, "s1/turn/1", TURN)
    await unknown(client, "s1/pay")
    await client.forget_session("s1", after=0, even_once=True)
    assert (await client.prune("s1~1/", 0))["executions"] == 2
    assert await client.sessions("s1~") == []


async def test_an_id_of_the_longest_kind_is_taken_back_and_read(client: Client) -> None:
    await did(client, "s1/turn/1", TURN)
    longest = "s1/" + "x" * 197
    await did(client, longest)
    await client.forget_session("s1", after=0)
    assert (await client.status(longest.replace("s1/", "s1~1/"))).status == "COMPLETED"


# Forked


async def test_a_fork_has_what_came_before_a_turn_and_the_other_session_stays_as_it_is(client: Client) -> None:
    await a_session(client)
    before = [history async for history in client.history("s1/")]
    told = await client.fork_session("s1", "s2", before="3", by="ann")
    assert told == {"executions": 4, "turns": 2, "left_out": []}
    assert [history async for history in client.history("s1/")] == before
    assert await ids(client, "s2") == ["turn/1", "search/1", "turn/2", "search/2"]
    for was, copy in zip(before, [history async for history in client.history("s2/")], strict=False):
        *told_before, fork = copy.pop("events")
        assert told_before == was.pop("events")
        assert copy == was | {"execution_id": was["execution_id"].replace("s1/", "s2/")}
        told_of = {"type": "ExecutionForked", "session_id": "s1", "before": "turn/3", "by": "ann"}
        assert fork.items() >= told_of.items()
    assert (await client.sessions("s2"))[0]["forked_from"].items() >= {"session_id": "s1", "before": "turn/3"}.items()
    assert (await client.sessions("s1"))[0]["forked_from"] is None


async def test_what_a_fork_has_is_not_done_again_and_what_it_does_is_its_own(client: Client) -> None:
    await did(client, "s1/invoice", CALL, "sent", effect="once")
    await client.fork_session("s1", "s2")
    await did(client, "s2/invoice", CALL, "sent twice", effect="once")
    assert (await client.status("s2/invoice")).outputs == {"ask": {"text": "sent"}}
    await did(client, "s2/more", CALL)
    assert await ids(client, "s1") == ["invoice"]
    assert await client.journal("s2/") == {
        "s2/invoice": {"ask": {"text": "sent"}},
        "s2/more": {"ask": {"text": "done"}},
    }


async def test_what_failed_was_refused_or_is_unknown_is_so_in_the_fork_and_what_has_not_ended_is_left_out(
    client: Client,
) -> None:
    await a_session(client, turns=1)
    await unknown(client, "s1/unknown")
    await start(client, "s1/failed")
    await client.fail(await claim(client), "no such page", retryable=False)
    for name, answer in (("refused", client.reject), ("approved", client.approve)):
        await start(client, f"s1/{name}", GATE)
        await answer(f"s1/{name}", "approve", "ann", "as you like")
    await start(client, "s1/asks", GATE)
    await start(client, "s1/ready")
    await start(client, "s1/runs")
    await claim(client)
    told = await client.fork_session("s1", "s2")
    assert told["left_out"] == ["s1/asks", "s1/ready", "s1/runs"]
    assert told["executions"] == 6
    of_both: list[list[Any]] = [[], []]
    for name in ("unknown", "failed", "refused", "approved"):
        for outcomes, session in zip(of_both, ("s1", "s2"), strict=True):
            outcome = await client.status(f"{session}/{name}")
            outcomes.append((outcome.status, outcome.error_code, outcome.error, outcome.outputs))
    assert of_both[0] == of_both[1]
    assert [each.execution_id for each in await client.approvals()] == ["s1/asks"]
    claimed = await client.poll("worker-2", ECHO, lease_ms=60_000)
    assert claimed is not None
    assert (await client.status("s1/ready")).attempts == 1, "no task of the fork can be claimed"
    await client.resolve("s2/unknown", "failed", "it never arrived")
    assert (await client.status("s1/unknown")).error_code == "OUTCOME_UNKNOWN"


async def test_a_fork_of_a_stopped_session_is_not_stopped_and_has_nothing_that_waits(client: Client) -> None:
    await a_session(client, turns=1)
    await start(client, "s1/ready")
    await client.stop_session("s1", "ann")
    assert (await client.fork_session("s1", "s2"))["left_out"] == ["s1/ready"]
    assert {each["session_id"]: bool(each["stopped"]) for each in await client.sessions()} == {"s1": True, "s2": False}
    await finish(client, "s2/ready")


async def test_the_late_word_on_what_is_unknown_is_of_the_session_that_it_came_from(client: Client) -> None:
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/pay", effect="once"))
    await client.register(ECHO)
    task_id = await claim(client, 20_000)
    await client.fail(task_id, "Its worker was stopped.", interrupted=True)
    await executing
    await client.fork_session("s1", "s2")
    assert await client.complete(task_id, '{"text": "paid"}') == ""
    assert (await client.status("s1/pay")).status == "COMPLETED"
    assert (await client.status("s2/pay")).error_code == "OUTCOME_UNKNOWN"


async def test_a_fork_of_a_fork_tells_of_both_and_can_be_taken_back(client: Client) -> None:
    await a_session(client)
    await client.fork_session("s1", "s2", before=3)
    await did(client, "s2/turn/other", TURN)
    await client.fork_session("s2", "s3")
    assert (await client.sessions("s3"))[0]["forked_from"]["session_id"] == "s2"
    first: list[str] = []
    for session in ("s1", "s2", "s3"):
        await client.journal(f"{session}/", tell=lambda of, _: first.append(of))
    assert first == ["s1", "s1", "s1"]
    await client.forget_session("s3", after=1)
    assert await ids(client, "s3") == ["turn/1", "search/1"]
    assert await ids(client, "s2") == ["turn/1", "search/1", "turn/2", "search/2", "turn/other"]


@pytest.mark.parametrize(
    ("session", "new", "before", "words"),
    [
        ("ghost", "s2", None, "No session 'ghost' is known. See what is there with: nexum sessions"),
        ("s1", "s10", None, "Session s10 is there already. Choose another id for the fork."),
        ("s1", "s1", None, "Session s1 is there already."),
        ("s1", "s2~1", None, "'s2~1' cannot be a session"),
        ("s1", "a/b", None, "'a/b' cannot be a session"),
        ("s1", "", None, "'' cannot be a session"),
        ("s1", "x" * 199, None, "is too long for what session s1 has"),
        ("s1", "s2", "turn/9", "Session s1 has no 'turn/9'"),
        ("s1", "s2", 4, "Session s1 has no turn 4; it has 3 turns."),
        ("s1", "s2", 1, "Nothing of session s1 has ended before that yet."),
    ],
)
async def test_a_fork_that_cannot_be_made_is_refused_and_leaves_nothing(
    client: Client, session: str, new: str, before: Any, words: str
) -> None:
    await a_session(client)
    await a_session(client, "s10", 1)
    known = await everything(client)
    with pytest.raises((InvalidRequest, NotFound), match=re.escape(words)):
        await client.fork_session(session, new, before=before)
    assert await everything(client) == known


async def test_a_session_that_was_pruned_in_part_is_forked_with_what_is_left(client: Client) -> None:
    await a_session(client)
    await client.prune("s1/turn/", 0)
    assert await client.fork_session("s1", "s2") == {"executions": 3, "turns": 0, "left_out": []}
    with pytest.raises(NotFound, match=r"Session s1 has no turn 2; it has 0 turns\."):
        await client.fork_session("s1", "s3", before=2)


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Client]:
    server = Server(ServerConfig(path, port=0))
    await server.start()
    try:
        async with Client(f"localhost:{server.port}") as client:
            yield client
    finally:
        await server.stop()


def fill(path: Path, many: int) -> None:
    """Store the one execution that is there as so many calls more, "s1/call/{n}"."""
    with closing(sqlite3.connect(path)) as other:
        columns = "workflow_id, version_hash, status, input_json, max_attempts, created_at_ms, ended_at_ms"
        other.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many}) "
            f"INSERT INTO executions (seq, execution_id, {columns}) "
            f"SELECT 1000 + i, 's1/call/' || i, {columns} FROM n, executions"
        )
        columns = "workflow_id, version_hash, node_id, node_type, status, attempt, attempt_limit, available_at_ms"
        other.execute(
            f"INSERT INTO tasks (seq, task_key, execution_id, output_json, {columns}) SELECT 1000 + x.seq, "
            f"(1000 + x.seq) || '-a', x.execution_id, output_json, {', '.join(f't.{c}' for c in columns.split(', '))} "
            "FROM executions x, tasks t WHERE x.seq > 1000"
        )
        other.execute(
            "INSERT INTO events SELECT (x.seq << 20) + (v.seq & 1048575), v.at_ms, v.type, v.node_id, v.attempt, "
            "v.data_json FROM executions x, events v WHERE x.seq > 1000"
        )
        other.commit()


async def test_a_fork_of_ten_thousand_calls_is_whole(tmp_path: Path) -> None:
    many, path = 10_000, tmp_path / "nexum.db"
    async with served(path) as client:
        await did(client, "s1/turn/1", TURN)
    fill(path, many)
    async with served(path) as client:
        assert (await client.fork_session("s1", "s2"))["executions"] == many + 1
        copies, originals = [await client.journal(f"{session}/") for session in ("s2", "s1")]
        assert len(copies) == many + 1
        assert {name.replace("s2/", "s1/"): outputs for name, outputs in copies.items()} == originals
        assert await events(client, f"s2/call/{many}") == [*await events(client, f"s1/call/{many}"), "ExecutionForked"]
        await finish(client, "s2/after")


# A server that is killed in the middle


@pytest.mark.parametrize(("what", "points"), [("fork", 4), ("forget", 3)])
async def test_a_server_killed_in_the_middle_has_done_all_or_nothing(tmp_path: Path, what: str, points: int) -> None:
    async def ask(client: Client) -> None:
        if what == "fork":
            await client.fork_session("s1", "s2", before=3)
        else:
            await client.forget_session("s1", after=2)

    for point in range(1, points + 1):
        folder = tmp_path / str(point)
        folder.mkdir()
        armed = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT=f"in-{what}:{point}")
        async with NexumDev(folder) as nexum_dev, Client(nexum_dev.address) as client:
            await a_session(client)
            before = await everything(client)
            nexum_dev.terminate()
            await nexum_dev.ended()
            nexum_dev._env = armed
            await nexum_dev.restart()
            asking = asyncio.create_task(ask(client))
            await asyncio.wait([asking])
            assert asking.exception() is not None
            assert await nexum_dev.ended() == -9
            nexum_dev._env = environment(NEXUM_EXIT_WITH_PARENT="1")
            await nexum_dev.restart()
            await client.check(20)
            assert await everything(client) == before, "nothing of it"
            await ask(client)
            await nexum_dev.restart()
            await client.check(20)
            assert await ids(client, "s2" if what == "fork" else "s1") == ["turn/1", "search/1", "turn/2", "search/2"]
            with closing(sqlite3.connect(nexum_dev.database)) as database:
                assert database.execute("PRAGMA foreign_key_check").fetchall() == []
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# The command


async def test_the_command_takes_back_and_says_where_it_can_be_read(client: Client, address: str) -> None:
    await a_session(client)
    assert await nexum(address, "forget", "s1", "--after", "2", "--as", "ann") == Finished(
        0, "2 executions of s1 were taken back; 2 turns stay.\nSee what was taken back with: nexum show s1~1\n", ""
    )
    shown = (await nexum(address, "show", "s1~1")).stdout.splitlines()
    assert re.fullmatch(r"s1~1 TAKEN_BACK · began .* UTC · 2 completed", shown[0])
    assert re.fullmatch(r"taken back of s1 by ann at .* UTC", shown[1])
    assert "taken back of session s1 by ann" in (await nexum(address, "show", "s1~1/turn/3")).stdout
    assert (await nexum(address, "forget", "s1/", "--turn", "turn/2")).stdout.startswith(
        "2 executions of s1 were taken back; 1 turn stays.\n"
    )
    assert (await nexum(address, "show", "s1~2", "--json")).code == 0
    shown = (await nexum(address, "show", "s1")).stdout.splitlines()
    assert shown[1] == "taken back of it: nexum show s1~1, nexum show s1~2"


async def test_the_command_refuses_to_take_back_in_one_sentence(client: Client, address: str) -> None:
    await a_session(client, turns=1)
    for words in (("forget", "s1"), ("forget", "s1", "--after", "1", "--turn", "2")):
        assert_refused(await nexum(address, *words), "Add one of these: --after N, --turn ID.", USAGE)
    assert_refused(await nexum(address, "forget", "ghost", "--after", "1"), "No session 'ghost' is known.", FAILED)
    assert_refused(await nexum(address, "forget", "s1", "--after", "1"), "there is none to take back", FAILED)
    assert_refused(await nexum("localhost:1", "forget", "s1", "--after", "1"), "No Nexum server answers", NO_SERVER)
    await did(client, "s1/pay", CALL, effect="once")
    assert_refused(await nexum(address, "forget", "s1", "--after", "0"), "s1/pay happens once", FAILED)
    assert (await nexum(address, "forget", "s1", "--after", "0", "--even-once")).code == 0


async def test_the_command_forks_and_says_what_is_left_out(client: Client, address: str) -> None:
    await a_session(client)
    await start(client, "s1/asks", GATE)
    assert await nexum(address, "fork", "s1", "s2", "--as", "ann") == Finished(
        0, "Session s2 has 6 executions of s1, with 3 turns.\ns1/asks has not ended, and is left out.\n", ""
    )
    assert (await nexum(address, "fork", "s1", "s3", "--before", "2")).stdout == (
        "Session s3 has 2 executions of s1, with 1 turn.\n"
    )
    shown = (await nexum(address, "show", "s2")).stdout.splitlines()
    assert re.fullmatch(r"forked from s1 by ann at .* UTC", shown[1])
    assert "copied from session s1 by ann" in (await nexum(address, "show", "s2/turn/3")).stdout
    told = json.loads((await nexum(address, "sessions", "s3", "--json")).stdout)
    assert told["forked_from"].keys() == {"session_id", "before", "by", "forked_at_ms"}
    assert_refused(await nexum(address, "fork", "s1", "s2"), "Session s2 is there already.", FAILED)
    assert_refused(await nexum(address, "fork", "ghost", "s4"), "No session 'ghost' is known.", FAILED)
    assert_refused(await nexum("localhost:1", "fork", "s1", "s4"), "No Nexum server answers", NO_SERVER)


@pytest.mark.parametrize("command", ["forget", "fork"])
async def test_help_has_an_example(command: str) -> None:
    told = (await nexum("localhost:1", command, "--help")).stdout
    assert f"Examples:\n    nexum {command} my-session" in told or f"Examples:\n  nexum {command} my-session" in told
