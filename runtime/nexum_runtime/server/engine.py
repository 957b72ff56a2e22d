"""Start, claim, complete, fail, cancel, sweep: checks what is asked, commits it, and wakes whoever waits for it.

What the rules are is in lifecycle.py. Every change is one transaction of the store; whoever waits (for an
execution's end, for a task to become ready) is woken after the commit, never before.
"""

import asyncio
import logging
import random
import re
import time
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NexumError, NotFound
from nexum_runtime.server import graph
from nexum_runtime.server.lifecycle import (
    RETRY_DELAY_MS_MAX,
    Claimed,
    Ending,
    Lifecycle,
    Notices,
    Resolution,
    Started,
    StartOrder,
    Taker,
    Verdict,
    is_current,
    is_wanted,
    not_registered,
    task_key,
    tries,
)
from nexum_runtime.server.states import ExecutionStatus, TaskStatus
from nexum_runtime.server.store.base import (
    Approval,
    EventRow,
    Execution,
    Reader,
    Store,
    StoreUnavailable,
    Transaction,
    Workflow,
)
from nexum_runtime.server.streams import Pool, Stream, Streams, Work
from nexum_runtime.server.workers import Workers
from nexum_runtime.text import MIB

T = TypeVar("T")

SWEEP_INTERVAL_MS = 250
OUTAGE_QUIET_MS = 2_000  # without a failure, before the store is called available again
ABSENCE_MS = 3_000  # a clock that moved this far between two sweeps means that this process was the silent one
STOP_KEPT_MS = 600_000  # how long a worker that has gone quiet is still told what to stop
FAILURE_KEPT_MS = 300_000  # how long it is told that the store failed
STOPS_LIMIT = 10_000  # attempts that workers are still to be told to stop, the latest ones
ERROR_LIMIT = 64 * 1024  # characters kept of an error's text
NAME_LIMIT = 200  # characters of a workflow id, a version hash or a worker id
PRUNE_BATCH = 200  # executions deleted in one transaction, so that pruning holds up nobody
JOURNAL_PART_CHARS = 1_000_000  # about, of outputs in one message of a journal
EXECUTION_ID_LIMIT = 200  # characters
EXECUTION_ID = re.compile(rf"[A-Za-z0-9._:/@=-]{{1,{EXECUTION_ID_LIMIT}}}")

log = logging.getLogger("nexum.engine")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Snapshot(NamedTuple):
    """An execution with the JSON text of every recorded output."""

    execution: Execution
    outputs: dict[str, str]
    attempts: int  # the most that any of its tasks has had
    waits_for: str  # "worker" when none of its tasks runs and one could, "approval" when a person is asked, or ""

    @property
    def outputs_json(self) -> str:
        return _outputs_json(self.outputs)


class Given(NamedTuple):
    """What was claimed for somebody else: `give` it, or `withdraw` what was kept ready for it."""

    claimed: Claimed
    give: Callable[[Claimed], None]
    withdraw: Callable[[], None] = lambda: None


class Waiter(asyncio.Event):
    """Set when there is something to see; `ended` is what, when that is the end of an execution."""

    ended: Snapshot | None = None


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
        max_message_bytes: int = wire.MESSAGE_MIB_DEFAULT * MIB,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self._store = store
        self._clock = clock
        self._lifecycle = Lifecycle(clock, jitter)
        # execution id → who waits for its end, or for a task of it that can be taken
        self._watched: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._ready: defaultdict[str, set[Waiter]] = defaultdict(set)  # version hash → polls that wait
        self._streams = Streams()
        self._backlog: set[Work] = set()  # tasks of these may be READY that no stream had a slot for
        self._present: Counter[str] = Counter()  # worker id → how many calls of Attend it holds open
        self._stops: OrderedDict[str, tuple[str, int]] = OrderedDict()  # task id → worker id, since when
        self._jobs: set[asyncio.Task[Any]] = set()
        self._last_sweep_ms = clock()
        self._deaf = False  # leases could not be renewed since
        self._outage_ms: int | None = None  # when the store last failed; None once that is over
        self.closing = asyncio.Event()  # set when this server stops
        self._failure: tuple[int, str] | None = None  # when and why it last failed
        self._workers = Workers(clock)

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
        return await self._commit(lambda tx, _: self._lifecycle.register(tx, workflow_id, version_hash, ir_json, new))

    async def workflow_ids(self, version_hash: str) -> list[str]:
        return await self._store.read(lambda reader: reader.workflow_ids(version_hash))

    async def versions(self, workflow_id: str) -> list[Workflow]:
        return await self._store.read(lambda reader: reader.workflows(workflow_id))

    # Executions

    async def start(self, order: StartOrder) -> Started:
        """Start an execution, or find the one that has this id: same id and same input, same execution."""
        order = self._checked(order)
        started, _ = await self._claiming(self._spawn(self._start(order)), lambda found: found[0].claimed)
        return started

    async def execute(self, order: StartOrder, wait_ms: int) -> tuple[Started, Snapshot]:
        """Start, and wait up to `wait_ms` for the end.

        Who claims gets its task at once, and else waits also for a task of this execution that it could claim.
        """
        order = self._checked(order)
        with self._waiter(self._watched, order.execution_id) as woken:
            if order.claim:
                starting = self._spawn(self._start(order))
                started, found = await self._claiming(starting, lambda found: found[0].claimed)
            else:
                started, found = await self._start(order, patient=True)
                found = found or woken.ended  # by the commit that its start shares
            if found is None:
                found = await self._end_of(order.execution_id, woken, wait_ms, or_ready=bool(order.claim))
        return started, found

    async def execute_here(self, order: StartOrder, wait_ms: int) -> AsyncGenerator[tuple[Started, Snapshot], None]:
        """`execute`, and `attend` in one for who gets the task: from its claim on there is no moment without.

        What may be done again can begin before its claim is synced. Should that be lost, no one has its task, and its
        record is refused: whoever has begun it claims it anew.
        """
        order = self._checked(order)
        told: asyncio.Future[tuple[Started, Snapshot | None]] = asyncio.get_running_loop().create_future()
        with self._waiter(self._watched, order.execution_id) as woken:
            starting = self._spawn(self._start(order, patient=True, told=told))
            starting.add_done_callback(partial(_pass_on, told))
            started, found = await self._claiming(starting, lambda found: found[0].claimed, told)
            if found is None:
                found = await self._end_of(order.execution_id, woken, wait_ms, or_ready=True)
        if started.claimed is None:
            yield started, found
            return
        async with aclosing(self.attend(order.claim, starting)) as attending:
            async for _ in attending:
                yield started, found

    async def _start(
        self,
        order: StartOrder,
        *,
        patient: bool = False,
        told: "asyncio.Future[tuple[Started, Snapshot | None]] | None" = None,
    ) -> tuple[Started, Snapshot | None]:
        """Start or find it, and tell how it is if there is nothing to wait for; to `told` as soon as may be."""
        stream = None if order.claim else self._streams.reserve((order.workflow_id, order.version_hash))
        given: list[Given] = []

        def work(tx: Transaction, notices: Notices) -> tuple[Started, Snapshot | None]:
            started = self._lifecycle.start(tx, notices, order, stream.taker if stream else None)
            if stream is not None and started.taken is not None:
                given.append(self._given(stream, started.taken))
            if started.before == wire.NEW:
                found = _begun(started.claimed) if started.claimed else None
            else:
                found = _snapshot(tx, order.execution_id, self._clock())
            waits = found is None or (found.execution.status == ExecutionStatus.RUNNING and started.claimed is None)
            result = started, None if waits else found
            if started.claimed is not None and told is not None:
                given.append(Given(started.claimed, partial(_tell, told, result)))
            return result

        try:
            result = await self._begin_commit(work, given=given if stream or told else None, patient=patient)
        finally:
            if stream is not None and not given:
                stream.pool.free += 1
                self._fill_slots()  # what has become ready meanwhile found no slot
        crash_point("start-committed")
        return result

    def _checked(self, order: StartOrder) -> StartOrder:
        if not order.execution_id:
            order = order._replace(execution_id=f"exec-{uuid.uuid4()}")
        _check_execution_id(order.execution_id)
        self._check_size("The input", order.input_json)
        if order.restart not in ("", "failed", "unknown"):
            raise InvalidRequest(f"{wire.RESTART} is {order.restart[:40]!r}; it can be 'failed' or 'unknown'.")
        if order.effect not in wire.EFFECTS:
            raise InvalidRequest(f"{wire.EFFECT} is {order.effect[:40]!r}; it can be {', '.join(wire.EFFECTS)}.")
        if order.effect == wire.ONCE and order.max_attempts != 1:
            raise InvalidRequest(f"An effect that happens once has one attempt, not {order.max_attempts}.")
        if order.claim:
            _check_name("worker id", order.claim)
        _check_json(f"The input of {order.execution_id}", order.input_json)
        return order

    async def snapshot(self, execution_id: str, wait_ms: int = 0, *, or_ready: bool = False) -> Snapshot:
        """The execution as it is; with `wait_ms`, as soon as it has ended or when that time is up.

        With `or_ready` also as soon as no task of it runs, and one could.
        """
        _check_execution_id(execution_id)
        with self._waiter(self._watched, execution_id) as woken:
            found = await self._read_snapshot(execution_id)
            if _is_over(found, or_ready) or not wait_ms:
                return found
            return await self._end_of(execution_id, woken, wait_ms, or_ready)

    async def _read_snapshot(self, execution_id: str) -> Snapshot:
        return await self._store.read(lambda reader: _snapshot(reader, execution_id, self._clock()))

    async def _end_of(self, execution_id: str, woken: Waiter, wait_ms: int, or_ready: bool) -> Snapshot:
        """The execution as soon as it is over, or as it is when the time is up."""

        async def look() -> Snapshot | None:
            found = woken.ended or await self._read_snapshot(execution_id)
            return found if _is_over(found, or_ready) else None

        return await self._next(woken, look, wait_ms) or await self._read_snapshot(execution_id)

    async def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        """The newest first; an empty filter lets all pass."""
        if prefix:
            _check_execution_id(prefix)
        return await self._store.read(lambda reader: reader.executions(workflow_id, status, prefix, limit))

    async def history(self, execution_id: str) -> tuple[Snapshot, list[EventRow]]:
        """An execution and its events, in the order they happened."""
        _check_execution_id(execution_id)
        return await self._store.read(
            lambda reader: (_snapshot(reader, execution_id, self._clock()), reader.events(execution_id))
        )

    async def journal(self, prefix: str) -> AsyncGenerator[str, None]:
        """What the COMPLETED executions under a prefix have recorded, `{execution_id: {node: output}}`, in parts."""
        _check_execution_id(prefix)
        after = ""

        def part(reader: Reader) -> tuple[dict[str, dict[str, str]], str]:
            return reader.journal(prefix, after, JOURNAL_PART_CHARS)

        while True:
            outputs, after = await self._store.read(part)
            if not outputs:
                return
            named = (f"{wire.canonical_json(id)}:{_outputs_json(each)}" for id, each in outputs.items())
            yield f"{{{','.join(named)}}}"

    async def cancel(self, execution_id: str) -> str:
        """Cancel a RUNNING execution and all its open tasks. Returns what came of it, in words."""
        _check_execution_id(execution_id)
        return await self._commit(lambda tx, notices: self._lifecycle.cancel(tx, notices, execution_id))

    async def resolve(self, execution_id: str, node_id: str, word: Resolution) -> str:
        """Take a person's word on an execution that ended without a result. Returns what came of it, in words."""
        _check_execution_id(execution_id)
        if word.kind not in ("result", "failed", "retry"):
            raise InvalidRequest(f"{wire.RESOLUTION} is {word.kind[:40]!r}; it can be result, failed or retry.")
        if word.kind == "result":
            self._check_size("The result", word.text)
            _check_json(f"The result of {execution_id}", word.text)
        if word.kind == "failed" and not word.text.strip():
            raise InvalidRequest(f"Say why {execution_id} failed: the reason is empty.")
        word = replace(word, text=word.text if word.kind == "result" else word.text[:ERROR_LIMIT])
        return await self._commit(lambda tx, notices: self._lifecycle.resolve(tx, notices, execution_id, node_id, word))

    async def approvals(self, limit: int) -> list[Approval]:
        """What waits for a person's yes, the longest first."""
        return await self._store.read(lambda reader: reader.approvals(limit))

    async def answer(self, execution_id: str, node_id: str, verdict: Verdict) -> str:
        """Take a person's yes or no to an approval; the first word wins. Returns what came of it, in words."""
        _check_execution_id(execution_id)
        if verdict.by:
            _check_name("approver", verdict.by)
        verdict = replace(verdict, text=verdict.text[:ERROR_LIMIT])
        return await self._commit(
            lambda tx, notices: self._lifecycle.answer(tx, notices, execution_id, node_id, verdict)
        )

    async def prune(self, prefix: str, older_than_ms: int, *, dry_run: bool) -> tuple[int, int]:
        """Delete executions that ended `older_than_ms` ago or earlier. Returns how many, and the bytes given back.

        What runs is not touched, nor what waits for a person's word: an outcome that is unknown.
        """
        if prefix:
            _check_execution_id(prefix)
        before_ms, after_seq, count = self._clock() - older_than_ms, 0, 0

        def batch(reader: Reader) -> list[tuple[int, str]]:
            return reader.ended_before(before_ms, prefix, after_seq, PRUNE_BATCH)

        def delete(tx: Transaction, _: Notices) -> list[tuple[int, str]]:
            ended = batch(tx)
            for _seq, execution_id in ended:
                tx.delete_execution(execution_id)
            return ended

        while ended := await (self._store.read(batch) if dry_run else self._commit(delete)):
            after_seq, count = ended[-1][0], count + len(ended)
        return count, 0 if dry_run else await self._store.compact()

    # Tasks

    async def poll(
        self, worker_id: str, version_hash: str, workflow_ids: list[str], lease_ms: int, wait_ms: int = 0
    ) -> Claimed | None:
        """Claim the READY task that was scheduled first, waiting up to `wait_ms` for one."""
        _check_name("worker id", worker_id)
        _check_name("version hash", version_hash)
        if self.closing.is_set():
            return None

        async def look() -> Claimed | None:
            claiming = self._commit(
                lambda tx, _: self._lifecycle.claim(tx, version_hash, workflow_ids, worker_id, lease_ms)
            )
            return await self._claiming(self._spawn(claiming), lambda claimed: claimed)

        asking = self._workers.asking(worker_id, version_hash, workflow_ids)
        with asking, self._waiter(self._ready, version_hash) as woken:
            return await look() or await self._next(woken, look, wait_ms)

    async def _claiming(
        self,
        job: "asyncio.Task[T]",
        claimed: Callable[[T], Claimed | None],
        told: "asyncio.Future[T] | None" = None,
    ) -> T:
        """What `job` returns, or `told` is before. If its caller leaves before it could be told what it has claimed,
        that is undone."""
        try:
            return await (told or asyncio.shield(job))
        except asyncio.CancelledError:
            self._spawn(self._give_back(job, claimed)).add_done_callback(_for_nobody)
            raise

    async def _give_back(self, job: "asyncio.Task[T]", claimed: Callable[[T], Claimed | None]) -> None:
        with suppress(StoreUnavailable):  # nothing was claimed, or its lease will end
            found = claimed(await job)
            if found is not None:
                await self._commit(lambda tx, notices: self._lifecycle.give_back(tx, notices, found.task))

    async def complete(self, task_id: str, output_json: str) -> str:
        """Record a task's result. The first word wins; returns "" if it was this one, else why nothing changed.

        A result over the limit fails the task instead.
        """
        return await self.record(task_id, output_json)

    def record(self, task_id: str, output_json: str) -> asyncio.Future[str]:
        """`complete`, begun at once: what is begun at the same moment is committed together."""
        try:
            self._check_size("The result", output_json)
            _check_json(f"The output of task {task_id[:80]!r}", output_json)
        except LimitExceeded as error:
            return self._spawn(self._fail_too_large(task_id, str(error)))
        except InvalidRequest as error:
            refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

        def work(tx: Transaction, notices: Notices) -> str:
            return self._lifecycle.complete(tx, notices, task_id, output_json)

        recording = self._begin_commit(work)
        recording.add_done_callback(partial(self._recorded, task_id))
        return recording

    def _recorded(self, task_id: str, recording: asyncio.Future[str]) -> None:
        with suppress(Exception, asyncio.CancelledError), self._last_word(task_id):  # told to who waits
            if message := recording.result():
                log.info("%s: %s", task_id, message)

    async def _fail_too_large(self, task_id: str, error: str) -> str:
        message = await self.fail(task_id, error, retryable=False, unknown=True)
        return f"{error} {message or 'The task has failed.'}"

    async def fail(
        self,
        task_id: str,
        error: str,
        *,
        retryable: bool = True,
        interrupted: bool = False,
        unknown: bool = False,
        begun: bool = True,
    ) -> str:
        """End an attempt without a result: it failed, or it was `interrupted` by the end of its worker.

        With `unknown` it failed in a way that leaves open whether its effect has happened, without `begun` before any
        of it could happen.
        """
        error = error[:ERROR_LIMIT]
        flags = {"retryable": retryable, "interrupted": interrupted, "unknown": unknown, "begun": begun}
        with self._last_word(task_id):
            return await self._commit(lambda tx, notices: self._lifecycle.fail(tx, notices, task_id, error, **flags))

    async def heartbeat(self, worker_id: str, held: list[str] | None = None) -> list[str]:
        """Renew the leases of the attempts that this worker holds. Returns the ids of those it should stop.

        `held` are their task ids. A worker that does not say what it holds has every lease of its renewed, also that
        of a claim whose answer never reached it.
        """
        _check_name("worker id", worker_id)
        self._workers.heard(worker_id)
        if self._streams.hear(worker_id):
            self._fill_slots()
        if held is None:
            await self._commit(lambda tx, _: tx.renew_leases(worker_id, self._clock()), renews=True)
            return [task_id for task_id, (told, _) in self._stops.items() if told == worker_id]

        def work(tx: Transaction, _: Notices) -> list[str]:
            attempts = [(task_id, tx.task(task_key(task_id)), wire.attempt_number(task_id)) for task_id in held]
            own = [task_id for task_id, task, attempt in attempts if is_current(task, attempt)]
            tx.renew_leases(worker_id, self._clock(), [task_key(task_id) for task_id in own])
            return [task_id for task_id, task, attempt in attempts if not is_wanted(task, attempt)]

        stops = await self._commit(work, renews=True)
        for task_id in stops:  # no more is heard of it
            self._release(task_id)
        return stops

    async def attend(self, worker_id: str, claiming: "asyncio.Future[Any] | None" = None) -> AsyncGenerator[None, None]:
        """Yields once, when whoever is this worker counts as here, and ends with this server.

        When it is closed before that, the worker has gone, and what it held is given up at once, also what it is
        `claiming` at the moment.
        """
        _check_name("worker id", worker_id)
        self._present[worker_id] += 1
        try:
            yield
            await self.closing.wait()
        finally:
            self._present[worker_id] -= 1
            if not self._present[worker_id]:
                del self._present[worker_id]
            if worker_id not in self._present and not self.closing.is_set():
                self._spawn(self._give_up(worker_id, claiming)).add_done_callback(_for_nobody)

    async def _give_up(self, worker_id: str, claiming: "asyncio.Future[Any] | None") -> None:
        if claiming is not None:
            await asyncio.wait([claiming])
        with suppress(StoreUnavailable):  # its leases will end
            if await self._store.read(lambda reader: reader.held(worker_id)):
                await self._commit(lambda tx, notices: self._lifecycle.lose_all(tx, notices, worker_id))

    # Time

    async def restart_clock(self) -> None:
        """While this server was away it could hear no worker, so each gets its whole lease from now."""
        await self._commit(lambda tx, _: tx.restart_clock(self._clock(), RETRY_DELAY_MS_MAX), renews=True)

    async def run_sweeper(self) -> None:
        """Sweep until cancelled. A store that is unavailable is tried again: its disk may have space by then."""
        while True:
            pause_ms = SWEEP_INTERVAL_MS
            try:
                pause_ms = await self.sweep()
            except StoreUnavailable as error:
                self._note_outage(error)
            except Exception:  # without a sweeper no lease would ever end
                log.exception("A sweep failed, and the next one is made all the same.")
            else:
                self._note_end_of_outage()
            await asyncio.sleep(pause_ms / 1000)

    async def sweep(self) -> int:
        """Fire the timers that are due, give up attempts whose lease has expired, and wake the polls that wait for a
        retry's time to come. Returns in how many milliseconds the next sweep is to be.
        """
        now_ms = self._clock()
        self._deaf = self._deaf or abs(now_ms - self._last_sweep_ms) > ABSENCE_MS
        self._last_sweep_ms = now_ms
        if self._deaf:
            self._deaf = False  # until it fails again, be it here
            await self.restart_clock()
        expired, timer_ms = await self._store.read(lambda reader: (reader.expired(now_ms), reader.next_timer()))
        if expired:
            await self._commit(self._lifecycle.expire)
        if timer_ms is not None and timer_ms <= now_ms:
            await self._commit(self._lifecycle.fire)
        for version_hash in list(self._ready):
            self._wake(self._ready, version_hash)
        self._fill_slots(look=True)
        for task_id in [task_id for task_id, (_, since_ms) in self._stops.items() if now_ms - since_ms > STOP_KEPT_MS]:
            del self._stops[task_id]
        return SWEEP_INTERVAL_MS if timer_ms is None else max(0, min(timer_ms - self._clock(), SWEEP_INTERVAL_MS))

    def _note_outage(self, error: StoreUnavailable) -> None:
        """Say it once, however often it is met."""
        if self._outage_ms is None:
            log.warning("%s", error)
        self._outage_ms = self._clock()
        self._failure = (self._outage_ms, str(error))

    def _note_end_of_outage(self) -> None:
        if self._outage_ms is not None and abs(self._clock() - self._outage_ms) > OUTAGE_QUIET_MS:
            self._outage_ms = None
            log.warning("The database can be used again.")

    # What it can tell of itself

    async def inspect(self) -> dict[str, Any]:
        """What `Store.inspect` tells, and `workers`; `database` says besides whether it can be written to:
        `problem` is why not, `failure` what went wrong last with it, in the last minutes, and `failure_ms` how long
        ago."""
        problem = None
        try:
            await self._commit(lambda tx, _: tx.touch())
        except StoreUnavailable as error:
            problem = str(error)
        now_ms = self._clock()
        told = await self._store.inspect(now_ms)
        failed_ms, failure = self._failure or (0, None)
        if now_ms - failed_ms > FAILURE_KEPT_MS:
            failed_ms, failure = 0, None
        told["database"] |= {
            "problem": problem,
            "failure": failure,
            "failure_ms": now_ms - failed_ms if failure else None,
        }
        return told | {"workers": self._workers.seen(told.pop("held", {}))}

    async def measure(self) -> str:
        """Its metrics, in Prometheus' text format. A database that cannot be read leaves its tasks untold."""
        tasks: dict[tuple[str, str], int] = {}
        with suppress(StoreUnavailable):
            tasks = {(status, kind): 0 for kind in graph.NODE_TYPES for status in _open_statuses(kind)}
            tasks |= await self._store.read(lambda reader: reader.count_tasks())
        waiting = {"end": _count(self._watched), "task": _count(self._ready)}
        pools = self._streams.pools()
        slots = {
            "free": sum(max(pool.free, 0) for pool in pools),
            "busy": sum(len(pool.held) for pool in pools),
        }
        return self._store.metrics.text(tasks, waiting, slots)

    async def definition(self, workflow_id: str, version_hash: str) -> Workflow:
        """One version of a workflow, the one registered last when the hash is empty. Raises NotFound."""
        found = await self._store.read(lambda reader: reader.workflow(workflow_id, version_hash))
        if found is None:
            raise not_registered(workflow_id, version_hash)
        return found

    # Commits and waits

    async def _commit(self, work: Callable[[Transaction, Notices], T], *, renews: bool = False) -> T:
        return await self._begin_commit(work, renews=renews)

    def _begin_commit(
        self,
        work: Callable[[Transaction, Notices], T],
        *,
        given: "Sequence[Given] | None" = None,
        patient: bool = False,
        renews: bool = False,
    ) -> asyncio.Future[T]:
        """Run one transaction and wake whoever waits for what it did, even if the caller has gone meanwhile.

        `work` adds to `given` what it claims for others. Who is `patient` waits for the end of that, not for this.

        When one that `renews` leases fails, none expires until all could be renewed. Any other is no such reason: a
        result that the disk has no room for is sent again and again, and would keep the tasks of dead workers.
        """
        notices = Notices()
        ended: dict[str, Snapshot] = {}

        def run(tx: Transaction) -> T:
            result = work(tx, notices)
            for execution_id in notices.ended.keys() & self._watched.keys():
                ended[execution_id] = _ended(tx, execution_id, notices.ended[execution_id], self._clock())
            return result

        given_later: list[Given] = []
        begun = False

        def executed() -> bool:
            """What may be done again need not wait for the disk: should this be lost, it is begun anew."""
            nonlocal begun
            begun = True
            for each in given or ():
                if each.claimed.is_once or self._outage_ms is not None:
                    given_later.append(each)
                else:
                    each.give(each.claimed)
            return patient and bool(given) and not given_later

        def settled(error: BaseException | None) -> None:
            if isinstance(error, StoreUnavailable):
                self._note_outage(error)
                self._deaf = self._deaf or renews
            if error is not None:
                for each in given_later if begun else given or ():
                    each.withdraw()
                return
            for each in given_later:
                each.give(each.claimed)
            self._follow(notices, ended)

        return self._store.begin_write(run, executed=None if given is None else executed, settled=settled)

    def _follow(self, notices: Notices, ended: dict[str, Snapshot]) -> None:
        """Wake whoever waits for what has been committed."""
        for execution_id in notices.ended:
            self._wake(self._watched, execution_id, ended.get(execution_id))
        for workflow_id, version_hash, execution_id in notices.ready:
            self._backlog.add((workflow_id, version_hash))
            self._wake(self._ready, version_hash)
            self._wake(self._watched, execution_id)
        for task in notices.stop:
            self._streams.release(task.task_id)
            if task.worker_id is not None:
                self._stops[task.task_id] = (task.worker_id, self._clock())
                if len(self._stops) > STOPS_LIMIT:
                    self._stops.popitem(last=False)
        for worker_id in notices.silent:
            self._streams.silence(worker_id)
        if notices.ready or notices.stop:
            self._fill_slots()

    # Streams of workers

    async def open_stream(
        self,
        worker_id: str,
        version_hash: str,
        workflow_ids: Sequence[str],
        lease_ms: int,
        slots: int,
        push: Callable[[Claimed], None],
    ) -> Stream:
        """Give this worker tasks from now on, each by a call of `push`, until the stream is closed.

        Its streams have `slots` together; what it holds from before takes some of them.
        """
        _check_name("worker id", worker_id)
        _check_name("version hash", version_hash)
        # In the order of writes: a task that ends meanwhile is not among these, or gives its slot back afterwards.
        held = await self._commit(lambda tx, _: tx.held(worker_id))
        works = [(workflow_id, version_hash) for workflow_id in workflow_ids]
        stream = Stream(Taker(worker_id, lease_ms), works, self._streams.pool(worker_id, slots), push)
        stream.while_open.enter_context(self._workers.asking(worker_id, version_hash, workflow_ids))
        self._streams.open(stream, [task.task_id for task in held])
        self._backlog.update(works)
        self._fill_slots()
        return stream

    async def close_stream(self, stream: Stream, unsent: Sequence[Claimed]) -> None:
        """Give it no more, and give back what was not sent to it."""
        stream.while_open.close()
        if not stream.closed:
            self._streams.close(stream)
        if unsent:
            await asyncio.shield(self._spawn(self._return(unsent)))

    def _given(self, stream: Stream, claimed: Claimed) -> "Given":
        return Given(claimed, partial(self._give, stream), partial(_free_slot, stream))

    def _give(self, stream: Stream, claimed: Claimed) -> None:
        if claimed.is_once:
            crash_point("claim-committed")
        if not self._streams.give(stream, claimed):
            self._spawn(self._return([claimed])).add_done_callback(_for_nobody)

    async def _return(self, unsent: Sequence[Claimed]) -> None:
        """Let others have tasks that were not sent."""

        def give_back(tx: Transaction, notices: Notices) -> None:
            for claimed in unsent:
                self._lifecycle.give_back(tx, notices, claimed.task)

        for claimed in unsent:
            self._streams.release(claimed.task.task_id)
        with suppress(StoreUnavailable):  # their leases will end
            await self._commit(give_back)

    @contextmanager
    def _last_word(self, task_id: str) -> Iterator[None]:
        """When a worker's word on a task is taken, or the task is not known, it has a slot again.

        Unknown is what was begun before its start was synced, which then failed.
        """
        try:
            yield
        except NotFound:
            self._release(task_id)
            raise
        self._stops.pop(task_id, None)
        self._release(task_id)

    def _release(self, task_id: str) -> None:
        """Whoever held this task has a slot again."""
        if self._streams.release(task_id):
            self._fill_slots()

    def _fill_slots(self, *, look: bool = False) -> None:
        """Let workers with free slots have the tasks that wait; `look` also where none is known to."""
        if self.closing.is_set() or not (look or self._backlog):
            return
        for pool in self._streams.pools():
            wanted = [(each, work) for each in pool.streams for work in each.works if look or work in self._backlog]
            if wanted and pool.has_room and not pool.filling:
                pool.filling = True
                self._spawn(self._fill(pool, wanted)).add_done_callback(_for_nobody)

    async def _fill(self, pool: Pool, wanted: Sequence[tuple[Stream, Work]]) -> None:
        """Claim tasks that wait for these streams of one worker, for the slots that are free by then."""
        given: list[Given] = []

        def claim(tx: Transaction, notices: Notices) -> None:
            pool.filling = False  # what becomes ready from here on is for the next one
            for stream, (workflow_id, version_hash) in wanted:
                while pool.has_room:
                    taker = stream.taker
                    claimed = self._lifecycle.claim(tx, version_hash, [workflow_id], taker.worker_id, taker.lease_ms)
                    if claimed is None:
                        self._backlog.discard((workflow_id, version_hash))
                        break
                    pool.free -= 1
                    given.append(self._given(stream, claimed))

        try:
            with suppress(StoreUnavailable):  # it is noted, and the next sweep tries again
                await self._begin_commit(claim, given=given)
        finally:
            pool.filling = False

    def _spawn(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(job)
        self._jobs.add(task)  # the event loop alone would not keep it alive
        task.add_done_callback(self._jobs.discard)
        return task

    @contextmanager
    def _waiter(self, waiters: defaultdict[str, set[Waiter]], key: str) -> Iterator[Waiter]:
        """Woken from now on whenever `key` is."""
        woken = Waiter()
        waiters[key].add(woken)
        try:
            yield woken
        finally:
            waiters[key].discard(woken)
            if not waiters[key]:
                del waiters[key]

    async def _next(self, woken: Waiter, look: Callable[[], Coroutine[Any, Any, T | None]], wait_ms: int) -> T | None:
        """What `look()` finds, asked whenever there is something to see, but not beyond `wait_ms`."""
        deadline = asyncio.get_running_loop().time() + wait_ms / 1000
        while not self.closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):  # wait_for may lose a cancellation that comes with the wake
                    await woken.wait()
            if not woken.is_set():
                return None
            woken.clear()  # before looking, so that nothing that happens from here on is missed
            if (found := await look()) is not None:
                return found
        return None

    def _wake(self, waiters: defaultdict[str, set[Waiter]], key: str, ended: Snapshot | None = None) -> None:
        for woken in waiters.get(key, ()):
            woken.ended = ended
            woken.set()

    async def close(self) -> None:
        """Let every waiting call answer with what there is, and finish what has begun."""
        self.closing.set()
        for waiters in (self._watched, self._ready):
            for key in list(waiters):
                self._wake(waiters, key)
        while self._jobs:
            await asyncio.wait(self._jobs)

    def _check_size(self, what: str, text: str) -> None:
        if reason := wire.too_large(what, text, self.max_message_bytes):
            raise LimitExceeded(reason)


def _tell(told: "asyncio.Future[T]", result: T, _: Claimed) -> None:
    if not told.done():
        told.set_result(result)


def _pass_on(told: "asyncio.Future[T]", job: "asyncio.Task[T]") -> None:
    """What has come of the job, to who was told nothing before and still waits."""
    error = None if job.cancelled() else job.exception()
    if told.done():
        return
    if job.cancelled():
        told.cancel()
    elif error is not None:
        told.set_exception(error)
    else:
        told.set_result(job.result())


def _free_slot(stream: Stream) -> None:
    stream.pool.free += 1


def _for_nobody(job: "asyncio.Future[Any]") -> None:
    """The caller has left: a refusal is of no use to anybody, any other error belongs in the log."""
    error = None if job.cancelled() else job.exception()
    if error is not None and not isinstance(error, NexumError):
        log.error("%s: %s", type(error).__name__, error)


def _ended(reader: Reader, execution_id: str, ending: Ending | None, now_ms: int) -> Snapshot:
    if ending is None:
        return _snapshot(reader, execution_id, now_ms)
    execution, task, output_json = ending
    return Snapshot(execution, {task.node_id: output_json}, tries(task, execution), waits_for="")


def _begun(claimed: Claimed) -> Snapshot:
    """Of an execution that is new, and whose first task was claimed."""
    return Snapshot(claimed.execution, {}, tries(claimed.task, claimed.execution), waits_for="")


def _snapshot(reader: Reader, execution_id: str, now_ms: int) -> Snapshot:
    execution = reader.execution(execution_id)
    if execution is None:
        raise NotFound(f"No execution {execution_id!r} is known.")
    tasks = reader.tasks(execution_id)
    attempts = max((tries(task, execution) for task in tasks), default=0)
    ready = any(task.status == TaskStatus.READY and task.available_at_ms <= now_ms for task in tasks)
    running = any(task.status == TaskStatus.RUNNING for task in tasks)
    asked = any(task.status == TaskStatus.WAITING and task.node_type == graph.APPROVAL for task in tasks)
    waits_for = "worker" if ready and not running else "approval" if asked else ""
    return Snapshot(execution, reader.outputs(execution_id), attempts, waits_for)


def _outputs_json(outputs: dict[str, str]) -> str:
    """`{node: output}` as one JSON text, made without parsing what is in it."""
    return "{" + ",".join(f"{wire.canonical_json(node)}:{text}" for node, text in outputs.items()) + "}"


def _open_statuses(node_type: str) -> tuple[TaskStatus, ...]:
    of_nobody = node_type in (graph.APPROVAL, graph.TIMER)
    return (TaskStatus.WAITING,) if of_nobody else (TaskStatus.READY, TaskStatus.RUNNING)


def _count(waiters: Mapping[str, Collection[Waiter]]) -> int:
    return sum(map(len, waiters.values()))


def _is_over(found: Snapshot, or_ready: bool) -> bool:
    return found.execution.status != ExecutionStatus.RUNNING or (or_ready and found.waits_for == "worker")


def _check_json(what: str, text: str) -> None:
    try:
        value = wire.parse_json(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {error}.") from None
    # Counting marks is quick, and only what has many of them needs a closer look.
    if text.count("[") + text.count("{") > wire.NESTING_LIMIT and wire.is_nested_too_deeply(value):
        raise InvalidRequest(f"{what} is nested more than {wire.NESTING_LIMIT} levels deep.")


def _check_execution_id(execution_id: str) -> None:
    if not EXECUTION_ID.fullmatch(execution_id):
        raise InvalidRequest(
            f"The execution id {execution_id[:80]!r} is not 1 to {EXECUTION_ID_LIMIT} of A-Z a-z 0-9 . _ : / @ = -"
        )


def _check_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= NAME_LIMIT:
        raise InvalidRequest(f"The {what} {name[:40]!r} must be 1 to {NAME_LIMIT} characters long.")
