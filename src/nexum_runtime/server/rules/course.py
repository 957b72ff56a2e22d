"""The course of an execution: how it begins, which tasks it goes on with, and how it ends.

Synchronous, without waits and without time of its own, as attempts.py and executions.py are: each method reads and
changes the store through the transaction it is given, adds the event, and notes in `Notices` whom the engine is to
wake after the commit.
"""

from collections import OrderedDict
from collections.abc import Callable

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import LimitExceeded, NotFound
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import Execution, Task, Transaction, session_of
from nexum_runtime.server.model.shapes import Claimed, Ending, Notices, StartOrder, Taker
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import answers, parking, questions

RUNNING_LIMIT = 10_000  # executions of one session at once
GRAPHS_KEPT = 500  # versions whose graphs are at hand
EVENTS_LIMIT = 100_000  # of one execution: with more it is started afresh no more, and no attempt is free
SESSIONS_KEPT = 1_000  # whose number of executions under way is known well enough not to be counted
TRACES_KEPT = 10_000  # traces of executions, the latest ones

ENDS = {
    ExecutionStatus.COMPLETED: Event.EXECUTION_COMPLETED,
    ExecutionStatus.FAILED: Event.EXECUTION_FAILED,
    ExecutionStatus.CANCELLED: Event.EXECUTION_CANCELLED,
}


class Course:
    """How executions go on. `clock` tells epoch milliseconds. A result is at most so large."""

    def __init__(self, clock: Callable[[], int], max_result_bytes: int) -> None:
        self._clock = clock
        self._max_result_bytes = max_result_bytes
        self._graphs: dict[tuple[str, str], graph.Graph] = {}
        self._running_at_most: dict[str, int] = {}  # session → executions
        self._traces: OrderedDict[str, str] = OrderedDict()  # execution id → traceparent; a restart forgets them

    # It begins

    def start_new(self, tx: Transaction, notices: Notices, order: StartOrder, taker: Taker | None) -> Claimed | None:
        """A new execution. Its first task is given to the taker, if it can be."""
        self._check_room(tx, order.execution_id)
        version_hash = order.version_hash
        if (order.workflow_id, version_hash) not in self._graphs:
            workflow = tx.workflow(order.workflow_id, version_hash)
            if workflow is None:
                raise not_registered(order.workflow_id, version_hash)
            version_hash = workflow.version_hash
        now_ms = self._clock()
        execution = Execution(
            execution_id=order.execution_id,
            workflow_id=order.workflow_id,
            version_hash=version_hash,
            status=ExecutionStatus.RUNNING,
            input_json=order.input_json,
            max_attempts=order.max_attempts,
            effect=order.effect,
            timeout_ms=order.timeout_ms,
            error=None,
            error_code=None,
            created_at_ms=now_ms,
            ended_at_ms=None,
            labels_json=order.labels_json or None,
            parent_node=order.parent_node,
        )
        tx.add_execution(execution)
        tx.add_event(execution.execution_id, now_ms, Event.EXECUTION_STARTED, data=questions.of_start(order))
        return self._add_tasks(tx, notices, execution, self.graph_of(tx, execution).ready((), ()), taker)

    def _check_room(self, tx: Transaction, execution_id: str) -> None:
        """Refuse one more execution of a session, whose ids all begin with "{session}/", when too many of it run."""
        session = session_of(execution_id)
        if not session:
            return
        at_most = self._running_at_most
        if at_most.get(session, RUNNING_LIMIT) >= RUNNING_LIMIT:  # those that ended since are still in the number
            if len(at_most) >= SESSIONS_KEPT:
                at_most.clear()
            at_most[session] = tx.count_running(f"{session}/", RUNNING_LIMIT)
        if at_most[session] >= RUNNING_LIMIT:
            raise LimitExceeded(
                f"Session {session} has {RUNNING_LIMIT} executions under way; let some of them end first."
            )
        at_most[session] += 1

    def trace(self, execution_id: str, traceparent: str) -> None:
        """Attempts from now on belong to this trace."""
        self._traces[execution_id] = traceparent
        self._traces.move_to_end(execution_id)
        if len(self._traces) > TRACES_KEPT:
            self._traces.popitem(last=False)

    def run_again(self, tx: Transaction, notices: Notices, execution: Execution, *, even_unknown: bool = False) -> None:
        """What is recorded stays; every other task gets attempts anew, and so do its children, `even_unknown` ones."""
        session, _, _ = execution.execution_id.partition("/")
        if session in self._running_at_most:
            self._running_at_most[session] += 1
        tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
        tx.add_event(execution.execution_id, self._clock(), Event.EXECUTION_RESTARTED)
        nodes, maps, children = self.graph_of(tx, execution).nodes, list[Task](), list[Execution]()
        for task in tx.tasks(execution.execution_id):
            if task.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED) or task.node_type == graph.ITEM:
                continue
            node, due_ms = nodes[task.node_id], 0
            child = tx.child(task.execution_id, node.id) if node.type == graph.SUBWORKFLOW else None
            if node.is_waited_for:
                due_ms = self._begin_to_wait(tx, execution, node)
            elif task.parts is not None:
                maps.append(task)
            elif child is not None:
                children.append(child)
            else:
                continue
            tx.move_task(task.task_key, TaskStatus.WAITING, available_at_ms=due_ms)
        tx.ready_again(execution.execution_id, execution.max_attempts)
        notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
        for task in maps:
            if task.part == task.parts:
                self._gather(tx, notices, task)
        for child in children:
            self._take_up(tx, notices, child, even_unknown)
        self._go_on(tx, notices, execution.execution_id)

    # It goes on

    def schedule(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """Add a task for every node that has become ready; when all nodes are done, so is the execution."""
        nodes = self.graph_of(tx, execution)
        done, scheduled, skipped = self._standing(tx, execution)
        if len(done) + len(skipped) == len(nodes.nodes):
            self._end(tx, notices, execution.execution_id, ExecutionStatus.COMPLETED)
            return
        self._add_tasks(tx, notices, execution, nodes.ready(done, scheduled, skipped))

    def _standing(self, tx: Transaction, execution: Execution) -> tuple[set[str], set[str], set[str]]:
        """The nodes that are done, those that are scheduled, and those that are skipped."""
        tasks = [task for task in tx.tasks(execution.execution_id) if task.node_type != graph.ITEM]
        done = {task.node_id for task in tasks if task.status == TaskStatus.DONE}
        scheduled, nodes = {task.node_id for task in tasks}, self.graph_of(tx, execution)
        if not nodes.routers:
            return done, scheduled, set()
        routers = {router for each in nodes.routers.values() for router in each} & done
        outputs = tx.outputs(execution.execution_id, routers)
        chosen = {router: answers.choice(nodes.nodes[router], outputs[router]) for router in routers}
        return done, scheduled, nodes.skipped(chosen, scheduled)

    def _go_on(self, tx: Transaction, notices: Notices, execution_id: str) -> None:
        """Schedule what is ready, unless it has ended meanwhile."""
        execution = tx.execution(execution_id)
        if execution is not None and execution.status == ExecutionStatus.RUNNING:
            self.schedule(tx, notices, execution)

    def _add_tasks(
        self,
        tx: Transaction,
        notices: Notices,
        execution: Execution,
        nodes: list[graph.Node],
        taker: Taker | None = None,
    ) -> Claimed | None:
        """Add a task for each of these nodes, and begin an attempt at the first one for the taker, if it can be."""
        now_ms, taken = self._clock(), None
        for node in nodes:
            task = Task(
                task_key=tx.new_task_key(),
                execution_id=execution.execution_id,
                workflow_id=execution.workflow_id,
                version_hash=execution.version_hash,
                node_id=node.id,
                node_type=node.type,
                status=TaskStatus.READY,
                attempt=0,
                attempt_limit=execution.max_attempts,
            )
            if node.is_waited_for:
                due_ms = self._begin_to_wait(tx, execution, node)
                tx.add_task(task._replace(status=TaskStatus.WAITING, available_at_ms=due_ms))
                continue
            if taker is None:
                tx.add_task(task)
                notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
                continue
            task = task._replace(
                status=TaskStatus.RUNNING,
                attempt=1,
                worker_id=taker.worker_id,
                lease_ms=taker.lease_ms,
                lease_expires_at_ms=now_ms + taker.lease_ms,
            )
            tx.add_task(task)
            taken, taker = self.begun(tx, task, execution, now_ms), None
        return taken

    def _begin_to_wait(self, tx: Transaction, execution: Execution, node: graph.Node) -> int:
        """Tell the event. Returns when the timer fires, or the time to answer is over; 0 if that is never."""
        now_ms = self._clock()
        if node.delay_seconds is None:
            told = questions.asked(tx, execution).of_event(now_ms)
            tx.add_event(execution.execution_id, now_ms, Event.APPROVAL_REQUESTED, node.id, data=told)
            return int(told.get("due_at_ms", 0))
        due_ms = now_ms + round(node.delay_seconds * 1000)
        tx.add_event(execution.execution_id, now_ms, Event.TIMER_SET, node.id, data={"due_at_ms": due_ms})
        return due_ms

    def begun(self, tx: Transaction, task: Task, execution: Execution, now_ms: int) -> Claimed:
        """Tell the events of an attempt that begins, and make what its worker gets."""
        data = {"worker": task.worker_id, "lease_ms": task.lease_ms}
        tx.add_event(task.execution_id, now_ms, Event.ATTEMPT_STARTED, task.node_id, task.attempt, data)
        is_item = task.node_type == graph.ITEM
        node_id = graph.map_of(task.node_id) if is_item else task.node_id
        dependencies = self.graph_of(tx, execution).nodes[node_id].dependencies
        outputs = tx.outputs(task.execution_id, dependencies) if dependencies else {}  # without those that were skipped
        deps = ",".join(f"{wire.canonical_json(each)}:{outputs[each]}" for each in dependencies if each in outputs)
        timeout = f',"timeout_ms":{execution.timeout_ms}' if execution.timeout_ms else ""
        traceparent = self._traces.get(task.execution_id)
        trace = f',"traceparent":"{traceparent}"' if traceparent else ""
        input_json = f'{{"input":{execution.input_json},"deps":{{{deps}}}{timeout}{trace}}}'
        item_json = tx.item(task.task_key) if is_item else ""
        return Claimed(task, execution, input_json, is_once(task, execution), item_json)

    def finished(self, tx: Transaction, notices: Notices, task: Task, output_json: str) -> None:
        """The attempt that ran has its result: go on with what depends on it."""
        data = {"output_bytes": len(output_json.encode())}
        tx.add_event(task.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, task.attempt, data)
        if task.node_type == graph.ITEM:
            self.count_item(tx, notices, task)
            return
        nodes = self._graphs.get((task.workflow_id, task.version_hash))
        if nodes is not None and len(nodes.nodes) == 1:
            ended = self._end(tx, notices, task.execution_id, ExecutionStatus.COMPLETED)
            if ended is not None:  # else it has ended otherwise
                notices.ended[task.execution_id] = Ending(ended, task, output_json)
            return
        execution = execution_of(tx, task)
        if execution.status == ExecutionStatus.RUNNING:
            self.schedule(tx, notices, execution)

    def graph_of(self, tx: Transaction, execution: Execution) -> graph.Graph:
        key = (execution.workflow_id, execution.version_hash)
        if key not in self._graphs:
            workflow = tx.workflow(*key)
            assert workflow is not None, "an execution belongs to a registered workflow"
            if len(self._graphs) >= GRAPHS_KEPT:
                self._graphs.clear()
            self._graphs[key] = graph.parse(workflow.ir_json)
        return self._graphs[key]

    # Its items and children

    def fan_out(self, tx: Transaction, notices: Notices, execution: Execution, task: Task, items: list[str]) -> None:
        """A MAP has told its items: add a task for each of them."""
        tx.move_task(task.task_key, TaskStatus.WAITING)
        tx.wait_for_items(task.task_key, len(items))
        data = {"items": len(items)}
        tx.add_event(task.execution_id, self._clock(), Event.MAP_STARTED, task.node_id, task.attempt, data)
        for index, item_json in enumerate(items):
            of_item = Task(
                task_key=tx.new_task_key(),
                execution_id=execution.execution_id,
                workflow_id=execution.workflow_id,
                version_hash=execution.version_hash,
                node_id=graph.item_id(task.node_id, index),
                node_type=graph.ITEM,
                status=TaskStatus.READY,
                attempt=0,
                attempt_limit=execution.max_attempts,
                part=index,
                parts=len(items),
            )
            tx.add_task(of_item, item_json)
        crash_point("in-fan-out")
        if items:
            notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
        else:
            self._gather(tx, notices, task)
            self._go_on(tx, notices, execution.execution_id)

    def count_item(self, tx: Transaction, notices: Notices, item: Task) -> None:
        """One more item is DONE: with the last one so is its MAP, and what depends on that goes on."""
        task = tx.count_item(item.execution_id, graph.map_of(item.node_id))
        if task is not None and task.part == task.parts and task.status == TaskStatus.WAITING:
            self._gather(tx, notices, task)
            self._go_on(tx, notices, item.execution_id)

    def _gather(self, tx: Transaction, notices: Notices, task: Task) -> None:
        """Record the results of all items as that of their MAP."""
        output_json = f"[{','.join(tx.item_outputs(task.execution_id, task.node_id))}]"
        crash_point("in-fan-in")
        if error := wire.too_large(f"The result of all items of {task.node_id}", output_json, self._max_result_bytes):
            self.fail_task(tx, notices, task, error, ErrorCode.TOOL_ERROR)
            return
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=output_json)
        data = {"output_bytes": len(output_json.encode())}
        tx.add_event(task.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, data=data)

    def begin_child(
        self, tx: Transaction, notices: Notices, execution: Execution, task: Task, workflow_id: str, input_json: str
    ) -> None:
        """A SUBWORKFLOW has told what to start: start it, or take up what it has started before.

        Raises NotFound and LimitExceeded, and has changed nothing then.
        """
        child = tx.child(execution.execution_id, task.node_id)
        if child is None:
            child_id = answers.child_id(execution.execution_id, task.node_id, self._depth(tx, execution) + 1)
            if tx.execution(child_id) is not None:
                raise LimitExceeded(f"Execution {child_id} is there already, and is no child of this one.")
            order = StartOrder(
                workflow_id,
                "",
                input_json,
                child_id,
                execution.max_attempts,
                execution.effect,
                execution.timeout_ms,
                parent_node=task.node_id,
            )
            self.start_new(tx, notices, order, None)
            if traceparent := self._traces.get(execution.execution_id):
                self.trace(child_id, traceparent)
        elif (child.workflow_id, child.input_json) != (workflow_id, input_json):
            raise LimitExceeded(f"{_called(child)} was started before, with another input or of another workflow.")
        crash_point("in-child-start")
        tx.move_task(task.task_key, TaskStatus.WAITING)
        data = {"child": child.execution_id if child else child_id, "workflow": workflow_id}
        tx.add_event(task.execution_id, self._clock(), Event.CHILD_STARTED, task.node_id, task.attempt, data)
        if child is not None:
            self._take_up(tx, notices, child, False)

    def _depth(self, tx: Transaction, execution: Execution) -> int:
        depth, parent = 0, tx.execution(execution.parent_id) if execution.parent_node else None
        while parent is not None:
            depth, parent = depth + 1, tx.execution(parent.parent_id) if parent.parent_node else None
        return depth

    def _take_up(self, tx: Transaction, notices: Notices, child: Execution, even_unknown: bool) -> None:
        """Its parent waits for this child, which may have ended: it runs again unless it has a result."""
        if child.status == ExecutionStatus.COMPLETED or (
            child.error_code == ErrorCode.OUTCOME_UNKNOWN and not even_unknown
        ):
            self._child_ended(tx, notices, child)
        elif child.status != ExecutionStatus.RUNNING:
            self.run_again(tx, notices, child, even_unknown=even_unknown)

    def _child_ended(self, tx: Transaction, notices: Notices, child: Execution) -> None:
        """Its parent's node has ended with it. One that was cancelled stays so."""
        assert child.parent_node is not None, "a child has a parent"
        parent, task = tx.execution(child.parent_id), tx.node_task(child.parent_id, child.parent_node)
        if parent is None or task is None or task.status not in (TaskStatus.WAITING, TaskStatus.FAILED):
            return
        if child.status != ExecutionStatus.COMPLETED:
            self._child_failed(tx, notices, parent, task, child)
            return
        output_json = self._output_of(tx, child)
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=output_json)
        is_late = task.status == TaskStatus.FAILED  # the child was tried again
        data = {"output_bytes": len(output_json.encode())} | ({"late": True} if is_late else {})
        tx.add_event(parent.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, data=data)
        crash_point("in-child-end")
        if is_late and parent.status == ExecutionStatus.FAILED:
            self.settled(tx, notices, parent)
        else:
            self._go_on(tx, notices, parent.execution_id)

    def _child_failed(self, tx: Transaction, notices: Notices, parent: Execution, task: Task, child: Execution) -> None:
        how = "was cancelled." if child.error_code == ErrorCode.CANCELLED else f"failed: {child.error}"
        error = f"{_called(child)} {how}"
        told = child.error_code in (ErrorCode.OUTCOME_UNKNOWN, ErrorCode.REJECTED)
        code = child.error_code if told and child.error_code else ErrorCode.TOOL_ERROR
        crash_point("in-child-end")
        if task.status == TaskStatus.WAITING:
            self.fail_task(tx, notices, task, error, code)
        else:
            tx.say_failure(task.task_key, error, code)
            self._say_why(tx, notices, parent)

    def _output_of(self, tx: Transaction, child: Execution) -> str:
        """The output of the only node that no other depends on, or else the one that was recorded last."""
        sinks, outputs = self.graph_of(tx, child).sinks, tx.outputs(child.execution_id)
        if len(sinks) == 1 and sinks[0] in outputs:
            return outputs[sinks[0]]
        last = next(each.node_id for each in reversed(tx.events(child.execution_id)) if each.node_id in outputs)
        assert last is not None, "a node has an id"
        return outputs[last]

    def children(self, tx: Transaction, execution: Execution) -> dict[str, Execution]:
        """Those that it has started, by the node."""
        nodes = self.graph_of(tx, execution).subworkflows
        found = {node_id: tx.child(execution.execution_id, node_id) for node_id in nodes}
        return {node_id: child for node_id, child in found.items() if child is not None}

    # It ends

    def cancel(self, tx: Transaction, notices: Notices, execution: Execution) -> str:
        """Cancel a RUNNING execution, all its open tasks and its children. Returns what came of it, in words."""
        begun = []  # effects that happen once: to cut one short is not to know what it has done
        running = {
            node_id: child
            for node_id, child in self.children(tx, execution).items()
            if child.status == ExecutionStatus.RUNNING
        }
        for task in tx.tasks(execution.execution_id):
            if task.status == TaskStatus.WAITING and task.node_id in running:
                begun += [task] if self._has_once_under_way(tx, running[task.node_id]) else []
            elif task.status == TaskStatus.RUNNING and is_once(task, execution):
                begun.append(task)
            elif task.status == TaskStatus.RUNNING:
                notices.stop.append(task)
                notices.cut.add(task.task_id)
                tx.move_task(task.task_key, TaskStatus.CANCELLED)
        if begun:  # their workers are let finish: their word settles it
            tx.add_event(execution.execution_id, self._clock(), Event.CANCEL_REQUESTED)
            error = or_not("It was cancelled while it ran.")
            for task in begun:
                self.fail_task(tx, notices, task, error, ErrorCode.OUTCOME_UNKNOWN)
            return error
        tx.cancel_waiting(execution.execution_id)
        self.end_cancelled(tx, notices, execution)
        self._cancel_children(tx, notices, execution)
        return "Execution cancelled"

    def _has_once_under_way(self, tx: Transaction, execution: Execution) -> bool:
        """Whether an effect that happens once runs in it, or in a child."""
        tasks = tx.tasks(execution.execution_id)
        return any(task.status == TaskStatus.RUNNING and is_once(task, execution) for task in tasks) or any(
            self._has_once_under_way(tx, child) for child in self.children(tx, execution).values()
        )

    def _cancel_children(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        for child in self.children(tx, execution).values():
            if child.status == ExecutionStatus.RUNNING:
                self.cancel(tx, notices, child)

    def fail_task(self, tx: Transaction, notices: Notices, task: Task, error: str, error_code: ErrorCode) -> None:
        """Fail a task for good, and its execution with it. Tasks that run are let run: their results are kept. Children
        are cancelled."""
        tx.move_task(task.task_key, TaskStatus.FAILED, error=error, error_code=error_code)
        execution = execution_of(tx, task)
        if execution.status != ExecutionStatus.RUNNING:
            self._say_why(tx, notices, execution)
            return
        tx.cancel_waiting(task.execution_id)
        self._end(tx, notices, execution.execution_id, ExecutionStatus.FAILED, error, error_code)
        self._cancel_children(tx, notices, execution)

    def _say_why(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """Keep the error of a FAILED execution true: an unknown outcome outweighs a person's no, and that the rest."""
        failed = [task for task in tx.tasks(execution.execution_id) if task.status == TaskStatus.FAILED]
        weightiest = max(
            failed,
            key=lambda task: (task.error_code == ErrorCode.OUTCOME_UNKNOWN, task.error_code == ErrorCode.REJECTED),
        )
        assert weightiest.error is not None, "a FAILED task has an error"
        assert weightiest.error_code is not None, "a FAILED task has an error code"
        tx.set_execution_error(execution.execution_id, weightiest.error, weightiest.error_code)
        if execution.parent_node is not None and execution.status == ExecutionStatus.FAILED:
            told = execution._replace(error=weightiest.error, error_code=weightiest.error_code)
            self._child_ended(tx, notices, told)

    def settled(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """One of the unknown outcomes of a FAILED execution is known now."""
        if any(task.status == TaskStatus.FAILED for task in tx.tasks(execution.execution_id)):
            self._say_why(tx, notices, execution)
        elif _was_cancelled(tx, execution) and not self._is_done(tx, execution):
            tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
            self.end_cancelled(tx, notices, execution)
        else:
            self.run_again(tx, notices, execution)

    def _is_done(self, tx: Transaction, execution: Execution) -> bool:
        done, _, skipped = self._standing(tx, execution)
        return len(done) + len(skipped) == len(self.graph_of(tx, execution).nodes)

    def end_cancelled(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        error = "The execution was cancelled."
        self._end(tx, notices, execution.execution_id, ExecutionStatus.CANCELLED, error, ErrorCode.CANCELLED)

    def _end(
        self,
        tx: Transaction,
        notices: Notices,
        execution_id: str,
        status: ExecutionStatus,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> Execution | None:
        self._traces.pop(execution_id, None)
        now_ms = self._clock()
        ended = tx.move_execution(execution_id, status, error=error, error_code=error_code, ended_at_ms=now_ms)
        if ended is None:
            return None
        data = {"error": error, "error_code": error_code} if error else {}
        tx.add_event(execution_id, now_ms, ENDS[status], data=data)
        notices.ended[execution_id] = None
        if ended.awaited_by_json:
            parking.wake_all(tx, notices, ended, now_ms)
        if ended.parent_node is not None:
            self._child_ended(tx, notices, ended)
        return ended


def not_registered(workflow_id: str, version_hash: str) -> NotFound:
    version = f" of version {version_hash[:80]!r}" if version_hash else ""
    return NotFound(f"No workflow {workflow_id[:80]!r}{version} is registered.")


def execution_of(tx: Transaction, task: Task) -> Execution:
    execution = tx.execution(task.execution_id)
    assert execution is not None, "a task belongs to an execution"
    return execution


def is_once(task: Task, execution: Execution) -> bool:
    return execution.effect == wire.ONCE and task.node_type not in graph.REPEATABLE


def or_not(reason: str) -> str:
    return f"{reason.rstrip('.')}: the effect may or may not have happened."


def _called(child: Execution) -> str:
    return f"{child.workflow_id} {child.execution_id}"


def has_long_story(tx: Transaction, execution_id: str) -> bool:
    return tx.count_events(execution_id) >= EVENTS_LIMIT


def check_story(tx: Transaction, execution: Execution) -> None:
    """Refuse to start an execution afresh for ever: every time adds to its events."""
    if has_long_story(tx, execution.execution_id):
        raise LimitExceeded(
            f"Execution {execution.execution_id} has {EVENTS_LIMIT} events already, and is not tried again. "
            "Choose another id."
        )


def _was_cancelled(tx: Transaction, execution: Execution) -> bool:
    """Whether it was to be cancelled while an effect that happens once ran, and has not been started again since."""
    for event in reversed(tx.events(execution.execution_id)):
        if event.type in (Event.CANCEL_REQUESTED, Event.EXECUTION_RESTARTED):
            return event.type == Event.CANCEL_REQUESTED
    return False
