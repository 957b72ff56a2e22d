"""What holds for whatever comes: of graphs, JSON, ids and texts, and of the engine in any order of events."""

import asyncio
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_engine import TIMER_MS, ir

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NexumError
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import EventRow, Execution, Reader, Task
from nexum_runtime.server.model.shapes import Resolution, StartOrder, Verdict
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.store.sqlite import SqliteStore
from nexum_runtime.text import printable, printable_line, redact

settings.register_profile("here", deadline=None, database=None, derandomize="CI" in os.environ)
settings.load_profile("here")

STEPS_MAX = 40  # of one story of the engine
STORIES = 60
LEASE_MS = 5_000
STEP_MS = 2_500  # of a clock that a running server watches

texts = st.text(st.characters(exclude_categories=[]), max_size=8)  # half surrogate pairs, too
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(texts, parts, max_size=4),
    max_leaves=20,
)


def as_read(value: Any) -> Any:
    """The value as any JSON parser reads it: two halves of a surrogate pair that stand together are one character."""
    return json.loads(json.dumps(value))


# JSON


@given(values)
def test_what_is_spelled_canonically_is_read_as_it_was(value: Any) -> None:
    value = as_read(value)
    text = wire.canonical_json(value)
    assert repr(wire.parse_json(text)) == repr(dict_sorted(value))
    assert wire.canonical_json(wire.parse_json(text)) == text
    text.encode()


def dict_sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: dict_sorted(value[key]) for key in sorted(value)}
    return [dict_sorted(each) for each in value] if isinstance(value, list) else value


@given(values, st.randoms(use_true_random=False), st.sampled_from([None, 0, 3]), st.booleans())
def test_the_canonical_text_does_not_depend_on_how_a_value_is_written(
    value: Any, shuffle: random.Random, indent: int | None, ensure_ascii: bool
) -> None:
    value = as_read(value)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in shuffle.sample(sorted(value), len(value))}
        return [shuffled(each) for each in value] if isinstance(value, list) else value

    written = json.dumps(shuffled(value), indent=indent, ensure_ascii=ensure_ascii)
    assert wire.canonical_json(wire.parse_json(written)) == wire.canonical_json(value)


@given(st.text('[]{}"\\,:0123456789.eE+-aNtuldx \n\x00', max_size=30) | texts)
def test_whatever_is_read_as_json_can_be_spelled_again(text: str) -> None:
    try:
        value = wire.parse_json(text)
    except ValueError:
        return
    assert wire.canonical_json(wire.parse_json(wire.canonical_json(value))) == wire.canonical_json(value)


# Graphs

node_ids = st.sampled_from(["a", "b", "c", "d", "é", ""])
definitions = st.fixed_dictionaries(
    {"type": st.sampled_from([*graph.NODE_TYPES, None])},
    optional={
        "dependencies": st.lists(node_ids, max_size=4) | values,
        "delay_seconds": st.integers(0, 9) | values,
        "routes": st.lists(st.fixed_dictionaries({"target": node_ids}), max_size=3) | values,
        "mapNodeId": node_ids | values,
        "subWorkflowId": texts | values,
    },
)


@st.composite
def acyclic(draw: Callable[[Any], Any]) -> str:
    names = draw(st.permutations(["a", "b", "c", "d", "e", "f", "g"]))[: draw(st.integers(1, 7))]
    nodes: dict[str, Any] = {
        name: {"type": "EFFECT", "dependencies": draw(st.lists(st.sampled_from(names[:at]), max_size=4)) if at else []}
        for at, name in enumerate(names)
    }
    for at, name in enumerate(names[:-1]):
        if targets := draw(st.lists(st.sampled_from(names[at + 1 :]), max_size=3)):
            nodes[name] |= {"type": "ROUTER", "routes": [{"target": target} for target in targets]}
    return json.dumps({"nodes": {name: nodes[name] for name in draw(st.permutations(names))}})


@given(
    (values | st.dictionaries(node_ids, definitions | values, max_size=6).map(lambda nodes: {"nodes": nodes})).map(
        json.dumps
    )
    | st.text(max_size=20)
    | acyclic(),
    st.randoms(use_true_random=False),
)
def test_an_ir_is_refused_or_ends_in_whatever_order_its_nodes_are_done(ir_json: str, pick: random.Random) -> None:
    try:
        parsed = graph.parse(ir_json)
    except graph.GraphError:
        return
    done: set[str] = set()
    scheduled: list[str] = []
    skipped: set[str] = set()
    chosen: dict[str, str] = {}
    while len(done) + len(skipped) < len(parsed.nodes):
        ready = parsed.ready(done, scheduled, skipped)
        assert all(set(node.dependencies) <= done | skipped for node in ready)
        scheduled += [node.id for node in ready]
        running = sorted(set(scheduled) - done)
        assert running, "nothing is ready, and the workflow is not over"
        node_id = pick.choice(running)
        done.add(node_id)
        if targets := parsed.nodes[node_id].targets:
            chosen[node_id] = pick.choice(targets)
        before, skipped = skipped, parsed.skipped(chosen, scheduled)
        assert before <= skipped, "what was skipped stays so"
    assert len(scheduled) == len(set(scheduled)), "each node is scheduled once"
    assert set(scheduled) | skipped == set(parsed.nodes)
    assert set(chosen.values()) <= set(scheduled), "what was chosen is run"


@given(acyclic())
def test_an_acyclic_ir_is_taken_and_is_identical_to_itself(ir_json: str) -> None:
    parsed = graph.parse(ir_json)
    assert graph.compatibility(parsed, graph.parse(ir_json)) == "IDENTICAL"


# Texts


@given(texts)
def test_what_is_printed_is_utf_8_without_controls_and_printing_it_again_changes_nothing(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not [each for each in shown if each < " " and each not in "\n\t"]
    assert not set(shown) & set("\x7f\x9b\u202e\u2066")
    assert printable(shown) == shown
    assert "\n" not in printable_line(text)


@given(texts, texts)
def test_no_secret_is_left_in_a_text(before: str, after: str) -> None:
    secret = "sk-0123456789"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SOME_API_KEY", secret)
        assert secret not in redact(before + secret + after)
        assert "pass" not in redact(f"{before} https://me:pass@host/").partition("https")[2]


# The engine

WORKFLOWS = {
    "one": {"run": "EFFECT"},
    "pure": {"run": "COMPUTE"},
    "pair": {"a": "EFFECT", "b": "EFFECT"},
    "chain": {"a": "EFFECT", "b": "EFFECT a", "c": "COMPUTE a b"},
    "each": {"m": "MAP", "r": "REDUCE m", "b": "EFFECT"},
    "parent": {"s": "SUBWORKFLOW", "b": "EFFECT"},
    "choice": {"d": "ROUTER", "a": "EFFECT d", "b": "EFFECT d", "c": "TIMER a b", "h": "HUMAN_APPROVAL c"},
}
TOLD = {  # what a worker that knows its work answers
    "ROUTER": ('{"routed_to":"a"}', '{"routed_to":"b"}'),
    "MAP": ("[1,2]", "[]", "[1,2,3]"),
    "SUBWORKFLOW": ('{"subWorkflowId":"pair","childInput":1}', '{"subWorkflowId":"each","childInput":1}'),
}
EXECUTIONS = ["s/e0", "s/e1", "s/e2"]
CHILDREN = [f"{each}/s" for each in EXECUTIONS]
ATTEMPTS_MOST = 3  # that an order asks for; each start may ask for another number
workers = st.sampled_from(["w0", "w1"])


class Story:
    """An execution as its events tell it."""

    def __init__(self, events: list[EventRow]) -> None:
        self.status = ""
        self.running: dict[str | None, int | None] = {}  # node → attempt
        self.done: set[str | None] = set()
        self.attempts: Counter[str | None] = Counter()
        self._tries: Counter[str | None] = Counter()  # since it was last started, without those given back
        self._cancel_requested = False
        for event in events:
            self._tell(event)

    def _tell(self, event: EventRow) -> None:
        node = event.node_id
        match event.type:
            case Event.EXECUTION_STARTED:
                assert self.status == ""
                self.status = "RUNNING"
            case Event.EXECUTION_RESTARTED:
                assert self.status in ("FAILED", "CANCELLED")
                self.status, self._cancel_requested = "RUNNING", False
                self._tries = Counter({node: self._tries[node] for node in self.running})
            case Event.ATTEMPT_STARTED:
                assert self.status == "RUNNING"
                assert node not in self.running, "two attempts at once"
                assert node not in self.done
                self.attempts[node] += 1
                self._tries[node] += 1
                assert event.attempt == self.attempts[node]
                assert self._tries[node] <= ATTEMPTS_MOST
                self.running[node] = event.attempt
            case Event.MAP_STARTED | Event.CHILD_STARTED:
                self.running.pop(node, None)
            case Event.TIMER_FIRED | Event.TASK_APPROVED:
                self.done.add(node)
            case Event.ATTEMPT_FAILED | Event.LEASE_EXPIRED | Event.ATTEMPT_RETURNED | Event.ATTEMPT_PARKED:
                assert self.running.pop(node, None) == event.attempt or event.data["late"]
                self._tries[node] -= event.type in (Event.ATTEMPT_RETURNED, Event.ATTEMPT_PARKED)
            case Event.TASK_COMPLETED:
                assert node not in self.done
                assert self.running.pop(node, None) == event.attempt or event.data["late"]
                self.done.add(node)  # a node that was skipped is not
            case Event.OUTCOME_RESOLVED:
                assert self.status in ("FAILED", "CANCELLED")
                if event.data["as"] == "result":
                    self.done.add(node)
            case Event.EXECUTION_COMPLETED:
                assert not self.running
                self._ends("COMPLETED")
            case Event.CANCEL_REQUESTED:
                self.running.clear()
                self._cancel_requested = True
            case Event.EXECUTION_CANCELLED if self._cancel_requested:
                assert self.status == "FAILED"
                self.status = "CANCELLED"
            case Event.EXECUTION_CANCELLED:
                self.running.clear()
                self._ends("CANCELLED")
            case Event.EXECUTION_FAILED:
                self._ends("FAILED")

    def _ends(self, status: str) -> None:
        assert self.status == "RUNNING"
        self.status = status


class AnyOrder(RuleBasedStateMachine):
    """Whatever clients, workers, time and a person may do, in any order, on a real store."""

    backend = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._runner = asyncio.Runner()
        self._now_ms = 1_700_000_000_000
        self._task_ids: list[str] = []
        self._types: dict[str, str] = {}  # of nodes, by task id
        self._not_always_once: set[str] = set()  # executions
        self._recorded: dict[tuple[str, str], str] = {}  # the first result that was seen of a node

    def _do(self, coroutine: Any) -> Any:
        """Run it; a refusal is as good as an answer, what is kept is what counts."""
        with suppress(NexumError):
            return self._runner.run(coroutine)

    def _open(self) -> None:
        async def opened() -> None:
            self._store = BACKENDS[self.backend](Path(self._folder.name))
            self._engine = Engine(self._store, clock=lambda: self._now_ms, jitter=lambda: 0.5)
            await self._engine.restart_clock()

        self._runner.run(opened())

    def _close(self) -> None:
        self._runner.run(self._engine.close())
        self._runner.run(self._store.close())

    @initialize(
        orders=st.tuples(
            *[st.tuples(st.sampled_from(list(WORKFLOWS)), st.sampled_from(wire.EFFECTS), st.integers(1, ATTEMPTS_MOST))]
            * len(EXECUTIONS)
        )
    )
    def first_server(self, orders: tuple[tuple[str, str, int], ...]) -> None:
        self._open()
        for workflow_id, nodes in WORKFLOWS.items():
            spelled = json.loads(ir(nodes))
            for node in spelled["nodes"].values():
                if node["type"] == "ROUTER":
                    node["routes"] = [{"target": "a"}, {"target": "b"}]
            self._do(self._engine.register(workflow_id, "h", json.dumps(spelled)))
        for execution_id, (workflow_id, effect, max_attempts) in zip(EXECUTIONS, orders, strict=True):
            self.start(execution_id, workflow_id, effect, max_attempts, "")
        self.poll("w0")

    @rule(
        execution_id=st.sampled_from(EXECUTIONS),
        workflow_id=st.sampled_from(list(WORKFLOWS)),
        effect=st.sampled_from(wire.EFFECTS),
        max_attempts=st.integers(1, ATTEMPTS_MOST),
        restart=st.sampled_from(["", "failed", "unknown"]),
    )
    def start(self, execution_id: str, workflow_id: str, effect: str, max_attempts: int, restart: str) -> None:
        attempts = 1 if effect == "once" else max_attempts
        self._do(
            self._engine.start(
                StartOrder(workflow_id, "h", "{}", execution_id, attempts, effect=effect, restart=restart)
            )
        )

    @rule(worker_id=workers, execution_id=st.sampled_from(EXECUTIONS), effect=st.sampled_from(wire.EFFECTS))
    def start_and_claim(self, worker_id: str, execution_id: str, effect: str) -> None:
        """By one of the workers, which may have claimed a task of it before and never heard of it."""
        found = self._do(self._engine.executions("", "", execution_id, 1))
        workflow_id, attempts = found[0].workflow_id, 1 if effect == "once" else ATTEMPTS_MOST
        order = StartOrder(
            workflow_id, "h", "{}", execution_id, attempts, effect, None, "failed", claim=worker_id, lease_ms=LEASE_MS
        )
        if (started := self._do(self._engine.start(order))) is not None and started.claimed is not None:
            assert started.claimed.task.execution_id == execution_id
            self._task_ids.append(started.claimed.task.task_id)

    @rule(worker_id=workers)
    def attend_and_go(self, worker_id: str) -> None:
        async def go() -> None:
            async with aclosing(self._engine.attend(worker_id)) as attending:
                await anext(attending)
            while self._engine._jobs:
                await asyncio.wait(self._engine._jobs)
            assert not await self._store.read(lambda reader: reader.held(worker_id))

        self._do(go())

    @rule(worker_id=workers)
    def poll(self, worker_id: str) -> None:
        claimed = self._do(self._engine.poll(worker_id, "h", list(WORKFLOWS), LEASE_MS))
        if claimed is not None:
            self._task_ids.append(claimed.task.task_id)
            self._types[claimed.task.task_id] = claimed.task.node_type

    @rule(choose=st.data())
    def tell_what_it_means(self, choose: Any) -> None:
        """Of a ROUTER, a MAP or a SUBWORKFLOW, if one of the last tasks is of one."""
        self.poll("w0")
        meant = [each for each in self._task_ids[-4:] if self._types.get(each) in TOLD]
        if meant:
            task_id = choose.draw(st.sampled_from(meant))
            self._do(self._engine.complete(task_id, choose.draw(st.sampled_from(TOLD[self._types[task_id]]))))

    @rule(execution_id=st.sampled_from(EXECUTIONS), is_yes=st.booleans())
    def answer(self, execution_id: str, is_yes: bool) -> None:
        self._do(self._engine.answer(execution_id, "h", Verdict(is_yes, "", "")))

    @rule(choose=st.data())
    def poll_and_complete(self, choose: Any) -> None:
        self.poll("w0")
        self.complete(choose, "3")

    @rule(choose=st.data())
    def complete_twice(self, choose: Any) -> None:
        task_id = self._any_task_id(choose)
        for output in ("4", "5"):
            self._do(self._engine.complete(task_id, output))

    @rule(choose=st.data())
    def fail_and_wait(self, choose: Any) -> None:
        self.poll("w0")
        self.fail(choose, True, False, False)
        self.time_passes(2)
        self.poll("w0")

    @rule(worker_id=workers)
    def poll_and_vanish(self, worker_id: str) -> None:
        async def vanish() -> None:
            polling = asyncio.create_task(self._engine.poll(worker_id, "h", list(WORKFLOWS), LEASE_MS))
            while not self._engine._jobs and not polling.done():
                await asyncio.sleep(0)
            polling.cancel()
            with suppress(asyncio.CancelledError):
                if (claimed := await polling) is not None:
                    self._task_ids.append(claimed.task.task_id)
            while self._engine._jobs:
                await asyncio.wait(self._engine._jobs)

        self._do(vanish())

    @rule(choose=st.data(), output=st.sampled_from(["1", '"two"', "{}"]))
    def complete(self, choose: Any, output: str) -> None:
        self._do(self._engine.complete(self._any_task_id(choose), output))

    @rule(choose=st.data(), retryable=st.booleans(), interrupted=st.booleans(), unknown=st.booleans())
    def fail(self, choose: Any, retryable: bool, interrupted: bool, unknown: bool) -> None:
        task_id = self._any_task_id(choose)
        self._do(self._engine.fail(task_id, "no luck", retryable=retryable, interrupted=interrupted, unknown=unknown))

    @rule(
        choose=st.data(),
        ended=st.lists(st.sampled_from([*EXECUTIONS, *CHILDREN, "s/nothing"]), max_size=2),
        ms=st.sampled_from([None, 0, STEP_MS, 3 * STEP_MS]),
    )
    def park(self, choose: Any, ended: list[str], ms: int | None) -> None:
        self.poll("w0")
        task_id = self._any_task_id(choose)
        task: Task | None = self._runner.run(self._store.read(lambda reader: reader.task(task_id.rpartition(".")[0])))
        later = [each for each in ended if task is not None and each > task.execution_id]  # else it waits for itself
        until = {"ended": later} | ({} if ms is None else {"ms": ms})
        self._do(self._engine.park(task_id, json.dumps(until)))

    @rule(worker_id=workers, choose=st.data())
    def heartbeat(self, worker_id: str, choose: Any) -> None:
        held = choose.draw(st.none() | st.just(self._task_ids[-3:]))
        self._do(self._engine.heartbeat(worker_id, held))

    @rule(steps=st.sampled_from([1, 2, 3, 14]))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self._now_ms += STEP_MS
            self._do(self._engine.sweep())

    @rule(execution_id=st.sampled_from(EXECUTIONS + CHILDREN))
    def cancel(self, execution_id: str) -> None:
        self._do(self._engine.cancel(execution_id))

    @rule(
        execution_id=st.sampled_from(EXECUTIONS + CHILDREN),
        node_id=st.sampled_from(["", "run", "a", "b", "m__0", "s"]),
        kind=st.sampled_from(["result", "failed", "retry"]),
    )
    def resolve(self, execution_id: str, node_id: str, kind: str) -> None:
        self._do(self._engine.resolve(execution_id, node_id, Resolution(kind, '"a person\'s word"')))

    @rule(away_ms=st.sampled_from([0, 1_000, 60_000]))
    def new_server(self, away_ms: int) -> None:
        self._close()
        self._now_ms += away_ms
        self._open()

    def _any_task_id(self, choose: Any) -> str:
        if not self._task_ids:
            return "nothing.1"
        return str(choose.draw(st.sampled_from(self._task_ids[-4:])))

    def _all(self) -> list[tuple[Execution, list[Task], list[EventRow], dict[str, str]]]:
        def read(reader: Reader) -> Any:
            return [
                (each, reader.tasks(id), reader.events(id), reader.outputs(id))
                for each in reader.executions("", "", "", 100)
                for id in [each.execution_id]
            ]

        found: list[tuple[Execution, list[Task], list[EventRow], dict[str, str]]] = self._runner.run(
            self._store.read(read)
        )
        return found

    @invariant()
    def events_tell_every_state(self) -> None:
        for execution, tasks, events, _ in self._all():
            story = Story(events)
            assert story.status == execution.status
            assert story.running == {t.node_id: t.attempt for t in tasks if t.status == TaskStatus.RUNNING}
            assert story.done == {t.node_id for t in tasks if t.status == TaskStatus.DONE}
            assert story.attempts == Counter({t.node_id: t.attempt for t in tasks if t.attempt})
            assert all(before.at_ms <= after.at_ms for before, after in pairwise(events))

    @invariant()
    def a_recorded_result_never_changes(self) -> None:
        now = {(each.execution_id, node): text for each, _, _, found in self._all() for node, text in found.items()}
        assert self._recorded.items() <= now.items()
        self._recorded = now

    @invariant()
    def attempts_are_within_their_limit(self) -> None:
        for execution, tasks, events, _ in self._all():
            assert all(task.attempt <= task.attempt_limit for task in tasks)
            afresh = sum(event.type == Event.EXECUTION_RESTARTED for event in events)
            returned = Counter(event.node_id for event in events if event.type == Event.ATTEMPT_RETURNED)
            if execution.effect != wire.ONCE:
                self._not_always_once.add(execution.execution_id)
            if execution.execution_id not in self._not_always_once:
                assert all(task.attempt - returned[task.node_id] <= 1 + afresh for task in tasks)

    @invariant()
    def what_has_ended_has_ended_and_what_runs_can_go_on(self) -> None:
        for execution, tasks, _, _ in self._all():
            statuses = {task.status for task in tasks}
            codes = {task.error_code for task in tasks}
            match execution.status:
                case ExecutionStatus.COMPLETED:
                    assert statuses == {TaskStatus.DONE}
                    nodes = [task for task in tasks if task.node_type != graph.ITEM]
                    skipped = execution.workflow_id == "choice"
                    assert len(nodes) == len(WORKFLOWS[execution.workflow_id]) - skipped
                case ExecutionStatus.CANCELLED:
                    assert statuses <= {TaskStatus.DONE, TaskStatus.CANCELLED}
                case ExecutionStatus.FAILED:
                    assert TaskStatus.FAILED in statuses
                    assert TaskStatus.READY not in statuses
                    assert (execution.error_code == ErrorCode.OUTCOME_UNKNOWN) == (ErrorCode.OUTCOME_UNKNOWN in codes)
                case ExecutionStatus.RUNNING:
                    assert statuses & {TaskStatus.READY, TaskStatus.RUNNING, TaskStatus.WAITING}
                    assert TaskStatus.FAILED not in statuses
                    self._what_waits_is_waited_for(execution, tasks)

    def _what_waits_is_waited_for(self, execution: Execution, tasks: list[Task]) -> None:
        """A MAP has items that are not done, and a SUBWORKFLOW has a child that runs."""
        children = {each.parent_node: each for each, _, _, _ in self._all() if each.parent_id == execution.execution_id}
        for task in tasks:
            if task.status == TaskStatus.WAITING and task.node_type == graph.MAP:
                items = [each for each in tasks if each.node_type == graph.ITEM]
                assert len(items) == task.parts
                assert task.part == sum(each.status == TaskStatus.DONE for each in items) < len(items)
            if task.status == TaskStatus.WAITING and task.node_type == graph.EFFECT and not task.available_at_ms:
                awaited = [each for each, _, _, _ in self._all() if task.task_id in (each.awaited_by_json or "")]
                assert awaited, "nothing would wake it"
                assert all(each.status == ExecutionStatus.RUNNING for each in awaited)
            if task.status == TaskStatus.WAITING and task.node_type == graph.SUBWORKFLOW:
                assert children[task.node_id].status == ExecutionStatus.RUNNING

    def teardown(self) -> None:
        """From wherever it is, a worker that does its work and time that passes end every execution."""
        try:
            if hasattr(self, "_engine"):
                self._everything_ends()
        finally:
            if hasattr(self, "_engine"):
                self._close()
            self._runner.close()
            self._folder.cleanup()

    def _everything_ends(self) -> None:
        for _ in range(4):  # a chain of three nodes, and what was claimed by others
            self.time_passes((TIMER_MS + LEASE_MS) // STEP_MS + 1)  # longer than any retry waits
            while (claimed := self._do(self._engine.poll("last", "h", list(WORKFLOWS), LEASE_MS))) is not None:
                told = TOLD.get(claimed.task.node_type, ("0",))[0]
                for other in TOLD["SUBWORKFLOW"] if claimed.task.node_type == "SUBWORKFLOW" else (told,):
                    message = self._do(self._engine.complete(claimed.task.task_id, other))
                    if message == "":  # a child that was started before is taken up by its own input alone
                        break
                    assert message is not None
            for execution_id in EXECUTIONS:
                self._do(self._engine.answer(execution_id, "h", Verdict(True, "", "")))
        self.events_tell_every_state()
        self.a_recorded_result_never_changes()
        for execution, tasks, _, _ in self._all():
            assert execution.status != ExecutionStatus.RUNNING
            assert TaskStatus.RUNNING not in {task.status for task in tasks}


class AnyOrderOnPostgres(AnyOrder):
    backend = "postgres"


AnyOrder.TestCase.settings = settings(max_examples=STORIES, stateful_step_count=STEPS_MAX)
AnyOrderOnPostgres.TestCase.settings = settings(max_examples=STORIES // 3, stateful_step_count=STEPS_MAX)
TestTheEngineInAnyOrder = AnyOrder.TestCase
TestTheEngineInAnyOrderOnPostgres = AnyOrderOnPostgres.TestCase


# What is sent with a start


@given(
    st.sampled_from([*wire.EFFECTS, "", "Once", "twice"]) | texts,
    st.integers(1, 20),
    st.none() | st.integers(1, wire.TIMEOUT_MS_LIMIT),
)
@settings(max_examples=25)
def test_an_order_is_taken_and_kept_as_it_is_or_refused_in_a_sentence(
    effect: str, max_attempts: int, timeout_ms: int | None
) -> None:
    async def order() -> None:
        store = SqliteStore(Path(folder) / "nexum.db")
        engine = Engine(store)
        try:
            await engine.register("one", "h", ir(WORKFLOWS["one"]))
            wish = StartOrder("one", "h", "{}", "e", max_attempts, effect=effect, timeout_ms=timeout_ms)
            taken = effect in wire.EFFECTS and (effect != "once" or max_attempts == 1)
            with nullcontext() if taken else pytest.raises(InvalidRequest, match=r"can be read|has one attempt"):
                await engine.start(wish)
            if not taken:
                return
            kept = (await engine.snapshot("e")).execution
            assert (kept.effect, kept.max_attempts, kept.timeout_ms) == (effect, max_attempts, timeout_ms)
            claimed = await engine.poll("worker", "h", ["one"], LEASE_MS)
            assert claimed is not None
            assert json.loads(claimed.input_json).get("timeout_ms") == timeout_ms
        finally:
            await engine.close()
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(order())
