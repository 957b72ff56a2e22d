"""Questions to a person, deadlines for their answers, and a yes to something else than was asked for."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from nexum import NexumClient, workflow
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, NexumDev, eventually
from test_engine import Bench, bench
from test_stock_sdk import in_a_thread

from nexum_runtime import Client, human_approval, wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.app import Server
from nexum_runtime.server.model.shapes import Resolution, Verdict

__all__ = ["bench"]

ASK = {"ask": "HUMAN_APPROVAL"}
GATE = {"ask": "HUMAN_APPROVAL", "run": "EFFECT ask"}
ACCOUNT = {"question": "Which account?", "choices": ["main", "savings"]}
QUESTION = human_approval(workflow("question"), "answer").build()
DEADLINE_MS = 60_000


async def asked(bench: Bench, input: Any = ACCOUNT, nodes: dict[str, str] = ASK, **order: Any) -> None:
    await bench.register(nodes)
    await bench.start(input_json=json.dumps(input), asks=True, **order)


async def answer(bench: Bench, text: str, by: str = "anna") -> str:
    return await bench.engine.answer("e", "ask", Verdict(True, by, text))


async def output(bench: Bench) -> Any:
    return json.loads((await bench.snapshot()).outputs["ask"])


# Answers


async def test_the_answer_to_a_question_is_recorded_as_the_words_of_a_yes(bench: Bench) -> None:
    await asked(bench)
    assert (await bench.snapshot()).waits_for == "approval"
    assert await answer(bench, "savings") == "Answered."
    assert await output(bench) == {"approved": True, "approver": "anna", "comment": "savings"}
    assert await bench.status() == "COMPLETED"
    requested, told = (await bench.events())[1:3]
    assert (requested["type"], requested["choices"]) == ("ApprovalRequested", ["main", "savings"])
    assert (told["type"], told["approver"], told["answer"]) == ("TaskAnswered", "anna", "savings")


async def test_an_answer_that_is_none_of_the_choices_is_refused_and_the_question_stays_open(bench: Bench) -> None:
    await asked(bench)
    for text in ("checking", "Main", "main ", " "):
        with pytest.raises(InvalidRequest, match="it can be one of: main, savings"):
            await answer(bench, text)
    assert await bench.pending() == [("e", "ask")]
    assert await answer(bench, "main") == "Answered."


async def test_without_choices_any_text_is_an_answer_but_an_empty_or_an_endless_one(bench: Bench) -> None:
    await asked(bench, {"question": "Why?"})
    with pytest.raises(InvalidRequest, match=r"Node ask of e is a question\. The answer to it is empty\."):
        await answer(bench, " \n")
    with pytest.raises(LimitExceeded, match="is 65537 characters long; the limit is 65536"):
        await answer(bench, "x" * (wire.ANSWER_CHARS_LIMIT + 1))
    assert await answer(bench, "Porque não,\nmãe 🦊") == "Answered."
    assert (await output(bench))["comment"] == "Porque não,\nmãe 🦊"


async def test_the_first_answer_wins_and_who_gives_another_is_told_it(bench: Bench) -> None:
    await asked(bench)
    await answer(bench, "main")
    told = "Node ask of e was answered by anna already: main; nothing was changed."
    assert await answer(bench, "main", "bob") == told
    with pytest.raises(InvalidRequest, match=told):
        await answer(bench, "savings", "bob")
    with pytest.raises(InvalidRequest, match=told):
        await bench.reject()


async def test_a_question_that_is_rejected_is_asked_again_when_a_person_says_so(bench: Bench) -> None:
    await asked(bench, deadline_ms=DEADLINE_MS, default="main")
    bench.now_ms += 50_000
    await bench.reject()
    assert (await bench.snapshot()).execution.error == "Rejected by bob: too dear"
    await bench.engine.resolve("e", "", Resolution("retry"))
    await bench.pass_time(50_000)
    assert await bench.pending() == [("e", "ask")], "its time began anew"
    with pytest.raises(InvalidRequest, match="one of: main, savings"):
        await answer(bench, "no")
    await bench.pass_time(10_000)
    assert (await output(bench))["comment"] == "main"


async def test_a_question_after_an_effect_is_asked_as_the_start_has_said(bench: Bench) -> None:
    nodes = {"draft": "EFFECT", "ask": "HUMAN_APPROVAL draft"}
    await asked(bench, nodes=nodes, deadline_ms=DEADLINE_MS, default="savings")
    bench.now_ms += 10 * DEADLINE_MS
    await bench.engine.complete(await bench.claim(), "1")
    with pytest.raises(InvalidRequest, match="one of: main, savings"):
        await answer(bench, "fine")
    await bench.pass_time(DEADLINE_MS - 1)
    assert await bench.pending() == [("e", "ask")]
    await bench.pass_time(1)
    assert (await output(bench))["comment"] == "savings"


@pytest.mark.parametrize(
    ("input", "order", "why"),
    [
        ({}, {}, 'The input of e has no "question", a text, to ask a person.'),
        ([], {}, 'The input of e has no "question"'),
        ({"question": " "}, {}, 'The input of e has no "question"'),
        ({"question": 1}, {}, 'The input of e has no "question"'),
        *(
            (
                {"question": "?", "choices": choices},
                {},
                'The "choices" of e are no list of at most 100 different texts.',
            )
            for choices in ("main", ["a", "a"], ["a", 1], ["a", " "], [str(number) for number in range(101)])
        ),
        (ACCOUNT, {"default": "main"}, "nexum-default is for a question that has a deadline"),
        (ACCOUNT, {"default": "main", "deadline_ms": 1, "asks": False}, "nexum-default is for a question"),
        (ACCOUNT, {"default": "x", "deadline_ms": 1}, "The nexum-default of e is 'x'; it can be one of: main, savings"),
        ({"question": "?"}, {"default": " ", "deadline_ms": 1}, "The nexum-default of e is empty"),
    ],
)
async def test_a_question_that_cannot_be_asked_is_refused(
    bench: Bench, input: Any, order: dict[str, Any], why: str
) -> None:
    await bench.register(ASK)
    with pytest.raises(InvalidRequest) as refused:
        await bench.start(input_json=json.dumps(input), **{"asks": True} | order)
    assert why in str(refused.value)
    assert await bench.pending() == []


# Deadlines


async def test_a_question_that_nobody_answers_in_time_has_its_default_answer(bench: Bench) -> None:
    await asked(bench, deadline_ms=DEADLINE_MS, default="main")
    due_ms = bench.now_ms + DEADLINE_MS
    assert (await bench.events())[1].items() >= {"due_at_ms": due_ms, "default": "main"}.items()
    await bench.pass_time(DEADLINE_MS - 1)
    assert await bench.status() == "RUNNING"
    await bench.pass_time(1)
    assert await output(bench) == {"approved": True, "approver": "", "comment": "main", "by_default": True}
    assert await bench.status() == "COMPLETED"
    assert (await bench.events())[2].items() >= {"type": "DeadlinePassed", "at": due_ms, "answer": "main"}.items()
    with pytest.raises(InvalidRequest, match=r"nobody had answered in time, and so it is: main\. Nothing"):
        await answer(bench, "savings")


@pytest.mark.parametrize(("asks", "error"), [(True, "Nobody answered"), (False, "Nobody said yes")])
async def test_without_a_default_it_has_failed_and_a_person_can_have_it_asked_again(
    bench: Bench, asks: bool, error: str
) -> None:
    await bench.register(GATE)
    await bench.start(input_json=json.dumps(ACCOUNT), asks=asks, deadline_ms=DEADLINE_MS)
    await bench.pass_time(DEADLINE_MS)
    execution = (await bench.snapshot()).execution
    assert (execution.status, execution.error_code) == ("FAILED", "TOOL_ERROR")
    assert execution.error == f"{error} within 60.0 s."
    assert (await bench.story())[-2:] == ["DeadlinePassed ask", "ExecutionFailed"]
    with pytest.raises(InvalidRequest, match=r"Node ask of e: nobody had answered in time\. Nothing was changed\."):
        await answer(bench, "main")
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "main")
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_who_asks_again_with_another_deadline_moves_none(bench: Bench) -> None:
    await asked(bench, deadline_ms=DEADLINE_MS)
    bench.now_ms += DEADLINE_MS - 1
    assert (await bench.start(input_json=json.dumps(ACCOUNT), asks=True, deadline_ms=10 * DEADLINE_MS)).before != "NEW"
    await bench.pass_time(1)
    assert await bench.status() == "FAILED"


async def test_a_deadline_that_passed_while_the_server_was_away_counts_before_any_answer(bench: Bench) -> None:
    await asked(bench, deadline_ms=DEADLINE_MS, default="main")
    bench.now_ms += DEADLINE_MS
    bench.engine = bench.new_engine()
    with pytest.raises(
        InvalidRequest, match=r"Node ask of e: the time to answer was over at 2023-11-14T22:14:20\.000Z"
    ):
        await answer(bench, "savings")
    await bench.engine.sweep()
    assert (await output(bench))["by_default"] is True


async def test_an_answer_in_time_leaves_the_deadline_nothing_to_do(bench: Bench) -> None:
    await asked(bench, deadline_ms=DEADLINE_MS, default="main")
    await answer(bench, "savings")
    assert await bench.store.read(lambda reader: reader.next_timer()) is None
    await bench.pass_time(2 * DEADLINE_MS)
    assert (await output(bench))["comment"] == "savings"


# A yes to something else


async def test_a_yes_may_change_what_is_approved_and_both_the_event_and_the_output_say_so(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start(takes_args=True)
    assert await bench.engine.answer("e", "ask", Verdict(True, "anna", "less", {"amount": 5})) == "Approved."
    claimed = await bench.poll()
    assert claimed is not None
    changed = {"approver": "anna", "comment": "less", "args": {"amount": 5}}
    assert json.loads(claimed.input_json)["deps"]["ask"] == {"approved": True} | changed
    assert (await bench.events())[2].items() >= changed.items()
    with pytest.raises(InvalidRequest, match="was approved by anna already; nothing was changed"):
        await bench.engine.answer("e", "ask", Verdict(True, "bob", "", {"amount": 6}))


@pytest.mark.parametrize("order", [{}, {"asks": True, "takes_args": True}])
async def test_what_would_not_heed_other_arguments_takes_none(bench: Bench, order: dict[str, Any]) -> None:
    await bench.register(GATE)
    await bench.start(input_json=json.dumps(ACCOUNT), **order)
    with pytest.raises(InvalidRequest, match=r"Node ask of e takes no other arguments\. Say no to it, and why"):
        await bench.engine.answer("e", "ask", Verdict(True, "anna", "main", {}))
    assert await bench.pending() == [("e", "ask")]


@pytest.mark.parametrize("told", ["fine", "1", "{}", '{"args": 1}', '{"args": [], "comment": ""}', '{"comment": "x"}'])
async def test_an_approve_without_an_object_of_arguments_is_refused(client: Client, told: str) -> None:
    fields = {"execution_id": "e", "node_id": "ask", "comment": told}
    with pytest.raises(InvalidRequest, match=r'The comment of an Approve must be {"comment": text, "args": {…}}'):
        await client.way.ask("Approve", fields, {})


async def test_half_a_character_which_json_can_spell_is_kept_as_it_is(bench: Bench) -> None:
    half = "\ud83e"
    await asked(bench, {"question": "?", "choices": [half]}, deadline_ms=DEADLINE_MS, default=half)
    await bench.pass_time(DEADLINE_MS)
    assert (await output(bench))["comment"] == half
    assert (await bench.events())[1]["choices"] == [half]
    await bench.start("e2", takes_args=True)
    await bench.engine.answer("e2", "ask", Verdict(True, "anna", "", {"text": half}))
    assert (await bench.events("e2"))[2]["args"] == {"text": half}


# Over the wire


async def test_a_stock_client_answers_a_question_by_the_comment_of_its_yes(server: Server, client: Client) -> None:
    executing = asyncio.create_task(client.execute(QUESTION, ACCOUNT, execution_id="s/1", asks=True))
    await eventually(client.approvals)

    async def work(stock: NexumClient) -> Any:
        named = {"execution_id": "s/1", "node_id": "answer", "approver": "Eva"}
        with pytest.raises(Exception, match="Node answer of s/1 is a question; answer it: nexum answer s/1 TEXT"):
            stock._stub.ApproveTask(pb.ApproveRequest(**named))
        return stock._stub.ApproveTask(pb.ApproveRequest(**named, comment="savings"))

    assert (await in_a_thread(work, server.port)).message == "Answered."
    assert (await executing).outputs["answer"]["comment"] == "savings"


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({wire.DEADLINE_MS: "0"}, "nexum-deadline-ms is '0'; it must be a whole number from 1 to 316224000000."),
        ({wire.DEFAULT: "main"}, "nexum-default is 'main'; it must be a text as JSON."),
        ({wire.DEFAULT: "1"}, "nexum-default is '1'; it must be a text as JSON."),
    ],
)
async def test_metadata_that_say_nothing_are_refused_by_name(
    client: Client, metadata: dict[str, str], why: str
) -> None:
    await client.register(QUESTION)
    fields = {"workflow_id": "question", "input_json": json.dumps(ACCOUNT)}
    with pytest.raises(InvalidRequest) as refused:
        await client.way.ask("StartExecution", fields, {wire.QUESTION: "true"} | metadata)
    assert str(refused.value) == why


async def test_a_default_answer_in_any_script_is_given_as_soon_as_it_is_due(client: Client) -> None:
    input = {"question": "¿Por qué?"}
    default = "porque não 🦊 \x7f\n"
    outcome = await client.execute(QUESTION, input, execution_id="s/1", asks=True, deadline=0.001, default=default)
    assert outcome.outputs["answer"] == {"approved": True, "approver": "", "comment": default, "by_default": True}


async def test_a_deadline_that_passes_while_the_server_is_dead_has_passed_at_its_restart(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        options: dict[str, Any] = {"asks": True, "deadline": 2.0}
        executing = [
            asyncio.create_task(client.execute(QUESTION, ACCOUNT, execution_id=id, default=default, **options))
            for id, default in (("none", None), ("default", "main"))
        ]

        async def both_wait() -> bool:
            return len(await client.approvals()) == 2

        await eventually(both_wait)
        first_ms, due_ms = sorted(
            [await _at(client, id, "ApprovalRequested", "due_at_ms") for id in ("none", "default")]
        )
        nexum.kill()
        killed_ms = _now_ms()
        await eventually(lambda: _now_ms() > due_ms, "the deadline")
        started_ms = _now_ms()
        await nexum.restart()
        async with asyncio.timeout(PATIENCE_SECONDS):
            none, default = await asyncio.gather(*executing)
        assert default.outputs["answer"]["by_default"] is True
        assert (none.error_code, none.error) == ("TOOL_ERROR", "Nobody answered within 2.0 s.")
        if killed_ms < first_ms:  # and not later, on a busy machine
            assert await _at(client, "none", "DeadlinePassed") >= started_ms


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _at(client: Client, execution_id: str, type: str, name: str = "at_ms") -> int:
    (history,) = [each async for each in client.history(execution_id)]
    return next(int(each[name]) for each in history["events"] if each["type"] == type)
