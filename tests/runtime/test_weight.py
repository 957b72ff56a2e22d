"""What is large and legal is parsed in a process of its own, and the others go on meanwhile."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from nexum.proto import nexum_pb2 as pb
from processes import eventually
from test_wire import ECHO, Wire, start_request, wired

from nexum_runtime import Client, LimitExceeded
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine import apart
from nexum_runtime.server.engine.apart import Apart
from nexum_runtime.server.methods import methods
from nexum_runtime.server.rules import snapshots
from nexum_runtime.server.rules.checks import HEAVY_CHARS
from nexum_runtime.server.store.sql.reader import SqlReader
from nexum_runtime.server.store.sqlite import inspection

__all__ = ["wired"]  # a fixture

HEAVY = json.dumps({"text": "x" * HEAVY_CHARS})
HEAVY_IR = json.dumps({"nodes": {"run": {"type": "EFFECT", "dependencies": [], "note": "x" * HEAVY_CHARS}}})


class Gate:
    """What is to run, by default in the other process, waits until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of: Any = Apart, name: str = "_run") -> None:
        self.waiting, self._open, run = 0, threading.Event(), getattr(of, name)

        def held(*args: Any) -> Any:
            self.waiting += 1
            assert self._open.wait(60)
            return run(*args)

        monkeypatch.setattr(of, name, held)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


async def start_heavy(wired: Wire) -> Any:
    return await wired.answer("StartExecution", start_request(HEAVY), execution_id="heavy")


async def start_heavy_otherwise(wired: Wire) -> Any:
    return await wired.answer("StartExecution", start_request(HEAVY.replace(":", ": ")), execution_id="there")


async def complete_heavily(wired: Wire) -> Any:
    task_id = (await wired.claim()).task_id
    return await wired.answer("CompleteTask", pb.CompleteRequest(task_id=task_id, output_json=HEAVY))


async def register_heavily(wired: Wire) -> Any:
    return await wired.answer(
        "RegisterWorkflow", pb.WorkflowIR(workflow_id="heavy", version_hash="v1", ir_json=HEAVY_IR)
    )


@pytest.mark.parametrize("ask", [start_heavy, start_heavy_otherwise, complete_heavily, register_heavily])
async def test_a_small_call_is_answered_while_a_heavy_one_is_parsed(
    wired: Wire, gate: Gate, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Wire], Coroutine[Any, Any, Any]]
) -> None:
    await wired.start("small")
    if ask is start_heavy_otherwise:
        gate.open()
        await wired.answer("StartExecution", start_request(HEAVY), execution_id="there")
        gate = Gate(monkeypatch)
    asking = asyncio.create_task(ask(wired))
    await eventually(lambda: gate.waiting)
    await wired.start("another")
    assert not asking.done()
    gate.open()
    await asking


async def first(each: AsyncIterator[Any]) -> Any:
    return await anext(each)


LOOKS: list[tuple[Any, str, Callable[[Client, Server], Coroutine[Any, Any, Any]]]] = [
    (SqlReader, "sessions", lambda client, _: client.sessions()),
    (SqlReader, "executions", lambda client, _: client.executions()),
    (SqlReader, "executions", lambda client, _: client.listed()),
    (SqlReader, "events", lambda client, _: first(client.history("s/small"))),
    (SqlReader, "approvals", lambda client, _: client.approvals()),
    (SqlReader, "workflows", lambda client, _: client.versions()),
    (SqlReader, "ended_before", lambda client, _: client.prune("", 0, dry_run=True)),
    (SqlReader, "count_tasks", lambda _, server: server.engine.measure()),
    (inspection, "damage_of", lambda client, _: client.inspect()),
]


async def test_long_answers_are_made_where_nobody_waits_for_them(
    client: Client, wired: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, threading.Thread] = {}

    def noted(of: Any, name: str) -> None:
        make = getattr(of, name)

        def noting(*args: Any) -> Any:
            made[name] = threading.current_thread()
            return make(*args)

        monkeypatch.setattr(of, name, noting)

    noted(methods, "_listed")
    await wired.start("s/e")
    await wired.finish("s/e")
    noted(snapshots, "outputs_json")
    assert [each["execution_id"] for each in await client.listed()] == ["s/e"]
    assert await client.journal("s/") == {"s/e": {"run": {"text": "found"}}}
    assert made.keys() == {"_listed", "outputs_json"}
    assert threading.main_thread() not in made.values()


@pytest.mark.parametrize(("of", "name", "look"), LOOKS, ids=[name for _, name, _ in LOOKS])
async def test_a_small_call_is_answered_while_somebody_looks_at_much(
    server: Server,
    client: Client,
    wired: Wire,
    monkeypatch: pytest.MonkeyPatch,
    of: Any,
    name: str,
    look: Callable[[Client, Server], Coroutine[Any, Any, Any]],
) -> None:
    await wired.start("s/small")
    gate = Gate(monkeypatch, of, name)
    looking = asyncio.create_task(look(client, server))
    try:
        await eventually(lambda: gate.waiting)
        await wired.start("s/another")
        async with asyncio.timeout(20):
            assert (await client.status("s/another")).status == "RUNNING"
            assert (await wired.claim()).has_task
        assert not looking.done()
    finally:
        gate.open()
    await looking


async def test_a_heavy_input_is_the_same_whatever_its_spaces_and_another_one_is_refused(wired: Wire) -> None:
    await wired.answer("StartExecution", start_request(HEAVY), execution_id="heavy")
    again = start_request(HEAVY.replace(":", " : "))
    assert (await wired.answer("StartExecution", again, execution_id="heavy")).execution_id == "heavy"
    code, details = await wired.refusal("StartExecution", start_request(HEAVY[:-3] + 'y"}'), execution_id="heavy")
    assert code == "INVALID_ARGUMENT"
    assert details.startswith('Execution heavy was started with the input {"text":"xxx')
    assert details.endswith("Choose another id.")


@pytest.mark.parametrize("text", ["[" + HEAVY, HEAVY.replace("}", ',"n":NaN}'), "[" * HEAVY_CHARS + "]" * HEAVY_CHARS])
async def test_what_is_heavy_and_no_json_is_refused_as_what_is_light(wired: Wire, text: str) -> None:
    for size, refused in ((text, start_request(text)), (text[:3], start_request(text[:3]))):
        del size
        code, details = await wired.refusal("StartExecution", refused, execution_id="e")
        assert code == "INVALID_ARGUMENT"
        assert details.startswith("The input of e is not JSON: ")


async def test_heavy_results_are_recorded_one_after_the_other_and_read_back(client: Client, wired: Wire) -> None:
    names = [f"e-{number}" for number in range(5)]
    for name in names:
        await wired.start(name)
    tasks = [await wired.claim() for _ in names]
    await asyncio.gather(
        *(wired.answer("CompleteTask", pb.CompleteRequest(task_id=each.task_id, output_json=HEAVY)) for each in tasks)
    )
    for name in names:
        assert (await client.status(name)).outputs == {"run": json.loads(HEAVY)}
        assert [each["input"] async for each in client.history(name)] == [{}]


@pytest.fixture
async def other_process() -> AsyncIterator[Apart]:
    other_process = Apart()
    yield other_process
    other_process.close()


async def test_what_takes_too_long_to_parse_is_refused_and_the_next_one_is_parsed(
    other_process: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await other_process.run("It", len, "abc") == 3
    monkeypatch.setattr(apart, "APART_SECONDS", 0.1)
    with pytest.raises(LimitExceeded, match=r"^It takes more than 0\.1 s or 2,048 MiB of memory to check"):
        await other_process.run("It", time.sleep, 600)
    monkeypatch.undo()
    assert await other_process.run("It", len, "abc") == 3


async def test_what_takes_too_much_memory_to_parse_is_refused_and_the_next_one_is_parsed(
    other_process: Apart,
) -> None:
    with pytest.raises(LimitExceeded, match=r"^It takes more than"):
        await other_process.run("It", bytearray, 3 * 1024**3)
    assert await other_process.run("It", len, "abc") == 3
    with pytest.raises(ValueError, match="invalid literal"):
        await other_process.run("It", int, "abc")


async def test_the_arguments_of_an_approval_have_a_limit(server: Server, client: Client) -> None:
    with pytest.raises(LimitExceeded, match=r"are \d+ characters long; the limit is 262144\.$"):
        await client.approve("e", "run", "ann", args={"text": "x" * HEAVY_CHARS})


async def test_a_question_has_a_limit(client: Client) -> None:
    with pytest.raises(LimitExceeded, match=r"^The question e is \d+ characters long; the limit is 262144\.$"):
        await client.execute(ECHO, {"question": "x" * HEAVY_CHARS}, execution_id="e", asks=True)
