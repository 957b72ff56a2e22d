"""What is asked of executions: to start, to be cancelled, to go on by a person's word or when it is time."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import ANOTHER, Execution, Task, Transaction, Workflow, session_of
from nexum_runtime.server.model.owners import owner_of
from nexum_runtime.server.model.shapes import Claimed, Notices, Resolution, Started, StartOrder, Taker, Verdict
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import parking, questions, sessions
from nexum_runtime.server.rules.attempts import Attempts
from nexum_runtime.server.rules.checks import ERROR_LIMIT, HEAVY_CHARS, same_json
from nexum_runtime.server.rules.course import Course, check_story, execution_of, has_long_story
from nexum_runtime.text import duration_text, shorten, timestamp

WORKFLOWS_LIMIT = 10_000  # versions of all workflows in one database
TIMERS_AT_ONCE = 100  # that fire in one transaction, so that many which are due hold up nobody
SHOWN_CHARS = 120  # of an input in an error


class NotCompared(Exception):
    """An input is to be compared with the one that there is, `before`, which takes too long in a transaction."""

    def __init__(self, before: str) -> None:
        super().__init__("not compared")
        self.before = before


class Executions:
    """The rules of executions, and of the workflows they run. `clock` tells epoch milliseconds."""

    def __init__(self, clock: Callable[[], int], course: Course, attempts: Attempts) -> None:
        self._clock = clock
        self._course = course
        self._attempts = attempts

    def register(self, tx: Transaction, workflow_id: str, version_hash: str, ir_json: str, new: graph.Graph) -> str:
        """Record one version of a workflow, whose IR is parsed as `new`. Returns its compatibility with the latest."""
        known = tx.workflow(workflow_id, version_hash)
        if known and known.ir_json != ir_json and graph.parse(known.ir_json) != new:
            raise InvalidRequest(f"Workflow {workflow_id!r}: {version_hash} is registered with other nodes.")
        latest = tx.workflow(workflow_id, "")
        if latest is None:
            compatibility = wire.NEW
        else:
            before = new if latest.ir_json == ir_json else graph.parse(latest.ir_json)
            compatibility = graph.compatibility(before, new)
        if not known:
            if tx.count_workflows() >= WORKFLOWS_LIMIT:
                raise LimitExceeded(
                    f"This database knows {WORKFLOWS_LIMIT} versions of workflows already; use another one: {ANOTHER}."
                )
            tx.add_workflow(Workflow(workflow_id, version_hash, ir_json, compatibility, self._clock()))
        elif latest != known:  # a version rolled back to is the one that is started from now on
            tx.make_latest(workflow_id, version_hash)
        return compatibility

    def start(self, tx: Transaction, notices: Notices, order: StartOrder, taker: Taker | None = None) -> Started:
        """Start an execution, or find the one of this id: same id and same input, same execution.

        The first task of one that is new is given to the taker.
        """
        existing = tx.execution(order.execution_id)
        if existing is None or existing.status != ExecutionStatus.COMPLETED:
            sessions.check_that_it_goes_on(tx, order.execution_id)
        is_over = existing is not None and existing.status == ExecutionStatus.COMPLETED
        if order.traceparent and not order.claim and not is_over:
            self._course.trace(order.execution_id, order.traceparent)
        if existing is None:
            if order.claim:
                own = self._course.start_new(tx, notices, order, Taker(order.claim, order.lease_ms))
                return Started(order.execution_id, wire.NEW, claimed=own)
            return Started(order.execution_id, wire.NEW, taken=self._course.start_new(tx, notices, order, taker))
        self._start_existing(tx, notices, order, existing)
        claimed = self._claim_own(tx, notices, order) if order.claim else None
        return Started(order.execution_id, existing.status, claimed)

    def _start_existing(self, tx: Transaction, notices: Notices, order: StartOrder, existing: Execution) -> None:
        """See to it that it runs, if it is to."""
        _check_same_call(existing, order)
        if lost := _lost_on_its_way(tx, existing, order):
            self._attempts.note_return(tx, lost)
            self._course.run_again(tx, notices, existing)
        elif _may_restart(existing, order) and not (_for_once(existing, order) and self._has_begun(tx, existing)):
            check_story(tx, existing)
            declared = _declared_anew(tx, existing, order)
            self._course.run_again(tx, notices, declared, even_unknown=order.restart == "unknown")
        elif _becomes_once(existing, order) and not self._has_begun(tx, existing):
            _declared_anew(tx, existing, order)

    def _has_begun(self, tx: Transaction, execution: Execution) -> bool:
        """Whether an effect that would be run again has ever been begun, also by a child that would run again.

        A claim that was given back does not count, nor an attempt that failed before it could begin.
        """
        balance = Counter({Event.ATTEMPT_STARTED: 1, Event.ATTEMPT_RETURNED: -1})
        begun: Counter[str | None] = Counter()
        for event in tx.events(execution.execution_id):
            begun[event.node_id] += balance[event.type] - (event.data.get("begun") is False)
        if any(begun[task.node_id] for task in tx.tasks(execution.execution_id) if _would_run_again(task)):
            return True
        children = self._course.children(tx, execution).values()
        return any(child.status != ExecutionStatus.COMPLETED and self._has_begun(tx, child) for child in children)

    def _claim_own(self, tx: Transaction, notices: Notices, order: StartOrder) -> Claimed | None:
        """Begin an attempt at a task of this execution for the one who started it."""
        execution = tx.execution(order.execution_id)
        assert execution is not None, "it has just been found or started"
        for task in tx.tasks(order.execution_id):
            if task.status == TaskStatus.RUNNING and _is_of(task, order):
                self._attempts.give_back(tx, notices, task)  # it has asked before, and the answer was lost
        return self._attempts.claim(
            tx, execution.version_hash, [execution.workflow_id], order.claim, order.lease_ms, order.execution_id
        )

    def cancel(self, tx: Transaction, notices: Notices, execution_id: str) -> str:
        """Cancel a RUNNING execution and all its open tasks. Returns what came of it, in words."""
        execution = tx.execution(execution_id)
        if execution is None:
            raise NotFound(f"No execution {execution_id!r} is known.")
        if execution.status != ExecutionStatus.RUNNING:
            return f"Execution {execution_id} is {execution.status} already; nothing was changed."
        return self._course.cancel(tx, notices, execution)

    def answer(self, tx: Transaction, notices: Notices, execution_id: str, node_id: str, verdict: Verdict) -> str:
        """A person's yes or no to an approval, or answer to a question. The first word wins; returns what came of this
        one, in words.

        Yes records `{"approved": true, "approver": …, "comment": …}` as the node's output, and `"args"` with what it
        goes on with instead of what was asked for. The comment of a yes to a question is the answer.
        """
        sessions.check_whole(tx, session_of(execution_id))
        task = next((each for each in tx.tasks(execution_id) if each.node_id == node_id), None)
        if task is None or task.node_type != graph.APPROVAL:
            raise NotFound(f"Node {node_id[:80]!r} of {execution_id!r} waits for no approval.")
        if task.status != TaskStatus.WAITING:
            return _answered_before(tx, task, verdict)
        now_ms, execution = self._clock(), execution_of(tx, task)
        if 0 < task.available_at_ms <= now_ms:  # what comes of that is recorded within a moment
            raise InvalidRequest(f"{_whose(task)}: the time to answer was over at {timestamp(task.available_at_ms)}.")
        if not verdict.is_yes:
            reason = verdict.text[:ERROR_LIMIT]
            data: dict[str, Any] = {"approver": verdict.by, "reason": reason}
            tx.add_event(execution_id, now_ms, Event.TASK_REJECTED, node_id, data=data)
            error = f"Rejected{_by(verdict.by)}: {reason}" if reason else f"Rejected{_by(verdict.by)}."
            self._course.fail_task(tx, notices, task, error, ErrorCode.REJECTED)
            return "Rejected."
        return self._say_yes(tx, notices, task, execution, verdict)

    def _say_yes(self, tx: Transaction, notices: Notices, task: Task, execution: Execution, verdict: Verdict) -> str:
        asked, args = questions.asked(tx, execution), verdict.args
        is_question = asked.choices is not None
        output: dict[str, Any] = {"approved": True, "approver": verdict.by, "comment": verdict.text}
        if args is not None and (is_question or not asked.takes_args):
            how = f"nexum reject {task.execution_id} --reason 'why not'"
            raise InvalidRequest(f"{_whose(task)} takes no other arguments. Say no to it, and why: {how}")
        if asked.choices is not None:
            if not verdict.text:
                how = f"nexum answer {task.execution_id} TEXT"
                raise InvalidRequest(f"{_whose(task)} is a question; answer it: {how}")
            questions.check_answer(f"{_whose(task)} is a question. The answer to it", verdict.text, asked.choices)
            event, data = Event.TASK_ANSWERED, {"approver": verdict.by, "answer": verdict.text}
        else:
            output["comment"] = verdict.text[:ERROR_LIMIT]
            output |= {} if args is None else {"args": args}
            event, data = Event.TASK_APPROVED, {name: output[name] for name in output if name != "approved"}
        tx.add_event(task.execution_id, self._clock(), event, task.node_id, data=data)
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=wire.json_text(output))
        self._course.schedule(tx, notices, execution)
        return "Answered." if is_question else "Approved."

    def fire(self, tx: Transaction, notices: Notices, task_keys: Collection[str]) -> None:
        """Go on with those of these tasks that waited for a timer whose time has come:
        `{"waited_until": …, "delay_seconds": …}`.

        What a person was asked in vain goes on with the answer by default, or has failed. What is parked goes on.
        """
        now_ms = self._clock()
        for task in tx.due(now_ms, TIMERS_AT_ONCE):
            if task.task_key not in task_keys:
                continue
            execution = execution_of(tx, task)
            if task.node_type == graph.APPROVAL:
                self._pass_deadline(tx, notices, task, execution)
                continue
            if task.node_type == graph.EFFECT:
                parking.wake(tx, notices, task, now_ms)
                continue
            node = self._course.graph_of(tx, execution).nodes[task.node_id]
            output = {"waited_until": timestamp(now_ms), "delay_seconds": node.delay_seconds}
            tx.add_event(task.execution_id, now_ms, Event.TIMER_FIRED, task.node_id)
            tx.move_task(task.task_key, TaskStatus.DONE, output_json=wire.json_text(output))
            self._course.schedule(tx, notices, execution)

    def _pass_deadline(self, tx: Transaction, notices: Notices, task: Task, execution: Execution) -> None:
        asked = questions.asked(tx, execution)
        assert asked.deadline_ms is not None, "it was due"
        now_ms = self._clock()
        if asked.default is None:
            tx.add_event(task.execution_id, now_ms, Event.DEADLINE_PASSED, task.node_id)
            does = "said yes" if asked.choices is None else "answered"
            error = f"Nobody {does} within {duration_text(asked.deadline_ms)}."
            self._course.fail_task(tx, notices, task, error, ErrorCode.TOOL_ERROR)
            return
        tx.add_event(task.execution_id, now_ms, Event.DEADLINE_PASSED, task.node_id, data={"answer": asked.default})
        output = {"approved": True, "approver": "", "comment": asked.default, "by_default": True}
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=wire.json_text(output))
        self._course.schedule(tx, notices, execution)

    def resolve(self, tx: Transaction, notices: Notices, execution_id: str, node_id: str, word: Resolution) -> str:
        """A person's word on an unknown outcome, or that what ended without a result is to be tried again."""
        execution = tx.execution(execution_id)
        if execution is None:
            raise NotFound(f"No execution {execution_id!r} is known.")
        sessions.check_whole(tx, session_of(execution_id))
        now_ms = self._clock()
        if word.kind == "retry":
            sessions.check_that_it_goes_on(tx, execution_id)
            if node_id:
                raise InvalidRequest("To try again is said of a whole execution, not of one node: leave --node away.")
            if execution.status not in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
                raise InvalidRequest(f"Execution {execution_id} is {execution.status}; there is nothing to try again.")
            check_story(tx, execution)
            tx.add_event(execution_id, now_ms, Event.OUTCOME_RESOLVED, data={"as": word.kind})
            self._course.run_again(tx, notices, execution, even_unknown=True)
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
        if task.node_type == graph.ITEM and word.kind == "result":
            self._course.count_item(tx, notices, task)
        self._course.settled(tx, notices, execution)
        after = tx.execution(execution_id)
        assert after is not None, "it was there a moment ago"
        return f"Execution {execution_id} is {after.status}."


def _check_same_call(existing: Execution, order: StartOrder) -> None:
    if existing.workflow_id != order.workflow_id:
        raise InvalidRequest(
            f"Execution {existing.execution_id} belongs to workflow {existing.workflow_id[:80]!r}, "
            f"not to {order.workflow_id[:80]!r}."
        )
    if existing.input_json != order.input_json:
        if max(len(existing.input_json), len(order.input_json)) > HEAVY_CHARS:
            raise NotCompared(existing.input_json)
        check_same_input(order, same_json(existing.input_json, order.input_json, SHOWN_CHARS))


def check_same_input(order: StartOrder, differ: tuple[str, str] | None) -> None:
    """`differ` is what `same_json` tells of the input that there is, and of this order's."""
    if differ is not None:
        raise InvalidRequest(
            f"Execution {order.execution_id} was started with the input {differ[0]}, not with {differ[1]}. "
            "Choose another id."
        )


def _lost_on_its_way(tx: Transaction, execution: Execution, order: StartOrder) -> Task | None:
    """The task of an unknown outcome, if this very owner had claimed it: that it asks again tells that the answer was
    lost, and nothing has begun. An owner is one effect of one process; others' ids may be used again."""
    if not order.claim.startswith(wire.LOCAL_WORKER) or execution.error_code != ErrorCode.OUTCOME_UNKNOWN:
        return None
    if has_long_story(tx, execution.execution_id):
        return None
    return next((task for task in tx.tasks(execution.execution_id) if _is_of(task, order)), None)


def _is_of(task: Task, order: StartOrder) -> bool:
    """Whether who claims had it before, be it at another server."""
    return task.worker_id is not None and owner_of(task.worker_id) == owner_of(order.claim)


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


def _would_run_again(task: Task) -> bool:
    return task.node_type not in graph.REPEATABLE and task.status != TaskStatus.DONE


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


_WORDS = {
    Event.TASK_APPROVED: "approved",
    Event.TASK_REJECTED: "rejected",
    Event.TASK_ANSWERED: "answered",
    Event.DEADLINE_PASSED: "",
}


def _answered_before(tx: Transaction, task: Task, verdict: Verdict) -> str:
    """Say that this word comes too late. Raises InvalidRequest when it is another one than the first."""
    if task.status not in (TaskStatus.DONE, TaskStatus.FAILED):
        raise InvalidRequest(f"Execution {task.execution_id} has ended; its node {task.node_id} needs no answer.")
    word = next(e for e in reversed(tx.events(task.execution_id)) if e.node_id == task.node_id and e.type in _WORDS)
    answer = word.data.get("answer")
    of_answer = "" if answer is None else f": {shorten(answer, SHOWN_CHARS)}"
    if word.type == Event.DEADLINE_PASSED:
        how = "nobody had answered in time" if answer is None else "nobody had answered in time, and so it is"
        raise InvalidRequest(f"{_whose(task)}: {how}{of_answer}. Nothing was changed.")
    told = (
        f"{_whose(task)} was {_WORDS[word.type]}{_by(word.data['approver'])} already{of_answer}; nothing was changed."
    )
    is_same_word = verdict.is_yes == (task.status == TaskStatus.DONE) and answer in (None, verdict.text)
    if not is_same_word or (verdict.is_yes and verdict.args != word.data.get("args")):
        raise InvalidRequest(told)
    return told


def _whose(task: Task) -> str:
    return f"Node {task.node_id} of {task.execution_id}"


def _by(who: str) -> str:
    return f" by {who}" if who else ""
