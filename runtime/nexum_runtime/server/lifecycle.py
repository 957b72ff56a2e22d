"""What becomes of executions and tasks: every rule that is applied inside one transaction.

Synchronous, without waits and without time of its own: each method reads and changes the store through the
transaction it is given, adds the event, and notes in `Notices` whom the engine is to wake after the commit.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.server import graph
from nexum_runtime.server.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.store.base import Execution, Task, Transaction, Workflow
from nexum_runtime.text import shorten, timestamp

RETRY_DELAY_MS_MIN = 1_000  # doubled with every attempt …
RETRY_DELAY_MS_MAX = 30_000  # … up to here
RETRY_JITTER = 0.2  # a retry comes up to this share sooner, so that failures do not return in step
RUNNING_LIMIT = 10_000  # executions of one session at once
WORKFLOWS_LIMIT = 10_000  # versions of all workflows in one database
GRAPHS_KEPT = 500  # versions whose graphs are at hand
TIMERS_AT_ONCE = 100  # that fire in one transaction, so that many which are due hold up nobody
EVENTS_LIMIT = 100_000  # of one execution: with more it is started afresh no more, and no attempt is free
SESSIONS_KEPT = 1_000  # whose number of executions under way is known well enough not to be counted
TRACES_KEPT = 10_000  # traces of executions, the latest ones
SHOWN_CHARS = 120  # of an input in an error

ENDS = {
    ExecutionStatus.COMPLETED: Event.EXECUTION_COMPLETED,
    ExecutionStatus.FAILED: Event.EXECUTION_FAILED,
    ExecutionStatus.CANCELLED: Event.EXECUTION_CANCELLED,
}


class StartOrder(NamedTuple):
    """A wish to start an execution."""

    workflow_id: str
    version_hash: str  # empty: the version registered last
    input_json: str
    execution_id: str = ""  # empty: one is made up
    max_attempts: int = wire.ATTEMPTS_DEFAULT
    effect: str = wire.EFFECT_DEFAULT
    timeout_ms: int | None = None  # of one attempt
    restart: str = ""  # "failed" or "unknown", see wire.RESTART
    claim: str = ""  # a worker id: whoever gives this order takes the first task itself …
    lease_ms: int = wire.LEASE_MS_DEFAULT  # … and may be silent for so long
    traceparent: str = ""  # for whoever executes it


@dataclass(frozen=True)
class Taker:
    """A worker that can take a task at once."""

    worker_id: str
    lease_ms: int


class Started(NamedTuple):
    execution_id: str
    before: str  # wire.NEW, or the status found
    claimed: "Claimed | None" = None  # what `claim` got
    taken: "Claimed | None" = None  # what the taker got


@dataclass(frozen=True)
class Resolution:
    """A person's word on an execution that ended without a result."""

    kind: str  # "result", "failed" or "retry", see wire.RESOLUTION
    text: str = ""  # result: the output's JSON text; failed: why


@dataclass(frozen=True)
class Verdict:
    """A person's word on an approval."""

    is_yes: bool
    by: str  # who says so; may be empty
    text: str  # a comment, or why not; may be empty


class Claimed(NamedTuple):
    task: Task
    execution: Execution
    input_json: str  # {"input": …, "deps": {node: output}}, and "timeout_ms" and "traceparent" where there is one
    is_once: bool  # its effect must not begin before the claim is synced


class Ending(NamedTuple):
    """How an execution was COMPLETED that has one task."""

    execution: Execution
    task: Task
    output_json: str


@dataclass
class Notices:
    """Whom to wake once the transaction is committed."""

    ended: dict[str, Ending | None] = field(default_factory=dict)  # by execution id
    ready: set[tuple[str, str, str]] = field(default_factory=set)  # (workflow id, version hash, execution id)
    stop: list[Task] = field(default_factory=list)  # attempts whose worker should stop
    silent: set[str] = field(default_factory=set)  # workers whose leases have ended


class Lifecycle:
    """The rules. `clock` tells epoch milliseconds and `jitter` a number in [0, 1)."""

    def __init__(self, clock: Callable[[], int], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._graphs: dict[tuple[str, str], graph.Graph] = {}
        self._running_at_most: dict[str, int] = {}  # session → executions
        self._traces: OrderedDict[str, str] = OrderedDict()  # execution id → traceparent; a restart forgets them

    def register(self, tx: Transaction, workflow_id: str, version_hash: str, ir_json: str, new: graph.Graph) -> str:
        """Record one version of a workflow, whose IR is parsed as `new`. Returns its compatibility with the latest."""
        known = tx.workflow(workflow_id, version_hash)
        if known and graph.parse(known.ir_json) != new:
            raise InvalidRequest(f"Workflow {workflow_id!r}: {version_hash} is registered with other nodes.")
        latest = tx.workflow(workflow_id, "")
        compatibility = graph.compatibility(graph.parse(latest.ir_json), new) if latest else wire.NEW
        if not known:
            if tx.count_workflows() >= WORKFLOWS_LIMIT:
                raise LimitExceeded(
                    f"This database knows {WORKFLOWS_LIMIT} versions of workflows already; use another one with --db."
                )
            tx.add_workflow(Workflow(workflow_id, version_hash, ir_json, compatibility, self._clock()))
        elif latest != known:  # a version rolled back to is the one that is started from now on
            tx.make_latest(workflow_id, version_hash)
        return compatibility

    # Executions

    def start(self, tx: Transaction, notices: Notices, order: StartOrder, taker: Taker | None = None) -> Started:
        """Start an execution, or find the one of this id: same id and same input, same execution.

        The first task of one that is new is given to the taker.
        """
        existing = tx.execution(order.execution_id)
        is_over = existing is not None and existing.status == ExecutionStatus.COMPLETED
        if order.traceparent and not order.claim and not is_over:
            self._trace(order.execution_id, order.traceparent)
        if existing is None:
            if order.claim:
                own = self._start_new(tx, notices, order, Taker(order.claim, order.lease_ms))
                return Started(order.execution_id, wire.NEW, claimed=own)
            return Started(order.execution_id, wire.NEW, taken=self._start_new(tx, notices, order, taker))
        self._start_existing(tx, notices, order, existing)
        claimed = self._claim_own(tx, notices, order) if order.claim else None
        return Started(order.execution_id, existing.status, claimed)

    def _trace(self, execution_id: str, traceparent: str) -> None:
        """Attempts from now on belong to this trace."""
        self._traces[execution_id] = traceparent
        self._traces.move_to_end(execution_id)
        if len(self._traces) > TRACES_KEPT:
            self._traces.popitem(last=False)

    def _start_existing(self, tx: Transaction, notices: Notices, order: StartOrder, existing: Execution) -> None:
        """See to it that it runs, if it is to."""
        _check_same_call(existing, order)
        if _may_restart(existing, order) and not (_for_once(existing, order) and _has_begun(tx, existing)):
            _check_story(tx, existing)
            self._run_again(tx, notices, _declared_anew(tx, existing, order))
        elif _becomes_once(existing, order) and not _has_begun(tx, existing):
            _declared_anew(tx, existing, order)

    def _claim_own(self, tx: Transaction, notices: Notices, order: StartOrder) -> Claimed | None:
        """Begin an attempt at a task of this execution for the one who started it."""
        execution = tx.execution(order.execution_id)
        assert execution is not None, "it has just been found or started"
        for task in tx.tasks(order.execution_id):
            if task.status == TaskStatus.RUNNING and task.worker_id == order.claim:
                self.give_back(tx, notices, task)  # it has asked before, and the answer was lost
        return self.claim(
            tx, execution.version_hash, [execution.workflow_id], order.claim, order.lease_ms, order.execution_id
        )

    def _start_new(self, tx: Transaction, notices: Notices, order: StartOrder, taker: Taker | None) -> Claimed | None:
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
        )
        tx.add_execution(execution)
        tx.add_event(execution.execution_id, now_ms, Event.EXECUTION_STARTED)
        return self._add_tasks(tx, notices, execution, self._graph(tx, execution).ready((), ()), taker)

    def _run_again(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """What is recorded stays; every other task gets attempts anew."""
        session, _, _ = execution.execution_id.partition("/")
        if session in self._running_at_most:
            self._running_at_most[session] += 1
        tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
        tx.add_event(execution.execution_id, self._clock(), Event.EXECUTION_RESTARTED)
        nodes = self._graph(tx, execution).nodes
        for task in tx.tasks(execution.execution_id):
            if task.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
                continue
            if nodes[task.node_id].is_waited_for:
                due_ms = self._begin_to_wait(tx, task, nodes[task.node_id])
                tx.move_task(task.task_key, TaskStatus.WAITING, available_at_ms=due_ms)
            else:
                limit = task.attempt + execution.max_attempts
                tx.move_task(task.task_key, TaskStatus.READY, attempt_limit=limit)
        notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
        self._schedule(tx, notices, execution)

    def cancel(self, tx: Transaction, notices: Notices, execution_id: str) -> str:
        """Cancel a RUNNING execution and all its open tasks. Returns what came of it, in words."""
        execution = tx.execution(execution_id)
        if execution is None:
            raise NotFound(f"No execution {execution_id!r} is known.")
        if execution.status != ExecutionStatus.RUNNING:
            return f"Execution {execution_id} is {execution.status} already; nothing was changed."
        begun = []  # effects that happen once: to cut one short is not to know what it has done
        for task in tx.tasks(execution_id):
            if task.status == TaskStatus.RUNNING and _is_once(task, execution):
                begun.append(task)
                continue
            if task.status == TaskStatus.RUNNING:
                notices.stop.append(task)
            tx.move_task(task.task_key, TaskStatus.CANCELLED)
        if begun:  # their workers are let finish: their word settles it
            tx.add_event(execution_id, self._clock(), Event.CANCEL_REQUESTED)
            error = _or_not("It was cancelled while it ran.")
            for task in begun:
                self._fail_task(tx, notices, task, error, ErrorCode.OUTCOME_UNKNOWN)
            return error
        self._end_cancelled(tx, notices, execution)
        return "Execution cancelled"

    def _end_cancelled(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        error = "The execution was cancelled."
        self._end(tx, notices, execution.execution_id, ExecutionStatus.CANCELLED, error, ErrorCode.CANCELLED)

    # What needs no worker

    def _begin_to_wait(self, tx: Transaction, task: Task, node: graph.Node) -> int:
        """Tell the event. Returns when the timer fires, or 0 for what waits for a person."""
        now_ms = self._clock()
        if node.delay_seconds is None:
            tx.add_event(task.execution_id, now_ms, Event.APPROVAL_REQUESTED, node.id)
            return 0
        due_ms = now_ms + round(node.delay_seconds * 1000)
        tx.add_event(task.execution_id, now_ms, Event.TIMER_SET, node.id, data={"due_at_ms": due_ms})
        return due_ms

    def answer(self, tx: Transaction, notices: Notices, execution_id: str, node_id: str, verdict: Verdict) -> str:
        """A person's yes or no to an approval. The first word wins; returns what came of this one, in words.

        Yes records `{"approved": true, "approver": …, "comment": …}` as the node's output.
        """
        task = next((each for each in tx.tasks(execution_id) if each.node_id == node_id), None)
        if task is None or task.node_type != graph.APPROVAL:
            raise NotFound(f"Node {node_id[:80]!r} of {execution_id!r} waits for no approval.")
        if task.status != TaskStatus.WAITING:
            return _answered_before(tx, task, verdict)
        now_ms = self._clock()
        if not verdict.is_yes:
            data = {"approver": verdict.by, "reason": verdict.text}
            tx.add_event(execution_id, now_ms, Event.TASK_REJECTED, node_id, data=data)
            error = f"Rejected{_by(verdict.by)}: {verdict.text}" if verdict.text else f"Rejected{_by(verdict.by)}."
            self._fail_task(tx, notices, task, error, ErrorCode.REJECTED)
            return "Rejected."
        data = {"approver": verdict.by, "comment": verdict.text}
        tx.add_event(execution_id, now_ms, Event.TASK_APPROVED, node_id, data=data)
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=wire.json_text({"approved": True} | data))
        self._schedule(tx, notices, _execution_of(tx, task))
        return "Approved."

    def fire(self, tx: Transaction, notices: Notices) -> None:
        """Go on with what waited for a timer whose time has come: `{"waited_until": …, "delay_seconds": …}`."""
        now_ms = self._clock()
        for task in tx.due(now_ms, TIMERS_AT_ONCE):
            execution = _execution_of(tx, task)
            node = self._graph(tx, execution).nodes[task.node_id]
            output = {"waited_until": timestamp(now_ms), "delay_seconds": node.delay_seconds}
            tx.add_event(task.execution_id, now_ms, Event.TIMER_FIRED, task.node_id)
            tx.move_task(task.task_key, TaskStatus.DONE, output_json=wire.json_text(output))
            self._schedule(tx, notices, execution)

    # Tasks

    def claim(
        self,
        tx: Transaction,
        version_hash: str,
        workflow_ids: list[str],
        worker_id: str,
        lease_ms: int,
        execution_id: str | None = None,
    ) -> Claimed | None:
        """Begin an attempt at the READY task that was scheduled first, of this execution or of any."""
        now_ms = self._clock()
        task = tx.claim(version_hash, workflow_ids, worker_id, lease_ms, now_ms, execution_id)
        if task is None:
            return None
        return self._begun(tx, task, _execution_of(tx, task), now_ms)

    def _begun(self, tx: Transaction, task: Task, execution: Execution, now_ms: int) -> Claimed:
        """Tell the events of an attempt that begins, and make what its worker gets."""
        data = {"worker": task.worker_id, "lease_ms": task.lease_ms}
        tx.add_event(task.execution_id, now_ms, Event.ATTEMPT_STARTED, task.node_id, task.attempt, data)
        dependencies = self._graph(tx, execution).nodes[task.node_id].dependencies
        outputs = tx.outputs(task.execution_id) if dependencies else {}
        deps = ",".join(f"{wire.canonical_json(node_id)}:{outputs[node_id]}" for node_id in dependencies)
        timeout = f',"timeout_ms":{execution.timeout_ms}' if execution.timeout_ms else ""
        traceparent = self._traces.get(task.execution_id)
        trace = f',"traceparent":"{traceparent}"' if traceparent else ""
        input_json = f'{{"input":{execution.input_json},"deps":{{{deps}}}{timeout}{trace}}}'
        return Claimed(task, execution, input_json, _is_once(task, execution))

    def give_back(self, tx: Transaction, notices: Notices, claimed: Task) -> None:
        """Undo a claim whose worker never learned of it: the attempt did not happen and is not counted."""
        if not is_current(tx.task(claimed.task_key), claimed.attempt):  # cancelled meanwhile
            return
        if tx.count_events(claimed.execution_id) >= EVENTS_LIMIT:  # whoever does this without end comes to one
            self._lose(tx, notices, claimed, f"Worker {claimed.worker_id} was gone before it learned of its task.")
            return
        runs = _execution_of(tx, claimed).status == ExecutionStatus.RUNNING  # or it has failed by another of its tasks
        to = TaskStatus.READY if runs else TaskStatus.CANCELLED
        tx.move_task(claimed.task_key, to, attempt_limit=claimed.attempt_limit + 1)
        data = {"worker": claimed.worker_id}
        now_ms = self._clock()
        tx.add_event(claimed.execution_id, now_ms, Event.ATTEMPT_RETURNED, claimed.node_id, claimed.attempt, data)
        if runs:
            notices.ready.add((claimed.workflow_id, claimed.version_hash, claimed.execution_id))

    def complete(self, tx: Transaction, notices: Notices, task_id: str, output_json: str) -> str:
        """Record a task's result. The first word wins; returns "" if it was this one, else why nothing changed."""
        finished = tx.finish(task_key(task_id), wire.attempt_number(task_id), output_json)
        if finished is not None:
            self._finished(tx, notices, finished, output_json)
            return ""
        task, attempt, execution = _find_attempt(tx, task_id)
        if task.status == TaskStatus.DONE:
            return f"Node {task.node_id} was completed already; this result was not recorded."
        settled = task.status == TaskStatus.FAILED and task.error_code != ErrorCode.OUTCOME_UNKNOWN
        if settled or task.status == TaskStatus.CANCELLED:
            return f"Execution {execution.execution_id} is {execution.status}; this result was not recorded."
        if task.status == TaskStatus.RUNNING:
            notices.stop.append(task)  # the attempt that took its place
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=output_json)
        data = {"output_bytes": len(output_json.encode()), "late": True}
        tx.add_event(execution.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, attempt, data)
        if execution.status == ExecutionStatus.RUNNING:
            self._schedule(tx, notices, execution)
        elif task.status == TaskStatus.FAILED:  # what was unknown is settled now
            self._settled(tx, notices, execution)
        return ""

    def _finished(self, tx: Transaction, notices: Notices, task: Task, output_json: str) -> None:
        """The attempt that ran has its result: go on with what depends on it."""
        data = {"output_bytes": len(output_json.encode())}
        tx.add_event(task.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, task.attempt, data)
        nodes = self._graphs.get((task.workflow_id, task.version_hash))
        if nodes is not None and len(nodes.nodes) == 1:
            ended = self._end(tx, notices, task.execution_id, ExecutionStatus.COMPLETED)
            if ended is not None:  # else it has ended otherwise
                notices.ended[task.execution_id] = Ending(ended, task, output_json)
            return
        execution = _execution_of(tx, task)
        if execution.status == ExecutionStatus.RUNNING:
            self._schedule(tx, notices, execution)

    def resolve(self, tx: Transaction, notices: Notices, execution_id: str, node_id: str, word: Resolution) -> str:
        """A person's word on an unknown outcome, or that what ended without a result is to be tried again."""
        execution = tx.execution(execution_id)
        if execution is None:
            raise NotFound(f"No execution {execution_id!r} is known.")
        now_ms = self._clock()
        if word.kind == "retry":
            if node_id:
                raise InvalidRequest("To try again is said of a whole execution, not of one node: leave --node away.")
            if execution.status not in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
                raise InvalidRequest(f"Execution {execution_id} is {execution.status}; there is nothing to try again.")
            _check_story(tx, execution)
            tx.add_event(execution_id, now_ms, Event.OUTCOME_RESOLVED, data={"as": word.kind})
            self._run_again(tx, notices, execution)
            return f"Execution {execution_id} is tried again."
        task = _the_unknown_one(execution, tx.tasks(execution_id), node_id)
        data: dict[str, Any] = {"as": word.kind}
        if word.kind == "result":
            data["output_bytes"] = len(word.text.encode())
            tx.move_task(task.task_key, TaskStatus.DONE, output_json=word.text)
        else:
            data["error"] = word.text
            tx.settle_failure(task.task_key, word.text)
        tx.add_event(execution_id, now_ms, Event.OUTCOME_RESOLVED, task.node_id, task.attempt, data)
        self._settled(tx, notices, execution)
        after = tx.execution(execution_id)
        assert after is not None, "it was there a moment ago"
        return f"Execution {execution_id} is {after.status}."

    def _settled(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """One of the unknown outcomes of a FAILED execution is known now."""
        tasks = tx.tasks(execution.execution_id)
        done = [task for task in tasks if task.status == TaskStatus.DONE]
        if any(task.status == TaskStatus.FAILED for task in tasks):
            self._say_why(tx, execution)
        elif _was_cancelled(tx, execution) and len(done) < len(self._graph(tx, execution).nodes):
            tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
            self._end_cancelled(tx, notices, execution)
        else:
            self._run_again(tx, notices, execution)

    def fail(
        self,
        tx: Transaction,
        notices: Notices,
        task_id: str,
        error: str,
        *,
        retryable: bool,
        interrupted: bool,
        unknown: bool,
        begun: bool,
    ) -> str:
        """End an attempt without a result. Returns "", or why nothing changed."""
        task, attempt, execution = _find_attempt(tx, task_id)
        now_ms = self._clock()
        data: dict[str, Any] = {"worker": task.worker_id, "error": error} | ({} if begun else {"begun": False})
        if not is_current(task, attempt):
            if interrupted or unknown or not is_wanted(task, attempt):
                return f"Attempt {attempt} of node {task.node_id} is over; nothing was changed."
            tx.settle_failure(task.task_key, error)  # its worker was only slow
            late = data | {"late": True}
            tx.add_event(execution.execution_id, now_ms, Event.ATTEMPT_FAILED, task.node_id, attempt, late)
            self._settled(tx, notices, execution)
            return ""
        if interrupted:
            self._lose(tx, notices, task, error)
            return ""
        # nexum-py promises that COMPUTE, a pure function, is not retried when it fails
        again = retryable and task.node_type != "COMPUTE" and _may_try_again(task, execution)
        if again:
            data["retry_at_ms"] = now_ms + self._retry_delay_ms(tries(task, execution))
            tx.move_task(task.task_key, TaskStatus.READY, available_at_ms=data["retry_at_ms"])
        tx.add_event(execution.execution_id, now_ms, Event.ATTEMPT_FAILED, task.node_id, attempt, data)
        if not again and unknown and _is_once(task, execution):
            self._fail_task(tx, notices, task, _or_not(error), ErrorCode.OUTCOME_UNKNOWN)
        elif not again:
            self._fail_task(tx, notices, task, error, ErrorCode.TOOL_ERROR)
        return ""

    def expire(self, tx: Transaction, notices: Notices) -> None:
        """Give up every attempt whose lease has ended."""
        for task in tx.expired(self._clock()):
            assert task.lease_ms is not None, "a RUNNING task has a lease"
            assert task.worker_id is not None, "a RUNNING task has a worker"
            notices.silent.add(task.worker_id)
            seconds = task.lease_ms / 1000
            self._lose(tx, notices, task, f"Worker {task.worker_id} was silent for {seconds:g} s.")

    def lose_all(self, tx: Transaction, notices: Notices, worker_id: str) -> None:
        """Give up every attempt of a worker that is gone."""
        for task in tx.held(worker_id):
            self._lose(tx, notices, task, f"Worker {worker_id} has gone.")

    def _lose(self, tx: Transaction, notices: Notices, task: Task, reason: str) -> None:
        """An attempt ended without a word on its outcome: another one begins at once, if one is left."""
        execution = _execution_of(tx, task)
        data = {"worker": task.worker_id, "error": reason}
        tx.add_event(task.execution_id, self._clock(), Event.LEASE_EXPIRED, task.node_id, task.attempt, data)
        if _may_try_again(task, execution):
            notices.stop.append(task)
            tx.move_task(task.task_key, TaskStatus.READY)
            notices.ready.add((task.workflow_id, task.version_hash, task.execution_id))
            return
        if not _is_once(task, execution):
            reason = f"{reason} That was attempt {tries(task, execution)}, the last one."
        if task.node_type == "COMPUTE":
            self._fail_task(tx, notices, task, reason, ErrorCode.TOOL_ERROR)
        else:  # its worker is not told to stop: should it only be slow, its word settles this
            self._fail_task(tx, notices, task, _or_not(reason), ErrorCode.OUTCOME_UNKNOWN)

    def _fail_task(self, tx: Transaction, notices: Notices, task: Task, error: str, error_code: ErrorCode) -> None:
        """Fail a task for good, and its execution with it. Tasks that run are let run: their results are kept."""
        tx.move_task(task.task_key, TaskStatus.FAILED, error=error, error_code=error_code)
        execution = _execution_of(tx, task)
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

    def _schedule(self, tx: Transaction, notices: Notices, execution: Execution) -> None:
        """Add a task for every node that has become ready; when all nodes are done, so is the execution."""
        nodes = self._graph(tx, execution)
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
                due_ms = self._begin_to_wait(tx, task, node)
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
            taken, taker = self._begun(tx, task, execution, now_ms), None
        return taken

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

    def _check_room(self, tx: Transaction, execution_id: str) -> None:
        """Refuse one more execution of a session, whose ids all begin with "{session}/", when too many of it run."""
        session, slash, _ = execution_id.partition("/")
        if not slash:
            return
        at_most = self._running_at_most
        if at_most.get(session, RUNNING_LIMIT) >= RUNNING_LIMIT:  # those that ended since are still in the number
            if len(at_most) >= SESSIONS_KEPT:
                at_most.clear()
            at_most[session] = tx.count_running(session + slash, RUNNING_LIMIT)
        if at_most[session] >= RUNNING_LIMIT:
            raise LimitExceeded(
                f"Session {session} has {RUNNING_LIMIT} executions under way; let some of them end first."
            )
        at_most[session] += 1

    def _retry_delay_ms(self, tries_so_far: int) -> int:
        delay_ms = min(RETRY_DELAY_MS_MIN * 2 ** (tries_so_far - 1), RETRY_DELAY_MS_MAX)
        return int(delay_ms * (1 - RETRY_JITTER * self._jitter()))

    def _graph(self, tx: Transaction, execution: Execution) -> graph.Graph:
        key = (execution.workflow_id, execution.version_hash)
        if key not in self._graphs:
            workflow = tx.workflow(*key)
            assert workflow is not None, "an execution belongs to a registered workflow"
            if len(self._graphs) >= GRAPHS_KEPT:
                self._graphs.clear()
            self._graphs[key] = graph.parse(workflow.ir_json)
        return self._graphs[key]


def not_registered(workflow_id: str, version_hash: str) -> NotFound:
    version = f" of version {version_hash[:80]!r}" if version_hash else ""
    return NotFound(f"No workflow {workflow_id[:80]!r}{version} is registered.")


def tries(task: Task, execution: Execution) -> int:
    """Attempts begun since the execution was last started; one that was given back unused does not count."""
    return execution.max_attempts - (task.attempt_limit - task.attempt)


def task_key(task_id: str) -> str:
    """The task that a task id names an attempt of."""
    return task_id.rpartition(".")[0]


def is_current(task: Task | None, attempt: int) -> bool:
    """Whether this attempt of the task is the one that runs."""
    return task is not None and task.status == TaskStatus.RUNNING and task.attempt == attempt


def _is_once(task: Task, execution: Execution) -> bool:
    return execution.effect == wire.ONCE and task.node_type != "COMPUTE"


def is_wanted(task: Task | None, attempt: int) -> bool:
    """Whether the word of this attempt is still waited for: it runs, or what became of it is not known."""
    unknown = task is not None and task.error_code == ErrorCode.OUTCOME_UNKNOWN and task.attempt == attempt
    return unknown or is_current(task, attempt)


def _the_unknown_one(execution: Execution, tasks: list[Task], node_id: str) -> Task:
    """The task whose outcome a person settles; `node_id` says which when several are unknown."""
    unknown = [task for task in tasks if task.error_code == ErrorCode.OUTCOME_UNKNOWN]
    if not unknown:
        status = f"{execution.status} ({execution.error_code})" if execution.error_code else execution.status
        raise InvalidRequest(f"Execution {execution.execution_id} is {status}; no outcome of it is unknown.")
    found = [task for task in unknown if task.node_id == node_id] if node_id else unknown
    if len(found) != 1:
        nodes = shorten(", ".join(task.node_id for task in unknown), SHOWN_CHARS)
        raise InvalidRequest(f"Say which node of {execution.execution_id} (--node); its outcome is unknown at {nodes}.")
    return found[0]


def _answered_before(tx: Transaction, task: Task, verdict: Verdict) -> str:
    """Say that this word comes too late. Raises InvalidRequest when it is another one than the first."""
    words = {TaskStatus.DONE: Event.TASK_APPROVED, TaskStatus.FAILED: Event.TASK_REJECTED}
    if task.status not in words:
        raise InvalidRequest(f"Execution {task.execution_id} has ended; its node {task.node_id} needs no answer.")
    found = [event for event in tx.events(task.execution_id) if event.node_id == task.node_id]
    who = next(event.data["approver"] for event in reversed(found) if event.type == words[task.status])
    was_yes = task.status == TaskStatus.DONE
    said = "approved" if was_yes else "rejected"
    told = f"Node {task.node_id} of {task.execution_id} was {said}{_by(who)} already; nothing was changed."
    if was_yes != verdict.is_yes:
        raise InvalidRequest(told)
    return told


def _by(who: str) -> str:
    return f" by {who}" if who else ""


def _find_attempt(tx: Transaction, task_id: str) -> tuple[Task, int, Execution]:
    """The task and the attempt that `task_id` names, and their execution. Raises NotFound."""
    task, attempt = tx.task(task_key(task_id)), wire.attempt_number(task_id)
    if task is None or not 1 <= attempt <= task.attempt:
        raise NotFound(f"No task {task_id[:80]!r} is known.")
    return task, attempt, _execution_of(tx, task)


def _execution_of(tx: Transaction, task: Task) -> Execution:
    execution = tx.execution(task.execution_id)
    assert execution is not None, "a task belongs to an execution"
    return execution


def _may_try_again(task: Task, execution: Execution) -> bool:
    return task.attempt < task.attempt_limit and execution.status == ExecutionStatus.RUNNING


def _may_restart(execution: Execution, order: StartOrder) -> bool:
    if execution.status not in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
        return False
    if execution.error_code == ErrorCode.REJECTED:  # only a person takes that back, see `resolve`
        return False
    unknown = execution.error_code == ErrorCode.OUTCOME_UNKNOWN
    return order.restart == "unknown" or (order.restart == "failed" and not unknown)


def _declared_anew(tx: Transaction, execution: Execution, order: StartOrder) -> Execution:
    """The execution as this order declares it: the code may have changed since it was first started."""
    execution = execution._replace(max_attempts=order.max_attempts, effect=order.effect, timeout_ms=order.timeout_ms)
    tx.declare(execution.execution_id, execution.max_attempts, execution.effect, execution.timeout_ms)
    return execution


def _becomes_once(execution: Execution, order: StartOrder) -> bool:
    return execution.status == ExecutionStatus.RUNNING and order.effect == wire.ONCE and execution.effect != wire.ONCE


def _for_once(execution: Execution, order: StartOrder) -> bool:
    """Whether what has begun must not begin again: so it was declared, or is by now."""
    return order.effect == wire.ONCE or (execution.effect == wire.ONCE and order.restart != "unknown")


def _has_begun(tx: Transaction, execution: Execution) -> bool:
    """Whether an effect that would be run again has ever been begun.

    A claim that was given back does not count, nor an attempt that failed before it could begin.
    """
    balance = Counter({Event.ATTEMPT_STARTED: 1, Event.ATTEMPT_RETURNED: -1})
    begun: Counter[str | None] = Counter()
    for event in tx.events(execution.execution_id):
        begun[event.node_id] += balance[event.type] - (event.data.get("begun") is False)
    return any(begun[task.node_id] for task in tx.tasks(execution.execution_id) if _would_run_again(task))


def _was_cancelled(tx: Transaction, execution: Execution) -> bool:
    """Whether it was to be cancelled while an effect that happens once ran, and has not been started again since."""
    for event in reversed(tx.events(execution.execution_id)):
        if event.type in (Event.CANCEL_REQUESTED, Event.EXECUTION_RESTARTED):
            return event.type == Event.CANCEL_REQUESTED
    return False


def _would_run_again(task: Task) -> bool:
    return task.node_type != "COMPUTE" and task.status != TaskStatus.DONE


def _or_not(reason: str) -> str:
    return f"{reason.rstrip('.')}: the effect may or may not have happened."


def _check_story(tx: Transaction, execution: Execution) -> None:
    """Refuse to start an execution afresh for ever: every time adds to its events."""
    if tx.count_events(execution.execution_id) >= EVENTS_LIMIT:
        raise LimitExceeded(
            f"Execution {execution.execution_id} has {EVENTS_LIMIT} events already, and is not tried again. "
            "Choose another id."
        )


def _check_same_call(existing: Execution, order: StartOrder) -> None:
    if existing.workflow_id != order.workflow_id:
        raise InvalidRequest(
            f"Execution {existing.execution_id} belongs to workflow {existing.workflow_id[:80]!r}, "
            f"not to {order.workflow_id[:80]!r}."
        )
    if existing.input_json == order.input_json:
        return
    before, now = (wire.canonical_json(wire.parse_json(text)) for text in (existing.input_json, order.input_json))
    if before != now:
        raise InvalidRequest(
            f"Execution {existing.execution_id} was started with the input {shorten(before, SHOWN_CHARS)}, "
            f"not with {shorten(now, SHOWN_CHARS)}. Choose another id."
        )
