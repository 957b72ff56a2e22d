"""What becomes of an attempt: it is claimed, given back, completed, it fails or is lost."""

import json
from collections.abc import Callable, Collection
from typing import Any

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import Execution, Task, Transaction, session_of
from nexum_runtime.server.model.shapes import Claimed, Notices, Until
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import answers, parking
from nexum_runtime.server.rules.course import Course, execution_of, has_long_story, is_once, or_not

RETRY_DELAY_MS_MIN = 1_000  # doubled with every attempt …
RETRY_DELAY_MS_MAX = 30_000  # … up to here
AWAITED_BY_LIMIT = 100  # attempts that are parked until one execution ends
RETRY_JITTER = 0.2  # a retry comes up to this share sooner, so that failures do not return in step


class Attempts:
    """The rules of attempts. `clock` tells epoch milliseconds and `jitter` a number in [0, 1)."""

    def __init__(self, clock: Callable[[], int], jitter: Callable[[], float], course: Course) -> None:
        self._clock = clock
        self._jitter = jitter
        self._course = course

    def claim(
        self,
        tx: Transaction,
        version_hash: str,
        workflow_ids: list[str],
        worker_id: str,
        lease_ms: int,
        execution_id: str | None = None,
        *,
        with_items: bool = True,
    ) -> Claimed | None:
        """Begin an attempt at the READY task that was scheduled first, of this execution or of any."""
        now_ms = self._clock()
        task = tx.claim(version_hash, workflow_ids, worker_id, lease_ms, now_ms, execution_id, with_items=with_items)
        if task is None:
            return None
        return self._course.begun(tx, task, execution_of(tx, task), now_ms)

    def give_back(self, tx: Transaction, notices: Notices, claimed: Task) -> None:
        """Undo a claim whose worker never learned of it: the attempt did not happen and is not counted."""
        if not is_current(tx.task(claimed.task_key), claimed.attempt):  # cancelled meanwhile
            return
        if has_long_story(tx, claimed.execution_id):  # whoever does this without end comes to one
            self._lose(tx, notices, claimed, f"Worker {claimed.worker_id} was gone before it learned of its task.")
            return
        runs = execution_of(tx, claimed).status == ExecutionStatus.RUNNING  # or it has failed by another of its tasks
        to = TaskStatus.READY if runs else TaskStatus.CANCELLED
        tx.move_task(claimed.task_key, to, attempt_limit=claimed.attempt_limit + 1)
        self.note_return(tx, claimed)
        if runs:
            notices.ready.add((claimed.workflow_id, claimed.version_hash, claimed.execution_id))

    def note_return(self, tx: Transaction, task: Task) -> None:
        """Its attempt did not happen."""
        data = {"worker": task.worker_id}
        tx.add_event(task.execution_id, self._clock(), Event.ATTEMPT_RETURNED, task.node_id, task.attempt, data)

    def complete(self, tx: Transaction, notices: Notices, task_id: str, output_json: str, labels_json: str = "") -> str:
        """Record a task's result. The first word wins; returns "" if it was this one, else why nothing changed.

        With `labels_json` the execution has these labels from now on.
        """
        finished = tx.finish(task_key(task_id), wire.attempt_number(task_id), output_json)
        if finished is not None:
            if labels_json:
                tx.label(finished.execution_id, labels_json)
            self._course.finished(tx, notices, finished, output_json)
            return ""
        task, attempt, execution = _find_attempt(tx, task_id)
        if task.status == TaskStatus.DONE:
            return f"Node {task.node_id} was completed already; this result was not recorded."
        settled = task.status == TaskStatus.FAILED and task.error_code != ErrorCode.OUTCOME_UNKNOWN
        if settled or task.status == TaskStatus.CANCELLED:
            return f"Execution {execution.execution_id} is {execution.status}; this result was not recorded."
        if task.status == TaskStatus.WAITING and task.node_type != graph.EFFECT:
            return f"Node {task.node_id} was answered already; this result was not recorded."
        is_late = not is_current(task, attempt)
        if task.node_type in (graph.MAP, graph.SUBWORKFLOW):
            return self._go_on_with(tx, notices, task_id, task, execution, output_json)
        node = self._course.graph_of(tx, execution).nodes.get(task.node_id)  # none of an item
        if node is not None and node.targets:
            answers.choice(node, output_json)
        if is_late and task.status == TaskStatus.RUNNING:
            notices.stop.append(task)  # the attempt that took its place
        tx.move_task(task.task_key, TaskStatus.DONE, output_json=output_json)
        data = {"output_bytes": len(output_json.encode())} | ({"late": True} if is_late else {})
        tx.add_event(execution.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, attempt, data)
        if task.node_type == graph.ITEM:
            self._course.count_item(tx, notices, task)
        elif execution.status == ExecutionStatus.RUNNING:
            self._course.schedule(tx, notices, execution)
        if execution.status != ExecutionStatus.RUNNING and task.status == TaskStatus.FAILED:
            self._course.settled(tx, notices, execution)  # what was unknown is known now
        return ""

    def _go_on_with(
        self, tx: Transaction, notices: Notices, task_id: str, task: Task, execution: Execution, output_json: str
    ) -> str:
        """A MAP has told its items, or a SUBWORKFLOW what it starts. Returns "", or why nothing comes of it."""
        is_late = not is_current(task, wire.attempt_number(task_id))
        if execution.status != ExecutionStatus.RUNNING:  # should it run again, it is told again
            if not is_late:
                tx.move_task(task.task_key, TaskStatus.CANCELLED, attempt_limit=task.attempt_limit + 1)
                self.note_return(tx, task)
            return f"Execution {execution.execution_id} is {execution.status}; this result was not recorded."
        node = self._course.graph_of(tx, execution).nodes[task.node_id]
        try:
            if node.type == graph.MAP:
                self._course.fan_out(tx, notices, execution, task, answers.items(node, output_json))
            else:
                self._course.begin_child(tx, notices, execution, task, *answers.child(node, output_json))
        except (LimitExceeded, NotFound) as error:
            flags = {"retryable": True, "interrupted": False, "unknown": False, "begun": True}
            return f"{error} {self.fail(tx, notices, task_id, str(error), **flags) or 'The attempt has failed.'}"
        if is_late and task.status == TaskStatus.RUNNING:
            notices.stop.append(task)  # the attempt that took its place
        return ""

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
            self._course.settled(tx, notices, execution)
            return ""
        if interrupted:
            self._lose(tx, notices, task, error)
            return ""
        # nexum-py promises that COMPUTE, a pure function, is not retried when it fails
        again = retryable and task.node_type != graph.COMPUTE and _may_try_again(task, execution)
        if again:
            data["retry_at_ms"] = now_ms + self._retry_delay_ms(tries(task, execution))
            tx.move_task(task.task_key, TaskStatus.READY, available_at_ms=data["retry_at_ms"])
        tx.add_event(execution.execution_id, now_ms, Event.ATTEMPT_FAILED, task.node_id, attempt, data)
        if not again and unknown and is_once(task, execution):
            self._course.fail_task(tx, notices, task, or_not(error), ErrorCode.OUTCOME_UNKNOWN)
        elif not again:
            self._course.fail_task(tx, notices, task, error, ErrorCode.TOOL_ERROR)
        return ""

    def park(self, tx: Transaction, notices: Notices, task_id: str, until: Until) -> str:
        """Give an attempt back until one of these executions ends, or until that time. It is not counted.

        Returns "", or why nothing changed. Raises InvalidRequest and LimitExceeded.
        """
        task, attempt, execution = _find_attempt(tx, task_id)
        if not is_current(task, attempt):
            return f"Attempt {attempt} of node {task.node_id} is over; nothing was changed."
        if task.node_type != graph.EFFECT or is_once(task, execution):
            raise InvalidRequest(f"Node {task.node_id} cannot be parked: only an EFFECT that may be repeated can.")
        awaited = [_awaited(tx, execution, each) for each in dict.fromkeys(until.ended)]
        if has_long_story(tx, execution.execution_id):
            self._lose(tx, notices, task, "It was given back too often to be parked once more.")
            return ""
        now_ms, told = self._clock(), {"ended": [each.execution_id for each in awaited]}
        data: dict[str, Any] = {"worker": task.worker_id} | (told if awaited else {})
        due_ms = 0 if until.ms is None else now_ms + until.ms
        data |= {"due_at_ms": due_ms} if due_ms else {}
        tx.add_event(task.execution_id, now_ms, Event.ATTEMPT_PARKED, task.node_id, attempt, data)
        runs = execution.status == ExecutionStatus.RUNNING  # or it has failed by another of its tasks
        to, limit = TaskStatus.WAITING if runs else TaskStatus.CANCELLED, task.attempt_limit + 1
        tx.move_task(task.task_key, to, available_at_ms=due_ms if runs else 0, attempt_limit=limit)
        crash_point("in-park")
        if not runs:
            return ""
        for each in awaited:
            if each.status != ExecutionStatus.RUNNING:  # by now
                parking.wake(tx, notices, task._replace(attempt_limit=limit), now_ms, each.execution_id)
                return ""
        for each in awaited:
            parking.await_end(tx, each, task)
        return ""

    def expire(self, tx: Transaction, notices: Notices, task_keys: Collection[str]) -> None:
        """Give up the attempts at these tasks whose leases have ended."""
        for task in tx.expired(self._clock()):
            if task.task_key not in task_keys:
                continue
            assert task.lease_ms is not None, "a RUNNING task has a lease"
            assert task.worker_id is not None, "a RUNNING task has a worker"
            notices.silent.add(task.worker_id)
            seconds = task.lease_ms / 1000
            self._lose(tx, notices, task, f"{_named(task.worker_id)} was silent for {seconds:g} s.")

    def lose_all(self, tx: Transaction, notices: Notices, worker_id: str) -> None:
        """Give up every attempt of a worker that is gone."""
        for task in tx.held(worker_id):
            self._lose(tx, notices, task, f"{_named(worker_id)} has gone.")

    def lose_absent(
        self, tx: Transaction, notices: Notices, worker_id: str, since_ms: int, *, even_once: bool = False
    ) -> None:
        """Give up the attempts of a worker that was not heard of since then: those that may be repeated, or all."""
        for task in tx.held(worker_id):
            assert task.lease_ms is not None, "a RUNNING task has a lease"
            assert task.lease_expires_at_ms is not None, "a RUNNING task has a lease"
            is_heard = task.lease_expires_at_ms - task.lease_ms > since_ms
            if not is_heard and (even_once or not is_once(task, execution_of(tx, task))):
                self._lose(tx, notices, task, f"{_named(worker_id)} has gone.")

    def _lose(self, tx: Transaction, notices: Notices, task: Task, reason: str) -> None:
        """An attempt ended without a word on its outcome: another one begins at once, if one is left."""
        if not is_current(tx.task(task.task_key), task.attempt):
            return  # that of another one, a moment ago, has cancelled it: its child's, say
        execution = execution_of(tx, task)
        data = {"worker": task.worker_id, "error": reason}
        tx.add_event(task.execution_id, self._clock(), Event.LEASE_EXPIRED, task.node_id, task.attempt, data)
        if _may_try_again(task, execution):
            notices.stop.append(task)
            tx.move_task(task.task_key, TaskStatus.READY)
            notices.ready.add((task.workflow_id, task.version_hash, task.execution_id))
            return
        if not is_once(task, execution):
            reason = f"{reason} That was attempt {tries(task, execution)}, the last one."
        if task.node_type in graph.REPEATABLE:
            self._course.fail_task(tx, notices, task, reason, ErrorCode.TOOL_ERROR)
        else:  # its worker is not told to stop: should it only be slow, its word settles this
            self._course.fail_task(tx, notices, task, or_not(reason), ErrorCode.OUTCOME_UNKNOWN)

    def _retry_delay_ms(self, tries_so_far: int) -> int:
        delay_ms = min(RETRY_DELAY_MS_MIN * 2 ** (tries_so_far - 1), RETRY_DELAY_MS_MAX)
        return int(delay_ms * (1 - RETRY_JITTER * self._jitter()))


def _named(worker_id: str) -> str:
    """As people know it: who executes its own tasks never called itself a worker."""
    if not worker_id.startswith(wire.LOCAL_WORKER):
        return f"Worker {worker_id}"
    number, _, _ = worker_id.removeprefix(wire.EMBEDDED_WORKER).removeprefix(wire.LOCAL_WORKER).partition("-")
    return f"The program (process {number})"


def tries(task: Task, execution: Execution) -> int:
    """Attempts begun since the execution was last started; one that was given back unused does not count."""
    return execution.max_attempts - (task.attempt_limit - task.attempt)


def task_key(task_id: str) -> str:
    """The task that a task id names an attempt of."""
    return task_id.rpartition(".")[0]


def is_current(task: Task | None, attempt: int) -> bool:
    """Whether this attempt of the task is the one that runs."""
    return task is not None and task.status == TaskStatus.RUNNING and task.attempt == attempt


def is_wanted(task: Task | None, attempt: int) -> bool:
    """Whether the word of this attempt is still waited for: it runs, or what became of it is not known."""
    unknown = task is not None and task.error_code == ErrorCode.OUTCOME_UNKNOWN and task.attempt == attempt
    return unknown or is_current(task, attempt)


def _find_attempt(tx: Transaction, task_id: str) -> tuple[Task, int, Execution]:
    """The task and the attempt that `task_id` names, and their execution. Raises NotFound."""
    task, attempt = tx.task(task_key(task_id)), wire.attempt_number(task_id)
    if task is None or not 1 <= attempt <= task.attempt:
        raise NotFound(f"No task {task_id[:80]!r} is known.")
    return task, attempt, execution_of(tx, task)


def _awaited(tx: Transaction, waits: Execution, execution_id: str) -> Execution:
    """An execution whose end is to be waited for. Raises InvalidRequest and LimitExceeded."""
    if execution_id == waits.execution_id or session_of(execution_id) != waits.session_id or not waits.session_id:
        raise InvalidRequest(
            f"{waits.execution_id} cannot be parked until {execution_id[:200]!r} ends: that is none of the other "
            "executions of its session."
        )
    awaited = tx.execution(execution_id)
    if awaited is None:
        raise InvalidRequest(f"{waits.execution_id} cannot be parked until {execution_id} ends: that is not known.")
    if len(json.loads(awaited.awaited_by_json or "[]")) >= AWAITED_BY_LIMIT:
        raise LimitExceeded(f"{AWAITED_BY_LIMIT} attempts are parked until {execution_id} ends; that is the limit.")
    return awaited


def _may_try_again(task: Task, execution: Execution) -> bool:
    return task.attempt < task.attempt_limit and execution.status == ExecutionStatus.RUNNING
