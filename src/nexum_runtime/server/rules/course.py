"""The course of an execution: how it begins, which tasks it goes on with, and how it ends.

Synchronous, without waits and without time of its own, as attempts.py and executions.py are: each method reads and
changes the store through the transaction it is given, adds the event, and notes in `Notices` whom the engine is to
wake after the commit.
"""

from collections import OrderedDict
from collections.abc import Callable

from nexum_runtime import wire
from nexum_runtime.errors import LimitExceeded, NotFound
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import Execution, Task, Transaction, session_of
from nexum_runtime.server.model.shapes import Claimed, Ending, Notices, StartOrder, Taker
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import questions

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
    """How executions go on. `clock` tells epoch milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
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

    def run_again(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """What is recorded stays; every other task gets attempts anew."""
        session, _, _ = execution.execution_id.partition("/")
        if session in self._running_at_most:
            self._running_at_most[session] += 1
        tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
        tx.add_event(execution.execution_id, self._clock(), Event.EXECUTION_RESTARTED)
        nodes = self.graph_of(tx, execution).nodes
        for task in tx.tasks(execution.execution_id):
            if task.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
                continue
            if nodes[task.node_id].is_waited_for:
                due_ms = self._begin_to_wait(tx, execution, nodes[task.node_id])
                tx.move_task(task.task_key, TaskStatus.WAITING, available_at_ms=due_ms)
            else:
                limit = task.attempt + execution.max_attempts
                tx.move_task(task.task_key, TaskStatus.READY, attempt_limit=limit)
        notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
        self.schedule(tx, notices, execution)

    # It goes on

    def schedule(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """Add a task for every node that has become ready; when all nodes are done, so is the execution."""
        nodes = self.graph_of(tx, execution)
        tasks = tx.tasks(execution.execution_id)
        done = {task.node_id for task in tasks if task.status == TaskStatus.DONE}
        if len(done) == len(nodes.nodes):
            self._end(tx, notices, execution.execution_id, ExecutionStatus.COMPLETED)
            return
        self._add_tasks(tx, notices, execution, nodes.ready(done, {task.node_id for task in tasks}))

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
        dependencies = self.graph_of(tx, execution).nodes[task.node_id].dependencies
        outputs = tx.outputs(task.execution_id) if dependencies else {}
        deps = ",".join(f"{wire.canonical_json(node_id)}:{outputs[node_id]}" for node_id in dependencies)
        timeout = f',"timeout_ms":{execution.timeout_ms}' if execution.timeout_ms else ""
        traceparent = self._traces.get(task.execution_id)
        trace = f',"traceparent":"{traceparent}"' if traceparent else ""
        input_json = f'{{"input":{execution.input_json},"deps":{{{deps}}}{timeout}{trace}}}'
        return Claimed(task, execution, input_json, is_once(task, execution))

    def finished(self, tx: Transaction, notices: Notices, task: Task, output_json: str) -> None:
        """The attempt that ran has its result: go on with what depends on it."""
        data = {"output_bytes": len(output_json.encode())}
        tx.add_event(task.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, task.attempt, data)
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

    # It ends

    def fail_task(self, tx: Transaction, notices: Notices, task: Task, error: str, error_code: ErrorCode) -> None:
        """Fail a task for good, and its execution with it. Tasks that run are let run: their results are kept."""
        tx.move_task(task.task_key, TaskStatus.FAILED, error=error, error_code=error_code)
        execution = execution_of(tx, task)
        if execution.status != ExecutionStatus.RUNNING:
            self._say_why(tx, execution)
            return
        for other in tx.tasks(task.execution_id):
            if other.status in (TaskStatus.READY, TaskStatus.WAITING):
                tx.move_task(other.task_key, TaskStatus.CANCELLED)
        self._end(tx, notices, execution.execution_id, ExecutionStatus.FAILED, error, error_code)

    def _say_why(self, tx: Transaction, execution: Execution) -> None:
        """Keep the error of a FAILED execution true: an unknown outcome outweighs a person's no, and that the rest."""
        failed = [task for task in tx.tasks(execution.execution_id) if task.status == TaskStatus.FAILED]
        weightiest = max(
            failed,
            key=lambda task: (task.error_code == ErrorCode.OUTCOME_UNKNOWN, task.error_code == ErrorCode.REJECTED),
        )
        assert weightiest.error is not None, "a FAILED task has an error"
        assert weightiest.error_code is not None, "a FAILED task has an error code"
        tx.set_execution_error(execution.execution_id, weightiest.error, weightiest.error_code)

    def settled(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """One of the unknown outcomes of a FAILED execution is known now."""
        tasks = tx.tasks(execution.execution_id)
        done = [task for task in tasks if task.status == TaskStatus.DONE]
        if any(task.status == TaskStatus.FAILED for task in tasks):
            self._say_why(tx, execution)
        elif _was_cancelled(tx, execution) and len(done) < len(self.graph_of(tx, execution).nodes):
            tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
            self.end_cancelled(tx, notices, execution)
        else:
            self.run_again(tx, notices, execution)

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
        return ended


def not_registered(workflow_id: str, version_hash: str) -> NotFound:
    version = f" of version {version_hash[:80]!r}" if version_hash else ""
    return NotFound(f"No workflow {workflow_id[:80]!r}{version} is registered.")


def execution_of(tx: Transaction, task: Task) -> Execution:
    execution = tx.execution(task.execution_id)
    assert execution is not None, "a task belongs to an execution"
    return execution


def is_once(task: Task, execution: Execution) -> bool:
    return execution.effect == wire.ONCE and task.node_type != "COMPUTE"


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
