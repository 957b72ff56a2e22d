"""What people decide with the `nexum` command: approvals, unknown outcomes, what stops and what is tried again."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from command import ECHO, EVIL, GATE, GATES, Text, assert_refused, claim, finish, nexum, start, unused
from nexum import workflow
from processes import NEXUM, PATIENCE_SECONDS, Finished, eventually
from test_demo import stage

from nexum_runtime import Client, Outcome, human_approval
from nexum_runtime.cli.base import USAGE, clock_text, clock_time

__all__ = ["stage"]

FOREVER_MS = 60_000


# nexum resolve


async def unknown(client: Client, definition: Any = ECHO, nodes: int = 1, execution_id: str = "e") -> None:
    """An execution of what happens once, whose worker stopped in the middle of each of its nodes."""
    await client.register(definition)
    executing = asyncio.create_task(client.execute(definition, {}, execution_id=execution_id, effect="once"))
    claimed = [await client.poll("worker-1", definition, lease_ms=60_000, wait_ms=FOREVER_MS) for _ in range(nodes)]
    for attempt in claimed:
        assert attempt is not None
        await client.fail(attempt.task_id, "Its worker was stopped.", interrupted=True)
    assert (await executing).error_code == "OUTCOME_UNKNOWN"


async def test_resolve_records_a_result_as_text(client: Client, address: str) -> None:
    await unknown(client)
    finished = await nexum(address, "resolve", "e", "--result", 'It\'s sent,\n"17" é')
    assert finished == Finished(0, "Execution e is COMPLETED.\n", "")
    assert (await client.status("e")).outputs == {"run": 'It\'s sent,\n"17" é'}
    told = (await nexum(address, "show", "e")).stdout
    assert "run: a person said: it happened, and this is its result" in told
    again = await nexum(address, "resolve", "e", "--failed", "no")
    assert_refused(again, "Execution e is COMPLETED; no outcome of it is unknown.")


async def test_resolve_records_why_it_failed(client: Client, address: str) -> None:
    await unknown(client)
    finished = await nexum(address, "resolve", "e", "--failed", "the bank never saw it")
    assert finished == Finished(0, "Execution e is FAILED.\n", "")
    outcome = await client.status("e")
    assert (outcome.error_code, outcome.error) == ("TOOL_ERROR", "the bank never saw it")
    assert "run: a person said: it failed: the bank never saw it" in (await nexum(address, "show", "e")).stdout


async def test_resolve_has_it_tried_again(client: Client, address: str) -> None:
    await unknown(client)
    assert await nexum(address, "resolve", "e", "--retry") == Finished(0, "Execution e is tried again.\n", "")
    assert_refused(await nexum(address, "resolve", "e", "--retry"), "is RUNNING; there is nothing to try again.")
    await client.complete(await claim(client), '{"text": "sent"}')
    assert "a person said: try again" in (await nexum(address, "show", "e")).stdout


async def test_resolve_names_the_node_when_several_are_unknown(client: Client, address: str) -> None:
    pair = workflow("pair").effect("a", Text, unused, depends_on=[]).effect("b", Text, unused, depends_on=[]).build()
    await unknown(client, pair, nodes=2)
    finished = await nexum(address, "resolve", "e", "--result", "x")
    assert_refused(finished, "Say which node of e (--node); its outcome is unknown at a, b.")
    assert (await nexum(address, "resolve", "e", "--result", "x", "--node", "b")).stdout == "Execution e is FAILED.\n"
    assert_refused(await nexum(address, "resolve", "e", "--retry", "--node", "a"), "leave --node away.")
    settled = await nexum(address, "resolve", "e", "--result", "y")
    assert (settled.stderr, settled.stdout) == ("", "Execution e is COMPLETED.\n"), (
        "only one is left: no name is needed"
    )
    assert (await client.status("e")).outputs == {"b": "x", "a": "y"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("e", "--failed", ""), "Say why e failed: the reason is empty."),
        (("ghost", "--retry"), "No execution 'ghost' is known."),
        (("gh ost", "--retry"), "'gh ost' is not 1 to 200 of A-Z"),
        (("e\udcff", "--retry"), "A word of this command is not Unicode text: 'e\\udcff'."),
        (("e", "--failed", "\udcff"), "A word of this command is not Unicode text: '\\udcff'."),
        (("e", "--result", "\udcff"), "Execution e is RUNNING; no outcome of it is unknown."),
        (("e", "--result", "x"), "Execution e is RUNNING; no outcome of it is unknown."),
    ],
)
async def test_resolve_refuses_in_a_sentence_what_makes_no_sense(
    client: Client, address: str, words: tuple[str, ...], sentence: str
) -> None:
    await start(client, "e")
    assert_refused(await nexum(address, "resolve", *words), sentence)


@pytest.mark.parametrize("words", [(), ("--retry", "--failed", "no")])
async def test_resolve_wants_one_word_on_what_became_of_it(address: str, words: tuple[str, ...]) -> None:
    sentence = "Add one of these: --result TEXT, --failed REASON, --retry."
    assert_refused(await nexum(address, "resolve", "e", *words), sentence, USAGE)


# nexum retry


async def test_retry_tries_again_what_failed_or_was_cancelled(client: Client, address: str) -> None:
    await start(client, "e")
    assert_refused(await nexum(address, "retry", "e"), "Execution e is RUNNING; there is nothing to try again.")
    await client.fail(await claim(client), "no luck", retryable=False)
    assert await nexum(address, "retry", "e") == Finished(0, "Execution e is tried again.\n", "")
    await client.cancel("e")
    assert await nexum(address, "retry", "e") == Finished(0, "Execution e is tried again.\n", "")
    await client.complete(await claim(client), '{"text": "é"}')
    assert (await client.status("e")).status == "COMPLETED"
    assert_refused(await nexum(address, "retry", "e"), "Execution e is COMPLETED; there is nothing to try again.")
    assert_refused(await nexum(address, "retry", "ghost"), "No execution or session 'ghost' is known.")


@pytest.mark.parametrize("name", ["s", "s/"])
async def test_retry_of_a_session_tries_again_all_that_failed_in_it(client: Client, address: str, name: str) -> None:
    for execution_id in ("s/a", "s10/x", "s/b"):
        await start(client, execution_id)
        await client.fail(await claim(client), "no luck", retryable=False)
    await finish(client, "s/c")
    await start(client, "s/d")
    await client.cancel("s/d")
    finished = await nexum(address, "retry", name)
    assert finished == Finished(0, "Execution s/a is tried again.\nExecution s/b is tried again.\n", "")
    listed = await client.executions()
    assert {each.execution_id: each.status for each in listed} == {
        "s/a": "RUNNING",
        "s/b": "RUNNING",
        "s/c": "COMPLETED",
        "s/d": "CANCELLED",
        "s10/x": "FAILED",
    }
    assert await nexum(address, "retry", name) == Finished(0, f"Nothing of session {name} has failed.\n", "")


@pytest.mark.parametrize("name", ["s/e", "s"])
async def test_retry_leaves_alone_what_may_have_happened_and_happens_once(
    client: Client, address: str, name: str
) -> None:
    await unknown(client, execution_id="s/e")
    said = "s/e happens once, and may have happened. Say what happened: nexum resolve s/e --result 'what it returned'"
    assert_refused(await nexum(address, "retry", name), said)
    assert (await client.status("s/e")).error_code == "OUTCOME_UNKNOWN"
    assert (await nexum(address, "retry", name, "--unknown")).stdout == "Execution s/e is tried again.\n"
    assert (await client.status("s/e")).status == "RUNNING"


async def test_retry_of_what_may_be_repeated_needs_no_second_word(client: Client, address: str) -> None:
    await client.register(ECHO)
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="e", max_attempts=1))
    await client.fail(await claim(client, FOREVER_MS), "Its worker was stopped.", interrupted=True)
    assert (await executing).error_code == "OUTCOME_UNKNOWN"
    assert (await nexum(address, "retry", "e")).stdout == "Execution e is tried again.\n"


# nexum cancel


async def test_cancel_ends_an_execution_and_tells_its_worker_to_stop(client: Client, address: str) -> None:
    await start(client, "e")
    task_id = await claim(client)
    assert await nexum(address, "cancel", "e") == Finished(0, "Execution cancelled\n", "")
    assert (await client.status("e")).status == "CANCELLED"
    assert await client.heartbeat("worker-1", [task_id]) == [task_id]
    again = await nexum(address, "cancel", "e")
    assert again == Finished(0, "Execution e is CANCELLED already; nothing was changed.\n", "")


@pytest.mark.parametrize("name", ["s", "s/"])
async def test_cancel_of_a_session_ends_all_that_runs_of_it(client: Client, address: str, name: str) -> None:
    await finish(client, "s/done")
    for execution_id in ("s/a", "s10/x", "s/b"):
        await start(client, execution_id)
    finished = await nexum(address, "cancel", name)
    assert finished == Finished(0, "s/a: Execution cancelled\ns/b: Execution cancelled\n", "")
    statuses = {each.execution_id: each.status for each in await client.executions()}
    assert statuses == {"s/done": "COMPLETED", "s/a": "CANCELLED", "s/b": "CANCELLED", "s10/x": "RUNNING"}
    assert await nexum(address, "cancel", name) == Finished(0, f"Nothing of session {name} runs.\n", "")
    assert_refused(await nexum(address, "cancel", "ghost"), "No execution or session 'ghost' is known.")


# Approvals


async def test_without_an_approval_that_waits_there_is_nothing_to_answer(client: Client, address: str) -> None:
    await start(client, "s/e")
    assert await nexum(address, "approvals") == Finished(0, "Nothing waits for an approval.\n", "")
    assert await nexum(address, "approvals", "--json") == Finished(0, "", "")
    for words in (("approve", "s/e"), ("reject", "s/e", "--reason", "no")):
        said = "s/e waits for no approval. See what does with: nexum approvals"
        assert_refused(await nexum(address, *words), said)
        assert_refused(await nexum(address, *words, "run"), "Node 'run' of 's/e' waits for no approval.")
    assert_refused(await nexum(address, "reject", "s/e", "--reason", " "), "Say why: --reason is empty.", USAGE)
    assert (await nexum(address, "reject", "s/e")).code == USAGE


@pytest.fixture
async def waiting(client: Client) -> None:
    """Executions that wait for an approval, one of them for two."""
    for execution_id, definition in (("s/e", GATE), ("s/two", GATES), ("s10/e", GATE)):
        await start(client, execution_id, definition)


@pytest.mark.usefixtures("waiting")
async def test_approvals_tell_what_waits_for_what_and_how_to_answer(client: Client, address: str) -> None:
    since = (await client.approvals())[0].started_at
    assert '  input {"q":"página"}\n' in (await nexum(address, "approvals", "s")).stdout
    told = await nexum(address, "approvals", "s/e")
    assert told.stdout.splitlines() == [
        f"s/e approve waits since {since[:10]} {since[11:19]} UTC",
        "  input {",
        '  "q": "página"',
        "}",
        "  nexum approve s/e approve",
        "  nexum reject s/e approve --reason 'why not'",
    ]
    as_json = [json.loads(line) for line in (await nexum(address, "approvals", "s", "--json")).stdout.splitlines()]
    assert [(each["execution_id"], each["node_id"]) for each in as_json] == [
        ("s/e", "approve"),
        ("s/two", "first"),
        ("s/two", "second"),
    ]
    assert as_json[0] == {
        "execution_id": "s/e",
        "node_id": "approve",
        "workflow_id": "gate",
        "started_at": since,
        "input": {"q": "página"},
        "question": None,
        "choices": None,
        "default": None,
        "due_at_ms": None,
    }
    shown = (await nexum(address, "show", "s")).stdout
    assert "\ne   waits for an approval\ntwo waits for an approval\n" in shown
    assert "s/e approve waits for your answer:\n  nexum approve s/e approve\n  nexum reject s/e approve" in shown


@pytest.mark.usefixtures("waiting")
async def test_an_answer_goes_to_the_node_that_waits(client: Client, address: str) -> None:
    answered = await nexum(address, "approve", "s/e", "--comment", "fine", LOGNAME="anna")
    assert answered == Finished(0, "Approved.\n", "")
    assert_refused(await nexum(address, "approve", "s/two"), "Say which node of s/two: first, second.")
    assert_refused(await nexum(address, "approve", "s"), "s is a session; answer each with its own command")
    assert (await nexum(address, "reject", "s/two", "second", "--reason", "no", "--as", "bob")).stdout == "Rejected.\n"
    assert (await client.status("s/e")).outputs["approve"] == {"approved": True, "approver": "anna", "comment": "fine"}
    assert (await client.status("s/two")).error == "Rejected by bob: no"
    assert [each.execution_id for each in await client.approvals()] == ["s10/e"]


@pytest.mark.usefixtures("waiting")
async def test_an_answer_may_be_given_in_the_words_of_the_original_command(client: Client, address: str) -> None:
    server = ("-s", address)
    answered = await nexum("nowhere:1", "approve", "s/two:first", "--approver", "anna", *server)
    assert answered == Finished(0, "Approved.\n", "")
    refused = await nexum("nowhere:1", "reject", "s/two:second", "--reason", "no", "--approver", "bob", *server)
    assert refused == Finished(0, "Rejected.\n", "")
    assert (await client.status("s/two")).error == "Rejected by bob: no"
    assert_refused(await nexum(address, "approve", "s/e:nope"), "Node 'nope' of 's/e' waits for no approval.")


@pytest.mark.usefixtures("waiting")
async def test_who_answers_what_is_answered_is_told_so(address: str) -> None:
    await nexum(address, "approve", "s/e", "--as", "anna")
    told = "Node approve of s/e was approved by anna already; nothing was changed."
    assert await nexum(address, "approve", "s/e", "approve", "--as", "bob") == Finished(0, f"{told}\n", "")
    assert_refused(await nexum(address, "reject", "s/e", "approve", "--reason", "no"), told)


@pytest.mark.usefixtures("waiting")
async def test_show_tells_what_people_said(address: str) -> None:
    await nexum(address, "approve", "s/e", "--as", "anna", "--comment", f"fine {EVIL}")
    await nexum(address, "reject", "s10/e", "--as", "bob", "--reason", "too dear")
    told = [(await nexum(address, "show", name)).stdout for name in ("s/e", "s10/e")]
    for text, said in zip(told, ("approved by anna: fine ", "rejected by bob: too dear"), strict=True):
        assert "approve: waits for a person's yes" in text
        assert f"approve: {said}" in text
        assert "\x1b" not in text


@pytest.mark.usefixtures("waiting")
async def test_what_is_answered_already_says_so_also_when_its_node_is_not_named(address: str) -> None:
    await nexum(address, "approve", "s/e", "--as", "anna")
    told = "Node approve of s/e was approved by anna already; nothing was changed."
    assert (await nexum(address, "approve", "s/e")).stdout == f"{told}\n"
    assert_refused(await nexum(address, "reject", "s/e", "--reason", "no"), told)


# Questions

QUESTION = human_approval(workflow("question"), "answer").build()
ACCOUNT = {"question": "Which account?\nSay it \x1b[2J.", "choices": ["main", "savings"]}


@asynccontextmanager
async def asking(client: Client, input: Any = ACCOUNT, **options: Any) -> AsyncIterator["asyncio.Task[Outcome]"]:
    """A question that somebody waits for in session s."""
    executing = asyncio.create_task(client.execute(QUESTION, input, execution_id="s/ask", asks=True, **options))
    await eventually(client.approvals)
    yield executing
    async with asyncio.timeout(PATIENCE_SECONDS):
        await executing


async def test_approvals_list_a_question_with_its_words_its_choices_its_time_and_what_answers_it(
    client: Client, address: str
) -> None:
    async with asking(client, deadline=3_600, default="main"):
        (waiting,) = await client.approvals()
        due_ms = (await the_history(client, "s/ask"))["events"][1]["due_at_ms"]
        listed, alone = [(await nexum(address, "approvals", name)).stdout.splitlines() for name in ("s", "s/ask")]
        assert listed == [
            f"s/ask answer waits since {clock_text(waiting.started_at)} UTC",
            r"  asks Which account?\nSay it \u001b[2J.",
            "  choices main, savings",
            f"  until {clock_time(due_ms)}, then the answer is main",
            "  nexum answer s/ask 'your answer'",
            "  nexum reject s/ask answer --reason 'why not'",
        ]
        assert alone == [listed[0], "  asks Which account?", r"Say it \u001b[2J.", *listed[2:]], "the whole of it"
        told = json.loads((await nexum(address, "approvals", "--json")).stdout)
        assert told == {
            "execution_id": "s/ask",
            "node_id": "answer",
            "workflow_id": "question",
            "started_at": waiting.started_at,
            "input": ACCOUNT,
            "question": ACCOUNT["question"],
            "choices": ["main", "savings"],
            "default": "main",
            "due_at_ms": due_ms,
        }
        shown = (await nexum(address, "show", "s")).stdout
        assert "ask waits for an answer" in shown
        assert (
            "s/ask answer waits for your answer:\n  nexum answer s/ask 'your answer'\n  nexum reject s/ask answer"
            in shown
        )
        assert await nexum(address, "answer", "s/ask", "main") == Finished(0, "Answered.\n", "")


async def test_of_an_open_question_without_a_default_it_is_said_that_it_fails(client: Client, address: str) -> None:
    input = {"question": "Why?", "since": "then"}
    async with asking(client, input, deadline=3_600):
        told = (await nexum(address, "approvals", "s")).stdout.splitlines()
        assert told[1:3] == ["  asks Why?", '  input {"since":"then"}']
        assert told[3].endswith("UTC, then it fails")
        assert '  input {\n  "since": "then"\n}\n' in (await nexum(address, "approvals", "s/ask")).stdout
        await nexum(address, "answer", "s/ask", "because")


async def test_an_answer_is_one_of_the_choices_and_who_gave_it_is_told(client: Client, address: str) -> None:
    async with asking(client) as executing:
        refused = "Node answer of s/ask is a question. The answer to it is 'checking'; it can be one of: main, savings"
        assert_refused(await nexum(address, "answer", "s/ask", "checking"), refused)
        assert_refused(await nexum(address, "approve", "s/ask"), "answer it: nexum answer s/ask TEXT")
        assert_refused(await nexum(address, "approve", "s/ask", "--args", "{}"), "takes no other arguments.")
        assert await nexum(address, "answer", "s/ask", "savings", "--as", "anna") == Finished(0, "Answered.\n", "")
        assert (await executing).outputs["answer"] == {"approved": True, "approver": "anna", "comment": "savings"}
    already = "Node answer of s/ask was answered by anna already: savings; nothing was changed."
    assert (await nexum(address, "answer", "s/ask", "savings")).stdout == f"{already}\n"
    assert_refused(await nexum(address, "answer", "s/ask", "main"), already)
    told = (await nexum(address, "show", "s/ask")).stdout
    assert "answer: waits for a person's answer (main, savings)\n" in told
    assert "answer: answered by anna: savings\n" in told


async def test_an_answer_is_read_from_stdin_for_a_dash(client: Client, address: str) -> None:
    async with asking(client, {"question": "Why?"}) as executing:
        command = [NEXUM, "answer", "s/ask", "-", "-s", address]
        answered = await asyncio.to_thread(subprocess.run, command, input=b"two\nlines\n", capture_output=True)
        assert answered.stdout == b"Answered.\n", answered.stderr
        assert (await executing).outputs["answer"]["comment"] == "two\nlines"


async def test_show_tells_that_nobody_answered_in_time(client: Client, address: str) -> None:
    for execution_id, more in (("s/none", {}), ("s/main", {"default": "main"})):
        await client.execute(QUESTION, ACCOUNT, execution_id=execution_id, asks=True, deadline=0.001, **more)  # type: ignore[arg-type]
    told = [(await nexum(address, "show", name)).stdout for name in ("s/none", "s/main")]
    assert re.search(r"answer: waits for a person's answer \(main, savings\), until 2\d{3}-.+ UTC\n", told[0])
    assert "answer: nobody answered in time\n" in told[0]
    assert "failed (TOOL_ERROR): Nobody answered within 1 ms." in told[0]
    assert "answer: nobody answered in time, so it is: main\n" in told[1]
    late = "Node answer of s/none: nobody had answered in time. Nothing was changed."
    assert_refused(await nexum(address, "answer", "s/none", "main"), late)


@pytest.mark.usefixtures("waiting")
async def test_a_yes_is_no_answer(address: str) -> None:
    said = "s/e waits for a yes, not for an answer: nexum approve s/e, or nexum reject s/e"
    assert_refused(await nexum(address, "answer", "s/e", "yes"), said)
    assert_refused(await nexum(address, "answer", "s/two", "yes"), "Say which node of s/two: first, second.")
    assert_refused(await nexum(address, "answer", "s/two", "yes", "--node", "first"), "s/two waits for a yes")
    assert_refused(await nexum(address, "answer", "ghost", "yes"), "ghost waits for no approval.")


async def test_of_several_questions_the_command_names_the_node(client: Client, address: str) -> None:
    two = human_approval(human_approval(workflow("two"), "first"), "second", depends_on=()).build()
    executing = asyncio.create_task(client.execute(two, {"question": "Why?"}, execution_id="s/two", asks=True))
    await eventually(client.approvals)
    told = (await nexum(address, "approvals", "s")).stdout
    for node in ("first", "second"):
        assert f"  nexum answer s/two 'your answer' --node {node}\n" in told
        assert (await nexum(address, "answer", "s/two", node, "--node", node)).stdout == "Answered.\n"
    assert (await executing).outputs["second"]["comment"] == "second"


# A yes to other arguments


async def test_a_yes_may_be_to_other_arguments_and_show_tells_them(client: Client, address: str) -> None:
    executing = asyncio.create_task(client.execute(GATE, {"amount": 500}, execution_id="s/e", takes_args=True))
    await eventually(client.approvals)
    for words, said in (
        ("{", "--args is not JSON: "),
        ("NaN", "--args is not JSON: NaN is not JSON."),
        ("[1]", "--args is [1]; it must be a JSON object, with all the arguments."),
        ('"x"', '--args is "x"; it must be a JSON object'),
    ):
        assert_refused(await nexum(address, "approve", "s/e", "--args", words), said, USAGE)
    options = ("--args", '{"amount": 5}', "--comment", "only this once", "--as", "anna")
    assert (await nexum(address, "approve", "s/e", *options)).stdout == "Approved.\n"
    assert (await executing).outputs["approve"]["args"] == {"amount": 5}
    told = (await nexum(address, "show", "s/e")).stdout
    assert 'approve: approved by anna, with {"amount":5}: only this once\n' in told


@pytest.mark.usefixtures("waiting")
async def test_what_does_not_heed_other_arguments_is_not_approved_with_them(client: Client, address: str) -> None:
    said = "Node approve of s/e takes no other arguments. Say no to it, and why: nexum reject s/e --reason 'why not'"
    assert_refused(await nexum(address, "approve", "s/e", "--args", "{}"), said)
    assert "s/e" in [each.execution_id for each in await client.approvals()]


async def the_history(client: Client, execution_id: str) -> Any:
    (history,) = [each async for each in client.history(execution_id)]
    return history


# Timers


async def test_show_tells_how_long_a_timer_takes(client: Client, address: str) -> None:
    nap = workflow("nap").timer("nap", 3_600).effect("run", Text, unused).build()
    await start(client, "s/nap", nap)
    assert re.search(r"nap waits for a timer, (60|59)\.\d min more", (await nexum(address, "show", "s")).stdout)
    assert "nap: fires in 60.0 min" in (await nexum(address, "show", "s/nap")).stdout
