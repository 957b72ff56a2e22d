"""What happens to executions and tasks: start, claim, complete, fail, cancel, sweep.

Every change is one transaction of the store, its event included. Whoever waits (for an execution's end, for a task
to become ready) is woken after the commit, never before.
"""

import asyncio
import logging
import random
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NotFound, TooLarge
from nexum_runtime.server import graph
from nexum_runtime.server.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.store.base import (
    EventRow,
    Execution,
    Reader,
    Store,
    StoreUnavailable,
    Task,
    Transaction,
    Workflow,
)

T = TypeVar("T")

RETRY_DELAY_MS_MIN = 1_000  # doubled with every attempt …
RETRY_DELAY_MS_MAX = 30_000  # … up to here
RETRY_JITTER = 0.2  # a retry comes up to this share sooner, so that failures do not return in step
SWEEP_INTERVAL_MS = 250
ABSENCE_MS = 3_000  # a clock that moved this far between two sweeps means that this process was the silent one
ERROR_LIMIT = 64 * 1024  # characters kept of an error's text
NAME_LIMIT = 200  # characters of a workflow id, a version hash or a worker id
EXECUTION_ID = re.compile(r"[A-Za-z0-9._:/@=-]{1,200}")

log = logging.getLogger("nexum.engine")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class StartOrder:
    """A wish to start an execution."""

    workflow_id: str
    version_hash: str  # empty: the version registered last
    input_json: str
    execution_id: str = ""  # empty: the engine makes one up
    max_attempts: int = wire.ATTEMPTS_DEFAULT
    restart: str = ""  # "failed" or "unknown", see wire.RESTART


@dataclass(frozen=True)
class Started:
    execution_id: str
    before: str  # wire.NEW, or the status found


@dataclass(frozen=True)
class Snapshot:
    """An execution with the JSON text of every recorded output."""

    execution: Execution
    outputs: dict[str, str]
    attempts: int

    @property
    def outputs_json(self) -> str:
        """`{node: output}` as one JSON text, made without parsing what is in it."""
        return "{" + ",".join(f"{wire.canonical_json(n)}:{text}" for n, text in self.outputs.items()) + "}"


@dataclass(frozen=True)
class Claimed:
    task: Task
    input_json: str  # {"input": …, "deps": {node: output}}


@dataclass
class _Notices:
    """Whom to wake once a transaction is committed."""

    ended: list[str] = field(default_factory=list)  # execution ids
    ready: set[str] = field(default_factory=set)  # version hashes
    stop: list[Task] = field(default_factory=list)  # attempts whose worker should stop


class Engine:
    """The one owner of a store's state machine.

    `clock` tells epoch milliseconds and `jitter` a number in [0, 1): tests pass their own.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        jitter: Callable[[], float] = random.random,
        max_message_bytes: int = wire.MESSAGE_MIB_DEFAULT * wire.MIB,
    ) -> None:
        self._store = store
        self._clock = clock
        self._jitter = jitter
        self._max_message_bytes = max_message_bytes
        self._graphs: dict[tuple[str, str], graph.Graph] = {}
        self._ended: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._ready: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._stops: defaultdict[str, dict[str, None]] = defaultdict(dict)  # worker id → task ids, oldest first
        self._jobs: set[asyncio.Task[Any]] = set()
        self._last_sweep_ms = clock()
        self._closing = False

    # Workflows

    async def register(self, workflow_id: str, version_hash: str, ir_json: str) -> str:
        """Record one version of a workflow. Returns its compatibility with the version before it, or NEW."""
        _check_name("workflow id", workflow_id)
        _check_name("version hash", version_hash)
        self._check_size("The workflow's IR", ir_json)
        try:
            new = graph.parse(ir_json)
        except graph.GraphError as error:
            raise InvalidRequest(f"Workflow {workflow_id!r} is refused: {error}.") from None

        def work(tx: Transaction, _: _Notices) -> str:
            known = tx.workflow(workflow_id, version_hash)
            if known and graph.parse(known.ir_json) != new:
                raise InvalidRequest(f"Workflow {workflow_id!r}: {version_hash} is registered with other nodes.")
            latest = tx.workflow(workflow_id, "")
            compatibility = graph.compatibility(graph.parse(latest.ir_json), new) if latest else wire.NEW
            if not known:
                tx.add_workflow(Workflow(workflow_id, version_hash, ir_json, compatibility, self._clock()))
            return compatibility

        return await self._commit(work)

    async def workflow_ids(self, version_hash: str) -> list[str]:
        return await self._store.read(lambda reader: reader.workflow_ids(version_hash))

    async def versions(self, workflow_id: str) -> list[Workflow]:
        return await self._store.read(lambda reader: reader.workflows(workflow_id))

    # Executions

    async def start(self, order: StartOrder) -> Started:
        """Start an execution, or find the one that has this id already: same id and same input, same execution."""
        execution_id = order.execution_id or f"exec-{uuid.uuid4()}"
        _check_execution_id(execution_id)
        self._check_size("The input", order.input_json)
        if order.restart not in ("", "failed", "unknown"):
            raise InvalidRequest(f"{wire.RESTART} is {order.restart[:40]!r}; it can be 'failed' or 'unknown'.")
        try:
            wire.parse_json(order.input_json)
        except ValueError as error:
            raise InvalidRequest(f"The input of {execution_id} is not JSON: {error}.") from None

        def work(tx: Transaction, notices: _Notices) -> Started:
            existing = tx.execution(execution_id)
            if existing is None:
                self._start_new(tx, notices, replace(order, execution_id=execution_id))
                return Started(execution_id, wire.NEW)
            _check_same_call(existing, order)
            if _may_restart(existing, order.restart):
                self._restart(tx, notices, existing)
            return Started(execution_id, existing.status)

        return await self._commit(work)

    def _start_new(self, tx: Transaction, notices: _Notices, order: StartOrder) -> None:
        workflow = tx.workflow(order.workflow_id, order.version_hash)
        if workflow is None:
            version = f" of version {order.version_hash}" if order.version_hash else ""
            raise NotFound(f"No workflow {order.workflow_id!r}{version} is registered.")
        now_ms = self._clock()
        execution = Execution(
            execution_id=order.execution_id,
            workflow_id=workflow.workflow_id,
            version_hash=workflow.version_hash,
            status=ExecutionStatus.RUNNING,
            input_json=order.input_json,
            max_attempts=order.max_attempts,
            error=None,
            error_code=None,
            created_at_ms=now_ms,
            ended_at_ms=None,
        )
        tx.add_execution(execution)
        tx.add_event(execution.execution_id, now_ms, Event.EXECUTION_STARTED)
        self._schedule(tx, notices, execution)

    def _restart(self, tx: Transaction, notices: _Notices, execution: Execution) -> None:
        """Run a FAILED or CANCELLED execution again: what is recorded stays, what is not gets new attempts."""
        now_ms = self._clock()
        tx.move_execution(execution.execution_id, ExecutionStatus.RUNNING)
        tx.add_event(execution.execution_id, now_ms, Event.EXECUTION_RESTARTED)
        for task in tx.tasks(execution.execution_id):
            if task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
                limit = task.attempt + execution.max_attempts
                tx.move_task(task.task_key, TaskStatus.READY, available_at_ms=now_ms, attempt_limit=limit)
        notices.ready.add(execution.version_hash)
        self._schedule(tx, notices, execution)

    async def snapshot(self, execution_id: str, wait_ms: int = 0) -> Snapshot:
        """The execution as it is; with `wait_ms`, as soon as it has ended or when that time is up."""
        _check_execution_id(execution_id)

        async def now() -> Snapshot:
            return await self._store.read(lambda reader: _snapshot(reader, execution_id))

        async def ended() -> Snapshot | None:
            found = await now()
            return found if found.execution.status != ExecutionStatus.RUNNING else None

        return await self._wait(self._ended, execution_id, ended, wait_ms) or await now()

    async def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        """The newest first."""
        if prefix:
            _check_execution_id(prefix)
        return await self._store.read(lambda reader: reader.executions(workflow_id, status, prefix, limit))

    async def history(self, execution_id: str) -> tuple[Snapshot, list[EventRow]]:
        """An execution and its events, in the order they happened."""
        _check_execution_id(execution_id)
        return await self._store.read(lambda reader: (_snapshot(reader, execution_id), reader.events(execution_id)))

    async def cancel(self, execution_id: str) -> str:
        """Cancel a RUNNING execution and all its open tasks. Returns what came of it, in words."""
        _check_execution_id(execution_id)

        def work(tx: Transaction, notices: _Notices) -> str:
            execution = tx.execution(execution_id)
            if execution is None:
                raise NotFound(f"No execution {execution_id!r} is known.")
            if execution.status != ExecutionStatus.RUNNING:
                return f"Execution {execution_id} is {execution.status} already; nothing was changed."
            for task in tx.tasks(execution_id):
                if task.status == TaskStatus.RUNNING:
                    notices.stop.append(task)
                tx.move_task(task.task_key, TaskStatus.CANCELLED)
            self._end(
                tx,
                notices,
                execution,
                ExecutionStatus.CANCELLED,
                "The execution was cancelled.",
                ErrorCode.CANCELLED,
            )
            return "Execution cancelled"

        return await self._commit(work)

    # Tasks

    async def poll(
        self, worker_id: str, version_hash: str, workflow_ids: list[str], lease_ms: int, wait_ms: int = 0
    ) -> Claimed | None:
        """Claim the READY task that was scheduled first, waiting up to `wait_ms` for one."""
        _check_name("worker id", worker_id)
        if self._closing:
            return None

        def work(tx: Transaction, _: _Notices) -> Claimed | None:
            now_ms = self._clock()
            task = tx.claim(version_hash, workflow_ids, worker_id, lease_ms, now_ms)
            if task is None:
                return None
            data = {"worker": worker_id, "lease_ms": lease_ms}
            tx.add_event(task.execution_id, now_ms, Event.ATTEMPT_STARTED, task.node_id, task.attempt, data)
            return Claimed(task, self._task_input(tx, task))

        async def look() -> Claimed | None:
            claim = asyncio.ensure_future(self._commit(work))
            try:
                return await asyncio.shield(claim)
            except asyncio.CancelledError:  # the worker left before it could be told what it had claimed
                self._spawn(self._give_back(claim))
                raise

        return await self._wait(self._ready, version_hash, look, wait_ms)

    async def _give_back(self, claim: "asyncio.Future[Claimed | None]") -> None:
        """Undo a claim whose worker never learned of it: the attempt did not happen and is not counted."""
        claimed = await claim
        if claimed is None:
            return
        task = claimed.task

        def work(tx: Transaction, notices: _Notices) -> None:
            if tx.task(task.task_key) != task:  # cancelled meanwhile
                return
            tx.move_task(task.task_key, TaskStatus.READY, attempt_limit=task.attempt_limit + 1)
            data = {"worker": task.worker_id}
            tx.add_event(task.execution_id, self._clock(), Event.ATTEMPT_RETURNED, task.node_id, task.attempt, data)
            notices.ready.add(task.version_hash)

        await self._commit(work)

    def _task_input(self, tx: Transaction, task: Task) -> str:
        execution = tx.execution(task.execution_id)
        assert execution is not None, "a task belongs to an execution"
        dependencies = self._graph(tx, execution).nodes[task.node_id].dependencies
        outputs = tx.outputs(task.execution_id) if dependencies else {}
        deps = ",".join(f"{wire.canonical_json(node_id)}:{outputs[node_id]}" for node_id in dependencies)
        return f'{{"input":{execution.input_json},"deps":{{{deps}}}}}'

    async def complete(self, task_id: str, output_json: str) -> str:
        """Record a task's result. The first word wins; returns "" if it was this one, else why nothing changed."""
        size_bytes = len(output_json.encode())
        if size_bytes > self._max_message_bytes:
            error = (
                f"The result is {wire.size_text(size_bytes)}; "
                f"the limit is {wire.size_text(self._max_message_bytes)} (nexum dev --max-message-mib)."
            )
            await self.fail(task_id, error, retryable=False)
            return f"{error} The task has failed."
        try:
            wire.parse_json(output_json)
        except ValueError as error:
            raise InvalidRequest(f"The output of task {task_id[:80]!r} is not JSON: {error}.") from None

        def work(tx: Transaction, notices: _Notices) -> str:
            task, attempt, execution = _find_attempt(tx, task_id)
            if task.status == TaskStatus.DONE:
                return f"Node {task.node_id} was completed already; this result was not recorded."
            unknown = execution.error_code == ErrorCode.OUTCOME_UNKNOWN
            if task.status == TaskStatus.CANCELLED or (task.status == TaskStatus.FAILED and not unknown):
                return f"Execution {execution.execution_id} is {execution.status}; this result was not recorded."
            if task.status == TaskStatus.RUNNING and attempt != task.attempt:
                notices.stop.append(task)
            late = task.status != TaskStatus.RUNNING or attempt != task.attempt
            tx.move_task(task.task_key, TaskStatus.DONE, output_json=output_json)
            data = {"output_bytes": size_bytes} | ({"late": True} if late else {})
            tx.add_event(execution.execution_id, self._clock(), Event.TASK_COMPLETED, task.node_id, attempt, data)
            self._after_completion(tx, notices, execution)
            return ""

        message = await self._commit(work)
        self._forget_stop(task_id)
        if message:
            log.info("%s: %s", task_id, message)
        return message

    def _after_completion(self, tx: Transaction, notices: _Notices, execution: Execution) -> None:
        if execution.status == ExecutionStatus.FAILED:  # a late word; does it settle what was unknown?
            unsettled = any(task.status == TaskStatus.FAILED for task in tx.tasks(execution.execution_id))
            if execution.error_code != ErrorCode.OUTCOME_UNKNOWN or unsettled:
                return
            self._restart(tx, notices, execution)
        elif execution.status == ExecutionStatus.RUNNING:
            self._schedule(tx, notices, execution)

    async def fail(self, task_id: str, error: str, *, retryable: bool = True, interrupted: bool = False) -> str:
        """End an attempt without a result: it failed, or it was `interrupted` and its outcome is not known."""
        error = error[:ERROR_LIMIT]

        def work(tx: Transaction, notices: _Notices) -> str:
            task, attempt, execution = _find_attempt(tx, task_id)
            if task.status != TaskStatus.RUNNING or attempt != task.attempt:
                return f"Attempt {attempt} of node {task.node_id} is over; nothing was changed."
            if interrupted:
                self._lose_attempt(tx, notices, task, error)
                return ""
            # nexum-py promises that COMPUTE, a pure function, is not retried when it fails
            again = retryable and task.node_type != "COMPUTE" and self._may_try_again(task, execution)
            now_ms = self._clock()
            data: dict[str, Any] = {"worker": task.worker_id, "error": error}
            if again:
                data["retry_at_ms"] = now_ms + self._retry_delay_ms(task.attempt)
            tx.add_event(execution.execution_id, now_ms, Event.ATTEMPT_FAILED, task.node_id, task.attempt, data)
            if again:
                tx.move_task(task.task_key, TaskStatus.READY, available_at_ms=data["retry_at_ms"])
            else:
                self._fail_task(tx, notices, task, error, ErrorCode.TOOL_ERROR)
            return ""

        message = await self._commit(work)
        self._forget_stop(task_id)
        return message

    async def heartbeat(self, worker_id: str) -> list[str]:
        """Renew every lease of this worker. Returns the ids of the attempts it should stop."""
        _check_name("worker id", worker_id)
        await self._commit(lambda tx, _: tx.renew_leases(worker_id, self._clock()))
        return list(self._stops.get(worker_id, ()))

    # Time

    async def renew_all_leases(self) -> None:
        """After this server was away no worker can have been heard, so each gets a whole lease to report."""
        await self._commit(lambda tx, _: tx.renew_all_leases(self._clock()))

    async def run_sweeper(self) -> None:
        """Sweep until cancelled. A store that is unavailable is tried again: its disk may have space by then."""
        while True:
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("%s", error)
            await asyncio.sleep(SWEEP_INTERVAL_MS / 1000)

    async def sweep(self) -> None:
        """Give up attempts whose lease has expired, and wake the polls that wait for a retry's time to come."""
        now_ms = self._clock()
        absent, self._last_sweep_ms = now_ms - self._last_sweep_ms > ABSENCE_MS, now_ms
        if absent:
            await self.renew_all_leases()
        elif await self._store.read(lambda reader: reader.expired(now_ms)):
            await self._commit(self._expire)
        for version_hash in list(self._ready):
            self._wake(self._ready, version_hash)

    def _expire(self, tx: Transaction, notices: _Notices) -> None:
        for task in tx.expired(self._clock()):
            notices.stop.append(task)
            assert task.lease_ms is not None, "a RUNNING task has a lease"
            seconds = task.lease_ms / 1000
            self._lose_attempt(tx, notices, task, f"Worker {task.worker_id} was silent for {seconds:g} s.")

    def _lose_attempt(self, tx: Transaction, notices: _Notices, task: Task, reason: str) -> None:
        """An attempt ended without a word on its outcome: another one begins at once, if one is left."""
        now_ms = self._clock()
        execution = tx.execution(task.execution_id)
        assert execution is not None, "a task belongs to an execution"
        data = {"worker": task.worker_id, "error": reason}
        tx.add_event(task.execution_id, now_ms, Event.LEASE_EXPIRED, task.node_id, task.attempt, data)
        if self._may_try_again(task, execution):
            tx.move_task(task.task_key, TaskStatus.READY, available_at_ms=now_ms)
            notices.ready.add(task.version_hash)
            return
        attempts = f"{reason} That was attempt {task.attempt}, the last one"
        if task.node_type == "COMPUTE":
            self._fail_task(tx, notices, task, f"{attempts}.", ErrorCode.TOOL_ERROR)
        else:
            error = f"{attempts}: the effect may or may not have happened."
            self._fail_task(tx, notices, task, error, ErrorCode.OUTCOME_UNKNOWN)

    # Common steps

    def _may_try_again(self, task: Task, execution: Execution) -> bool:
        return task.attempt < task.attempt_limit and execution.status == ExecutionStatus.RUNNING

    def _retry_delay_ms(self, attempt: int) -> int:
        delay_ms = min(RETRY_DELAY_MS_MIN * 2 ** (attempt - 1), RETRY_DELAY_MS_MAX)
        return int(delay_ms * (1 - RETRY_JITTER * self._jitter()))

    def _fail_task(self, tx: Transaction, notices: _Notices, task: Task, error: str, error_code: ErrorCode) -> None:
        """Fail a task for good, and its execution with it. Tasks that run are let run: their results are kept."""
        tx.move_task(task.task_key, TaskStatus.FAILED)
        execution = tx.execution(task.execution_id)
        if execution is None or execution.status != ExecutionStatus.RUNNING:
            return
        for other in tx.tasks(task.execution_id):
            if other.status == TaskStatus.READY:
                tx.move_task(other.task_key, TaskStatus.CANCELLED)
        self._end(tx, notices, execution, ExecutionStatus.FAILED, error, error_code)

    def _schedule(self, tx: Transaction, notices: _Notices, execution: Execution) -> None:
        """Add a task for every node that has become ready; when all nodes are done, so is the execution."""
        nodes = self._graph(tx, execution)
        tasks = tx.tasks(execution.execution_id)
        done = {task.node_id for task in tasks if task.status == TaskStatus.DONE}
        if len(done) == len(nodes.nodes):
            self._end(tx, notices, execution, ExecutionStatus.COMPLETED)
            return
        now_ms = self._clock()
        for node in nodes.ready(done, {task.node_id for task in tasks}):
            tx.add_task(
                Task(
                    task_key=uuid.uuid4().hex,
                    execution_id=execution.execution_id,
                    workflow_id=execution.workflow_id,
                    version_hash=execution.version_hash,
                    node_id=node.id,
                    node_type=node.type,
                    status=TaskStatus.READY,
                    attempt=0,
                    attempt_limit=execution.max_attempts,
                    available_at_ms=now_ms,
                    worker_id=None,
                    lease_ms=None,
                    lease_expires_at_ms=None,
                )
            )
            notices.ready.add(execution.version_hash)

    def _end(
        self,
        tx: Transaction,
        notices: _Notices,
        execution: Execution,
        status: ExecutionStatus,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> None:
        now_ms = self._clock()
        event = {
            ExecutionStatus.COMPLETED: Event.EXECUTION_COMPLETED,
            ExecutionStatus.FAILED: Event.EXECUTION_FAILED,
            ExecutionStatus.CANCELLED: Event.EXECUTION_CANCELLED,
        }[status]
        tx.move_execution(execution.execution_id, status, error=error, error_code=error_code, ended_at_ms=now_ms)
        data = {"error": error, "error_code": error_code} if error else {}
        tx.add_event(execution.execution_id, now_ms, event, data=data)
        notices.ended.append(execution.execution_id)

    def _graph(self, tx: Transaction, execution: Execution) -> graph.Graph:
        key = (execution.workflow_id, execution.version_hash)
        if key not in self._graphs:
            workflow = tx.workflow(*key)
            assert workflow is not None, "an execution belongs to a registered workflow"
            self._graphs[key] = graph.parse(workflow.ir_json)
        return self._graphs[key]

    def _check_size(self, what: str, text: str) -> None:
        size_bytes = len(text.encode())
        if size_bytes > self._max_message_bytes:
            raise TooLarge(
                f"{what} is {wire.size_text(size_bytes)}; "
                f"the limit is {wire.size_text(self._max_message_bytes)} (nexum dev --max-message-mib)."
            )

    # Commits and waits

    async def _commit(self, work: Callable[[Transaction, _Notices], T]) -> T:
        """Run one transaction and wake whoever waits for what it did, even if the caller has gone meanwhile."""

        async def run() -> T:
            notices = _Notices()
            result = await self._store.write(lambda tx: work(tx, notices))
            for execution_id in notices.ended:
                self._wake(self._ended, execution_id)
            for version_hash in notices.ready:
                self._wake(self._ready, version_hash)
            for task in notices.stop:
                if task.worker_id is not None:
                    self._stops[task.worker_id][task.task_id] = None
            return result

        return await asyncio.shield(self._spawn(run()))

    def _spawn(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(job)
        self._jobs.add(task)  # the event loop alone would not keep it alive
        task.add_done_callback(self._jobs.discard)
        return task

    async def _wait(
        self,
        waiters: defaultdict[str, set[asyncio.Event]],
        key: str,
        look: Callable[[], Coroutine[Any, Any, T | None]],
        wait_ms: int,
    ) -> T | None:
        """`look()` until it finds something: now, whenever `key` is woken, and not beyond `wait_ms`."""
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        woken = asyncio.Event()
        waiters[key].add(woken)
        try:
            while True:
                woken.clear()  # before looking, so that nothing that happens from here on is missed
                found = await look()
                remaining = deadline - asyncio.get_running_loop().time()
                if found is not None or remaining <= 0 or self._closing:
                    return found
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), remaining)
        finally:
            waiters[key].discard(woken)
            if not waiters[key]:
                del waiters[key]

    def _wake(self, waiters: defaultdict[str, set[asyncio.Event]], key: str) -> None:
        for woken in waiters.get(key, ()):
            woken.set()

    def _forget_stop(self, task_id: str) -> None:
        for worker_id, task_ids in list(self._stops.items()):
            task_ids.pop(task_id, None)
            if not task_ids:
                del self._stops[worker_id]

    async def close(self) -> None:
        """Let every waiting call answer with what there is, and finish what has begun."""
        self._closing = True
        for waiters in (self._ended, self._ready):
            for key in list(waiters):
                self._wake(waiters, key)
        if self._jobs:
            await asyncio.wait(self._jobs)


def _snapshot(reader: Reader, execution_id: str) -> Snapshot:
    execution = reader.execution(execution_id)
    if execution is None:
        raise NotFound(f"No execution {execution_id[:80]!r} is known.")
    attempts = max((task.attempt for task in reader.tasks(execution_id)), default=0)
    return Snapshot(execution, reader.outputs(execution_id), attempts)


def _find_attempt(tx: Transaction, task_id: str) -> tuple[Task, int, Execution]:
    """The task and the attempt that `task_id` names, and their execution. Raises NotFound."""
    task_key, _, number = task_id.rpartition(".")
    task = tx.task(task_key) if number.isascii() and number.isdecimal() and len(number) < 10 else None
    if task is None or not 1 <= int(number) <= task.attempt:
        raise NotFound(f"No task {task_id[:80]!r} is known.")
    execution = tx.execution(task.execution_id)
    assert execution is not None, "a task belongs to an execution"
    return task, int(number), execution


def _may_restart(execution: Execution, restart: str) -> bool:
    if execution.status not in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
        return False
    unknown = execution.error_code == ErrorCode.OUTCOME_UNKNOWN
    return restart == "unknown" or (restart == "failed" and not unknown)


def _check_same_call(existing: Execution, order: StartOrder) -> None:
    if existing.workflow_id != order.workflow_id:
        raise InvalidRequest(
            f"Execution {existing.execution_id} belongs to workflow {existing.workflow_id!r}, "
            f"not to {order.workflow_id[:80]!r}."
        )
    if existing.input_json == order.input_json:
        return
    before, now = (wire.canonical_json(wire.parse_json(text)) for text in (existing.input_json, order.input_json))
    if before != now:
        raise InvalidRequest(
            f"Execution {existing.execution_id} was started with the input {_short(before)}, "
            f"not with {_short(now)}. Choose another id."
        )


def _check_execution_id(execution_id: str) -> None:
    if not EXECUTION_ID.fullmatch(execution_id):
        raise InvalidRequest(
            f"The execution id {execution_id[:80]!r} is not 1 to 200 of the characters A-Z a-z 0-9 . _ : / @ = -"
        )


def _check_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= NAME_LIMIT:
        raise InvalidRequest(f"The {what} {name[:40]!r} must be 1 to {NAME_LIMIT} characters long.")


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"
