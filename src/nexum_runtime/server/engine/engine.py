"""Start, claim, complete, fail, cancel, sweep: checks what is asked, commits it, and wakes whoever waits for it.

What the rules are is in executions.py, attempts.py and course.py. Every change is one transaction of the store; whoever
waits (for an execution's end, for a task to become ready) is woken after the commit, never before.
"""

import asyncio
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import methodcaller
from typing import Any, TypeAlias, TypeVar

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.logs import Log
from nexum_runtime.server.engine.apart import Apart
from nexum_runtime.server.engine.clock import Clock
from nexum_runtime.server.engine.commits import Commits, Given
from nexum_runtime.server.engine.following import Followers
from nexum_runtime.server.engine.giving import Giver
from nexum_runtime.server.engine.jobs import Jobs, for_nobody, pass_on, tell
from nexum_runtime.server.engine.readiness import Readiness
from nexum_runtime.server.engine.rebuilding import Rebuilding
from nexum_runtime.server.engine.streams import Stream, Streams
from nexum_runtime.server.engine.waiters import Waiter, Waiters
from nexum_runtime.server.engine.workers import Workers
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import (
    Approval,
    EventRow,
    Execution,
    Reader,
    Session,
    Stop,
    Store,
    StoreUnavailable,
    Task,
    Transaction,
    Workflow,
    session_of,
)
from nexum_runtime.server.model.owners import AT, at, owner_of, server_of
from nexum_runtime.server.model.shapes import (
    Claimed,
    Forget,
    Fork,
    Notices,
    Resolution,
    Started,
    StartOrder,
    Taker,
    Verdict,
)
from nexum_runtime.server.model.states import STORED, ExecutionStatus, State, TaskStatus
from nexum_runtime.server.rules import snapshots
from nexum_runtime.server.rules.attempts import RETRY_DELAY_MS_MAX, Attempts, is_current, is_wanted, task_key
from nexum_runtime.server.rules.checks import (
    ERROR_LIMIT,
    HEAVY_CHARS,
    check_execution_id,
    check_json,
    check_name,
    check_size,
    checked_labels,
    checked_order,
    checked_resolution,
    checked_until,
    checked_verdict,
    same_json,
)
from nexum_runtime.server.rules.course import Course, not_registered
from nexum_runtime.server.rules.executions import SHOWN_CHARS, TIMERS_AT_ONCE, Executions, NotCompared, check_same_input
from nexum_runtime.server.rules.questions import check_question
from nexum_runtime.server.rules.records import Records
from nexum_runtime.server.rules.sessions import Sessions, check_that_it_goes_on, words_of
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.text import MIB

T = TypeVar("T")
_Found: TypeAlias = tuple[Started, Snapshot | None]
_Told: TypeAlias = "asyncio.Future[_Found]"

SWEEP_INTERVAL_MS = 250
SHARED_LOOK_MS = 1_000  # between two looks for what other servers have told and was lost
LOST_AT_ONCE = 500  # of those who wait, that look for it then
ABSENT_MS = 2_000  # after its stream broke off, a worker that may have died gets to come back; and so does a server
ABSENCE_MS = 3_000  # a clock that moved this far between two sweeps means that this process was the silent one
STOP_KEPT_MS = 600_000  # how long a worker that has gone quiet is still told what to stop
FAILURE_KEPT_MS = 300_000  # how long it is told that the store failed
LARGE_LIMIT = 10_000  # executions with large outputs that are remembered, the latest ones
STOPS_LIMIT = 10_000  # attempts that workers are still to be told to stop, the latest ones
PRUNE_BATCH = 200  # executions deleted in one transaction, so that pruning holds up nobody
OF_WORKFLOWS = "/"  # what a write is about that registers one
TOUCH_SECONDS = 5.0  # that a person who wonders what is wrong waits for the database
MEASURE_SECONDS = 2.0  # … and those who read metrics
LOOKED_AT_LIMIT = 100_000  # executions, for those of a state
LIST_CHARS = 4_096  # of a result: a longer list may be the items of a MAP, which are many rows
JOURNAL_PART_CHARS = 1_000_000  # about, of outputs in one message of a journal

# Of a worker that would take the task for an item for that of the MAP, and record whatever comes of that.
ITEMS_WAIT = "%s waits: nexum-py's own worker, as %s is, does not run the items of a MAP. Start one of ours."

log = Log("nexum.engine")
operator = Log("nexum.operator")  # what whoever runs a server must know


class Engine:
    """The one owner of a store's state machine.

    `clock` tells epoch milliseconds, by default as `Clock` does, and `jitter` a number in [0, 1): tests pass their own.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int] | None = None,
        jitter: Callable[[], float] = random.random,
        max_message_bytes: int = wire.MESSAGE_MIB_DEFAULT * MIB,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self.name = ""  # by which those who watch servers know this one
        self._store = store
        clock = clock or Clock(store.time_of_day_ms)
        self._clock = clock
        # execution id → who waits for its end, or for a task of it that can be taken
        self._watched = Waiters()
        self._ready = Waiters()  # version hash → polls that wait
        self._streams = Streams()
        self._present: Counter[str] = Counter()  # worker id → how many calls of Attend it holds open
        self._unheard: set[str] = set()  # ids of tasks that somebody is here for, and has not had a word on
        self._broken_off: dict[str, int] = {}  # worker id → since when its stream has broken off
        self._missed: dict[str, int] = {}  # another server → since when it is not there
        self._stops: OrderedDict[str, tuple[str, int]] = OrderedDict()  # task id → worker id, since when
        self._large: OrderedDict[str, int] = OrderedDict()  # executions that were read → how large their outputs are
        self._jobs = Jobs()
        self._apart = Apart()
        self._heavy = asyncio.Lock()  # of whoever records a heavy result
        self._last_sweep_ms = clock()
        self._is_to_take_over = False  # what another engine has left: there was no room
        self._looked = 0  # of those who wait, how many have looked for what was lost
        self._shared_look_ms = 0
        self.closing = asyncio.Event()  # set when this server stops
        self._workers = Workers(clock)
        self._commits = Commits(store, clock, self._watched, self._follow)
        course = Course(clock, max_message_bytes)
        self._attempts = Attempts(clock, jitter, course)
        self._executions = Executions(clock, course, self._attempts)
        self._sessions = Sessions(clock)
        self._rebuilding = Rebuilding(store, self._commits, Records(clock), clock, self._jobs)
        # task id → how the process is told that executes it itself
        self._told_to_stop: dict[str, Callable[[str], None]] = {}
        self._readiness = Readiness(self._touch, self._jobs, self.closing)
        self.followers = Followers(store, self.closing)
        self._giver = Giver(self._streams, self._attempts, self._commits, self._jobs, self.closing)

    # Workflows

    async def register(self, workflow_id: str, version_hash: str, ir_json: str) -> str:
        """Record one version of a workflow. Returns its compatibility with the version before it, or NEW."""
        check_name("workflow id", workflow_id)
        check_name("version hash", version_hash)
        check_size("The workflow's IR", ir_json, self.max_message_bytes)
        try:
            if len(ir_json) > HEAVY_CHARS:
                new = await self._apart.run("The workflow's IR", graph.parse, ir_json)
            else:
                new = graph.parse(ir_json)
        except graph.GraphError as error:
            raise InvalidRequest(f"Workflow {workflow_id!r} is refused: {error}.") from None
        return await self._commits.make(
            lambda tx, _: self._executions.register(tx, workflow_id, version_hash, ir_json, new), about=[OF_WORKFLOWS]
        )

    async def workflow_ids(self, version_hash: str) -> list[str]:
        return await self._store.read(lambda reader: reader.workflow_ids(version_hash))

    async def versions(self, workflow_id: str) -> list[Workflow]:
        return await self._store.read(lambda reader: reader.workflows(workflow_id), is_look=True)

    # Executions

    async def start(self, order: StartOrder) -> Started:
        """Start an execution, or find the one that has this id: same id and same input, same execution."""
        order = await self._checked(order)
        started, _ = await self._claiming(self._jobs.spawn(self._start(order)), lambda found: found[0].claimed)
        return started

    async def _checked(self, order: StartOrder) -> StartOrder:
        order = checked_order(order, self.max_message_bytes)
        await self._check_json(f"The input of {order.execution_id}", order.input_json)
        check_question(order)
        return order._replace(claim=at(self._store.server, order.claim))

    async def _check_json(self, what: str, text: str) -> None:
        if len(text) > HEAVY_CHARS:
            await self._apart.run(what, check_json, what, text)
        else:
            check_json(what, text)

    async def execute(self, order: StartOrder, wait_ms: int, *, lazily: bool = False) -> tuple[Started, Snapshot]:
        """Start, and wait up to `wait_ms` for the end. `lazily` is as `snapshot` has it.

        Who claims gets its task at once, and else waits also for a task of this execution that it could claim.
        """
        order = await self._checked(order)
        with self._watched.waiter(order.execution_id) as woken:
            if order.claim:
                starting = self._jobs.spawn(self._start(order))
                started, found = await self._claiming(starting, lambda found: found[0].claimed)
            else:
                started, found = await self._start(order, patient=True, lazily=lazily)
                found = found or woken.ended  # by the commit that its start shares
            if found is None:
                found = await self._end_of(
                    order.execution_id, woken, wait_ms, or_ready=bool(order.claim), or_stopped=True
                )
        return started, found

    async def execute_here(self, order: StartOrder, wait_ms: int) -> AsyncGenerator[tuple[Started, Snapshot], None]:
        """`claim_here`, and `attend` in one for who gets the task: from its claim on there is no moment without."""
        started, found, claiming = await self.claim_here(order, wait_ms)
        if started.claimed is None:
            yield started, found
            return
        with self.here(order.claim, started.claimed.task.task_id, claiming):
            yield started, found
            await self.closing.wait()

    async def claim_here(self, order: StartOrder, wait_ms: int) -> "tuple[Started, Snapshot, asyncio.Future[_Found]]":
        """`execute`, for who executes what it claims itself. The last of what it returns is done when the claim is.

        What may be done again can begin before its claim is synced. Should that be lost, no one has its task, and its
        record is refused: whoever has begun it claims it anew.
        """
        order = await self._checked(order)
        try:
            return await self._claim_here(order, wait_ms, self._begin_start)
        except NotCompared:  # it takes longer
            return await self._claim_here(order, wait_ms, lambda *how: asyncio.create_task(self._start(*how)))

    async def _claim_here(
        self, order: StartOrder, wait_ms: int, start: "Callable[[StartOrder, _Told], asyncio.Future[_Found]]"
    ) -> "tuple[Started, Snapshot, asyncio.Future[_Found]]":
        told: _Told = asyncio.get_running_loop().create_future()
        with self._watched.waiter(order.execution_id) as woken:
            claiming = start(order, told)
            self._jobs.keep(claiming)
            claiming.add_done_callback(partial(pass_on, told))
            started, found = await self._claiming(claiming, lambda found: found[0].claimed, told)
            if found is None:
                found = await self._end_of(order.execution_id, woken, wait_ms, or_ready=True, or_stopped=True)
        return started, found, claiming

    async def _start(
        self, order: StartOrder, told: "_Told | None" = None, *, patient: bool = False, lazily: bool = False
    ) -> "_Found":
        """Start or find it, and tell how it is if there is nothing to wait for; to `told` as soon as may be."""
        try:
            return await self._begin_start(order, told, patient=patient, lazily=lazily)
        except NotCompared as error:
            what = f"The input of {order.execution_id}"
            differ = await self._apart.run(what, same_json, error.before, order.input_json, SHOWN_CHARS)
            check_same_input(order, differ)
            order = order._replace(input_json=error.before)
            return await self._begin_start(order, told, patient=patient, lazily=lazily)

    def _begin_start(
        self, order: StartOrder, told: "_Told | None" = None, *, patient: bool = False, lazily: bool = False
    ) -> "asyncio.Future[_Found]":
        patient = patient or told is not None
        stream = None if order.claim else self._streams.reserve((order.workflow_id, order.version_hash))
        given: list[Given] = []

        def work(tx: Transaction, notices: Notices) -> tuple[Started, Snapshot | None]:
            started = self._executions.start(tx, notices, order, stream.taker if stream else None)
            if stream is not None and started.taken is not None:
                given.append(self._giver.given(stream, started.taken))
            if started.before == wire.NEW:
                found = snapshots.begun(started.claimed) if started.claimed else None
            else:
                found = self._read(tx, order.execution_id, lazily=lazily)
            waits = found is None or (found.execution.status == ExecutionStatus.RUNNING and started.claimed is None)
            result = started, None if waits else found
            if started.claimed is not None and told is not None and not order.synced:
                given.append(Given(started.claimed, partial(tell, told, result)))
            return result

        def over(starting: "asyncio.Future[Any]") -> None:
            if stream is not None and not given:
                stream.pool.free += 1
                self._giver.fill_slots()  # what has become ready meanwhile found no slot
            if not starting.cancelled() and starting.exception() is None:
                crash_point("start-committed")

        starting = self._commits.begin(
            work,
            given=given if stream or told else None,
            patient=patient,
            long=len(order.input_json) > HEAVY_CHARS,
            about=[order.execution_id],
        )
        starting.add_done_callback(over)
        return starting

    async def snapshot(
        self, execution_id: str, wait_ms: int = 0, *, or_ready: bool = False, lazily: bool = False
    ) -> Snapshot:
        """The execution as it is; with `wait_ms`, as soon as it has ended or when that time is up.

        With `or_ready` also as soon as no task of it runs, and one could. What is read `lazily` may be without its
        outputs, if they are large: their `unread_chars` say so.
        """
        check_execution_id(execution_id)
        with self._watched.waiter(execution_id) as woken:
            found = await self._read_snapshot(execution_id, lazily=lazily)
            if snapshots.is_over(found, or_ready) or not wait_ms:
                return found
            return await self._end_of(execution_id, woken, wait_ms, or_ready)

    async def _read_snapshot(self, execution_id: str, *, lazily: bool = False) -> Snapshot:
        return await self._store.read(lambda reader: self._read(reader, execution_id, lazily=lazily))

    def _read(self, reader: Reader, execution_id: str, *, lazily: bool = False) -> Snapshot:
        unread_chars = self._large.get(execution_id, 0) if lazily else 0
        found = snapshots.read(reader, execution_id, self._clock(), unread_chars)
        if found.size_chars > HEAVY_CHARS:
            self._large[execution_id] = found.size_chars
            if len(self._large) > LARGE_LIMIT:
                self._large.popitem(last=False)
        return found

    async def _end_of(
        self, execution_id: str, woken: Waiter, wait_ms: int, or_ready: bool, *, or_stopped: bool = False
    ) -> Snapshot:
        """The execution as soon as it is over, or as it is when the time is up.

        With `or_stopped`, raises SessionStopped as soon as its session is stopped and it is not over.
        """

        def read(reader: Reader) -> Snapshot:
            found = snapshots.read(reader, execution_id, self._clock())
            if or_stopped and found.execution.status == ExecutionStatus.RUNNING:
                check_that_it_goes_on(reader, execution_id)
            return found

        async def look() -> Snapshot | None:
            found = await self._store.read(read) if woken.ended is None else woken.ended
            return found if snapshots.is_over(found, or_ready) else None

        return await woken.next(self.closing, look, wait_ms) or await self._read_snapshot(execution_id)

    async def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        """The newest first; an empty filter lets all pass."""
        if prefix:
            check_execution_id(prefix)
        return await self._store.read(
            lambda reader: reader.executions(workflow_id, status, prefix, limit), is_look=True
        )

    async def listed(self, workflow_id: str, state: str, prefix: str, limit: int) -> list[tuple[Execution, State]]:
        """The newest first, each with its state; an empty filter lets all pass."""
        if prefix:
            check_execution_id(prefix)
        if state and state not in list(State):
            raise InvalidRequest(f"{state[:40]!r} is no state; there are {', '.join(State)}.")
        stored = STORED.get(State(state), state) if state else ""
        # Of these states there are few, and the store does not tell them apart.
        looked_at = limit if state in ("", State.COMPLETED, State.CANCELLED) else LOOKED_AT_LIMIT

        def read(reader: Reader) -> list[tuple[Execution, State]]:
            found: list[tuple[Execution, State]] = []
            for execution in reader.executions(workflow_id, stored, prefix, looked_at):
                if len(found) == limit:
                    break
                its_state = snapshots.state_of(reader, execution)
                if not state or its_state == state:
                    found.append((execution, its_state))
            return found

        return await self._store.read(read, is_look=True)

    async def history(self, execution_id: str) -> tuple[Snapshot, list[EventRow]]:
        """An execution with its state, and its events in the order they happened."""
        check_execution_id(execution_id)

        def read(reader: Reader) -> tuple[Snapshot, list[EventRow]]:
            found = snapshots.read(reader, execution_id, self._clock())
            state = snapshots.state_of(reader, found.execution)
            return found._replace(state=state), reader.events(execution_id)

        return await self._store.read(read, is_look=True)

    async def course(self, prefix: str, before: int, limit: int) -> list[tuple[int, Execution, State, list[EventRow]]]:
        """(order, execution, state, events) of those under a prefix that were started before that one, the newest
        first; without their inputs, which can be large."""
        check_execution_id(prefix)

        def read(reader: Reader) -> list[tuple[int, Execution, State, list[EventRow]]]:
            found = []
            for order, execution_id in reader.before(prefix, before, limit):
                execution = reader.execution(execution_id)
                assert execution is not None, "one read sees one state"
                state = snapshots.state_of(reader, execution)
                events = reader.events(execution_id)
                found.append((order, execution._replace(input_json="null"), state, events))
            return found

        return await self._store.read(read, is_look=True)

    async def journal(self, prefix: str) -> AsyncGenerator[str, None]:
        """What the COMPLETED executions under a prefix have recorded, `{execution_id: {node: output}}`, in parts."""
        check_execution_id(prefix)
        after = ""

        def part(reader: Reader) -> tuple[str, str]:
            outputs, last = reader.journal(prefix, after, JOURNAL_PART_CHARS)
            named = (f"{wire.canonical_json(id)}:{snapshots.outputs_json(each)}" for id, each in outputs.items())
            return f"{{{','.join(named)}}}" if outputs else "", last

        while True:
            text, after = await self._store.read(part)
            if not text:
                return
            yield text

    async def cancel(self, execution_id: str) -> str:
        """Cancel a RUNNING execution and all its open tasks. Returns what came of it, in words."""
        check_execution_id(execution_id)
        return await self._commits.make(
            lambda tx, notices: self._executions.cancel(tx, notices, execution_id), about=[execution_id]
        )

    # Sessions

    async def sessions(self, prefix: str, limit: int) -> list[Session]:
        """Those whose id begins with `prefix`, the one of which an execution was started last first."""
        if prefix:
            check_execution_id(prefix)
        return await self._store.read(lambda reader: reader.sessions(prefix, limit), is_look=True)

    async def stop_session(self, session_id: str, by: str, reason: str) -> dict[str, list[str]]:
        """Stop a session: see `Sessions.stop`."""
        if by:
            check_name("name of who stops it", by)
        told = await self._commits.make(
            lambda tx, notices: self._sessions.stop(tx, notices, session_id, by, reason[:ERROR_LIMIT]),
            about=[f"{session_id}/"],
        )
        operator.info("%s", words_of(session_id, Stop(0, by, reason)))
        return told

    async def go_session(self, session_id: str) -> bool:
        """Let a session go on. Returns whether it was stopped."""
        was_stopped = await self._commits.make(
            lambda tx, notices: self._sessions.go(tx, notices, session_id), about=[f"{session_id}/"]
        )
        operator.info("Session %s goes on.", session_id)
        return was_stopped

    async def forget(self, session_id: str, order: Forget) -> dict[str, Any]:
        """Take back what a session has recorded: see `Records.forget`."""
        if order.by:
            check_name("name of who takes it back", order.by)
        return await self._rebuilding.forget(session_id, order)

    async def fork(self, session_id: str, order: Fork) -> dict[str, Any]:
        """Make a new session of what another one has recorded: see `Records.fork`."""
        if order.by:
            check_name("name of who forks it", order.by)
        return await self._rebuilding.fork(session_id, order)

    async def first_session(self, prefix: str) -> str:
        """The session that the one of this prefix was first forked from; that one itself when it is no fork."""
        check_execution_id(prefix)
        session_id = session_of(prefix)
        return await self._store.read(lambda reader: reader.first_session(session_id)) if session_id else ""

    async def check_that_it_goes_on(self, execution_id: str) -> None:
        """Raise SessionStopped if the session of this execution is stopped."""
        await self._store.read(lambda reader: check_that_it_goes_on(reader, execution_id))

    @contextmanager
    def telling_to_stop(self, task_id: str, tell: Callable[[str], None]) -> Iterator[None]:
        """Call `tell` when this task is to stop: with the reason when its session was stopped, else with ""."""
        self._told_to_stop[task_id] = tell
        try:
            yield
        finally:
            self._told_to_stop.pop(task_id, None)

    async def resolve(self, execution_id: str, node_id: str, word: Resolution) -> str:
        """Take a person's word on an execution that ended without a result. Returns what came of it, in words."""
        word = checked_resolution(word, execution_id, self.max_message_bytes)
        if word.kind == "result":
            await self._check_json(f"The result of {execution_id}", word.text)
        return await self._commits.make(
            lambda tx, notices: self._executions.resolve(tx, notices, execution_id, node_id, word),
            about=[execution_id],
        )

    async def approvals(self, limit: int) -> list[Approval]:
        """What waits for a person's yes, the longest first."""
        return await self._store.read(lambda reader: reader.approvals(limit), is_look=True)

    async def answer(self, execution_id: str, node_id: str, verdict: Verdict) -> str:
        """Take a person's yes or no, or answer; the first word wins. Returns what came of it, in words."""
        verdict = checked_verdict(verdict, execution_id, self.max_message_bytes)
        return await self._commits.make(
            lambda tx, notices: self._executions.answer(tx, notices, execution_id, node_id, verdict),
            about=[execution_id],
        )

    async def prune(self, prefix: str, older_than_ms: int, *, dry_run: bool) -> tuple[int, int]:
        """Delete executions that ended `older_than_ms` ago or earlier. Returns how many, and the bytes given back.

        What runs is not touched, nor what waits for a person's word: an outcome that is unknown.
        """
        if prefix:
            check_execution_id(prefix)
        before_ms, after_seq, count = self._clock() - older_than_ms, 0, 0

        def batch(reader: Reader) -> list[tuple[int, str]]:
            return reader.ended_before(before_ms, prefix, after_seq, PRUNE_BATCH)

        async def delete() -> list[tuple[int, str]]:
            found = await self._store.read(batch, is_look=True)

            def work(tx: Transaction, _: Notices) -> None:
                for each in batch(tx):
                    if each in found:  # the others may be another server's to change
                        tx.delete_execution(each[1])

            if found:
                await self._commits.make(work, about=[execution_id for _, execution_id in found])
            return found

        while ended := await (self._store.read(batch, is_look=True) if dry_run else delete()):
            after_seq, count = ended[-1][0], count + len(ended)
        return count, 0 if dry_run else await self._store.compact()

    # Tasks

    async def poll(
        self,
        worker_id: str,
        version_hash: str,
        workflow_ids: list[str],
        lease_ms: int,
        wait_ms: int = 0,
        *,
        renews: bool = False,
        with_items: bool = True,
    ) -> Claimed | None:
        """Claim the READY task that was scheduled first, waiting up to `wait_ms` for one.

        `renews`: the worker sends no heartbeats, and that it asks is its sign of life for what it holds. One that knows
        nothing of a MAP's items is given other tasks alone, `with_items=False`.
        """
        check_name("worker id", worker_id)
        check_name("version hash", version_hash)
        if self.closing.is_set():
            return None

        if renews and self._workers.is_to_renew(worker_id):
            await self._commits.make(lambda tx, _: self._renew(tx, worker_id), renews=True)

        async def look() -> Claimed | None:
            claiming = self._commits.make(
                lambda tx, _: self._attempts.claim(
                    tx, version_hash, workflow_ids, worker_id, lease_ms, with_items=with_items
                )
            )
            return await self._claiming(self._jobs.spawn(claiming), lambda claimed: claimed)

        asking = self._workers.asking(worker_id, version_hash, workflow_ids)
        with asking, self._ready.waiter(version_hash) as woken:
            claimed = await look() or await woken.next(self.closing, look, wait_ms)
        if claimed is None and not with_items and self._workers.is_to_be_told(worker_id):
            waits = await self._store.read(lambda reader: reader.ready_item(version_hash, workflow_ids))
            if waits is not None:
                self._workers.note_told(worker_id)
                operator.warning(ITEMS_WAIT, waits, worker_id)
        return claimed

    def _renew(self, tx: Transaction, worker_id: str) -> None:
        task_ids = self._workers.renewable(worker_id, [task.task_id for task in tx.held(worker_id)])
        if task_ids:
            tx.renew_leases(worker_id, self._clock(), [task_key(each) for each in task_ids])

    async def _claiming(
        self,
        job: "asyncio.Future[T]",
        claimed: Callable[[T], Claimed | None],
        told: "asyncio.Future[T] | None" = None,
    ) -> T:
        """What `job` returns, or `told` is before. If its caller leaves before it could be told what it has claimed,
        that is undone."""
        try:
            return await (told or asyncio.shield(job))
        except asyncio.CancelledError:
            self._jobs.spawn(self._give_back(job, claimed)).add_done_callback(for_nobody)
            raise

    async def _give_back(self, job: "asyncio.Future[T]", claimed: Callable[[T], Claimed | None]) -> None:
        with suppress(StoreUnavailable):  # nothing was claimed, or its lease will end
            found = claimed(await job)
            if found is not None:
                await self._giver.return_to_all([found.task])

    def give_back(self, claimed: Claimed, may_be_known: bool) -> None:
        """Undo a claim whose answer was not sent: its attempt has not begun.

        It `may_be_known` when that was tried. What happens once is left to its lease then: it may happen.
        """
        if not (may_be_known and claimed.is_once):
            self._jobs.spawn(self._giver.return_to_all([claimed.task])).add_done_callback(for_nobody)

    async def complete(self, task_id: str, output_json: str, labels_json: str = "") -> str:
        """Record a task's result. The first word wins; returns "" if it was this one, else why nothing changed.

        A result over the limit fails the task instead.
        """
        return await self.record(task_id, output_json, labels_json)

    def record(self, task_id: str, output_json: str, labels_json: str = "") -> asyncio.Future[str]:
        """`complete`, begun at once: what is begun at the same moment is committed together."""
        what = f"The output of task {task_id[:80]!r}"
        try:
            labels_json = labels_json and checked_labels(labels_json)
            check_size("The result", output_json, self.max_message_bytes)
            if len(output_json) > HEAVY_CHARS:
                return self._jobs.spawn(self._record_heavy(what, task_id, output_json, labels_json))
            check_json(what, output_json)
        except LimitExceeded as error:
            return self._jobs.spawn(self._fail_too_large(task_id, str(error)))
        except InvalidRequest as error:
            refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused

        return self._record(task_id, output_json, labels_json)

    def _record(self, task_id: str, output_json: str, labels_json: str, *, long: bool = False) -> asyncio.Future[str]:
        def work(tx: Transaction, notices: Notices) -> str:
            return self._attempts.complete(tx, notices, task_id, output_json, labels_json)

        may_be_items = output_json.startswith("[") and len(output_json) > LIST_CHARS
        recording = self._commits.begin(work, long=long or may_be_items, about_tasks=[task_key(task_id)])
        recording.add_done_callback(partial(self._recorded, task_id))
        return recording

    async def _record_heavy(self, what: str, task_id: str, output_json: str, labels_json: str) -> str:
        async with self._heavy:  # one at a time, and what is not heavy goes on between them
            try:
                await self._check_json(what, output_json)
            except LimitExceeded as error:
                return await self._fail_too_large(task_id, str(error))
            return await self._record(task_id, output_json, labels_json, long=True)

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
            return await self._commits.make(
                lambda tx, notices: self._attempts.fail(tx, notices, task_id, error, **flags),
                about_tasks=[task_key(task_id)],
            )

    async def park(self, task_id: str, until_json: str) -> str:
        """Give an attempt back until something has ended, or until a time: see `Attempts.park`."""
        until = checked_until(until_json)
        crash_point("park")
        with self._last_word(task_id):
            message = await self._commits.make(
                lambda tx, notices: self._attempts.park(tx, notices, task_id, until), about_tasks=[task_key(task_id)]
            )
        crash_point("park-committed")
        return message

    @contextmanager
    def _last_word(self, task_id: str) -> Iterator[None]:
        """When a worker's word on a task is taken, or the task is not known, it has a slot again.

        Unknown is what was begun before its start was synced, which then failed.
        """
        try:
            yield
        except NotFound:
            self._unheard.discard(task_id)
            self._giver.release(task_id)
            raise
        self._unheard.discard(task_id)
        self._stops.pop(task_id, None)
        self._giver.release(task_id)

    async def heartbeat(
        self, worker_id: str, held: list[str] | None = None, standstill: tuple[int, str] | None = None
    ) -> list[str]:
        """Renew the leases of the attempts that this worker holds. Returns the ids of those it should stop.

        `held` are their task ids. A worker that does not say what it holds has every lease of its renewed, also that
        of a claim whose answer never reached it. One at a `standstill`, as it says for how many milliseconds and
        where, is given nothing new until it goes on.
        """
        check_name("worker id", worker_id)
        worker_id = at(self._store.server, worker_id)
        self._workers.heard(worker_id)
        self._workers.note_standstill(worker_id, standstill)
        if standstill is not None:
            self._streams.silence(worker_id)
        elif self._streams.hear(worker_id):
            self._giver.fill_slots()
        if held is None:
            await self._commits.make(lambda tx, _: tx.renew_leases(worker_id, self._clock()), renews=True)
            return [task_id for task_id, (told, _) in self._stops.items() if told == worker_id]

        def work(tx: Transaction, _: Notices) -> list[str]:
            attempts = [(task_id, tx.task(task_key(task_id)), wire.attempt_number(task_id)) for task_id in held]
            own = [task_id for task_id, task, attempt in attempts if is_current(task, attempt)]
            tx.renew_leases(worker_id, self._clock(), [task_key(task_id) for task_id in own])
            return [task_id for task_id, task, attempt in attempts if not is_wanted(task, attempt)]

        stops = await self._commits.make(work, renews=True)
        for task_id in stops:  # no more is heard of it
            self._giver.release(task_id)
        return stops

    async def attend(self, worker_id: str) -> AsyncGenerator[None, None]:
        """Yields once, when whoever is this worker counts as here, and ends with this server.

        When it is closed before that, the worker has gone, and what it held is given up at once, also what it is
        claiming at the moment. What it held at another server it holds here from now on.
        """
        check_name("worker id", worker_id)
        here = at(self._store.server, worker_id)

        def come(tx: Transaction, _: Notices) -> None:
            for holder in (worker_id, *tx.holders(f"{worker_id}{AT}")):
                tx.rename_holder(holder, here)
            tx.renew_leases(here, self._clock())

        coming = None if here == worker_id else self._commits.begin(come, renews=True)
        with self.here(worker_id, claiming=coming):
            if coming is not None:
                await asyncio.shield(coming)
            yield
            await self.closing.wait()

    @contextmanager
    def here(self, worker_id: str, task_id: str = "", claiming: "asyncio.Future[Any] | None" = None) -> Iterator[None]:
        """Whoever is this worker is here. Who is here for one task, and has had its word on it, may go."""
        check_name("worker id", worker_id)
        worker_id = at(self._store.server, worker_id)
        if task_id:
            self._unheard.add(task_id)
        self._present[worker_id] += 1
        try:
            yield
        finally:
            self._present[worker_id] -= 1
            if not self._present[worker_id]:
                del self._present[worker_id]
            is_done = task_id and task_id not in self._unheard
            self._unheard.discard(task_id)
            if not is_done and worker_id not in self._present and not self.closing.is_set():
                self._jobs.spawn(self._give_up(worker_id, claiming)).add_done_callback(for_nobody)

    async def _give_up(self, worker_id: str, claiming: "asyncio.Future[Any] | None") -> None:
        if claiming is not None:
            await asyncio.wait([claiming])
        with suppress(StoreUnavailable):  # its leases will end
            if held := await self._store.read(lambda reader: reader.held(worker_id)):
                await self._commits.make(
                    lambda tx, notices: self._attempts.lose_all(tx, notices, worker_id),
                    about_tasks=[task.task_key for task in held],
                )

    # Streams of workers

    async def open_stream(
        self,
        worker_id: str,
        version_hash: str,
        workflow_ids: Sequence[str],
        lease_ms: int,
        slots: int,
        push: Callable[[Claimed], None],
        stop: Callable[[str], None] | None = None,
        unread: Callable[[], int] = lambda: 0,
    ) -> Stream:
        """Give this worker tasks from now on, each by a call of `push`, until the stream is closed.

        Its streams have `slots` together; what it holds from before takes some of them.
        """
        check_name("worker id", worker_id)
        check_name("version hash", version_hash)
        # In the order of writes: a task that ends meanwhile is not among these, or gives its slot back afterwards.
        held = await self._commits.make(lambda tx, _: self._held(tx, worker_id))
        self._broken_off.pop(worker_id, None)
        works = [(workflow_id, version_hash) for workflow_id in workflow_ids]
        stream = Stream(Taker(worker_id, lease_ms), works, self._streams.pool(worker_id, slots), push, stop, unread)
        stream.while_open.enter_context(self._workers.asking(worker_id, version_hash, workflow_ids))
        self._streams.open(stream, [task.task_id for task in held])
        self._giver.backlog.update(works)
        self._giver.fill_slots()
        return stream

    def _held(self, tx: Transaction, worker_id: str) -> list[Task]:
        """What a worker holds that is heard of."""
        if held := tx.held(worker_id):
            tx.renew_leases(worker_id, self._clock())
        return held

    def note_break(self, stream: Stream) -> None:
        """It broke off, so its worker may have died: what that holds and may be repeated is not left to the lease,
        unless it is heard of again."""
        self._broken_off[stream.taker.worker_id] = self._clock()

    async def close_stream(self, stream: Stream, unsent: Sequence[Claimed]) -> None:
        """Give it no more, and give back what was not sent to it."""
        stream.while_open.close()
        if not stream.closed:
            self._streams.close(stream)
        if unsent:
            await asyncio.shield(self._jobs.spawn(self._giver.give_back(unsent)))

    # Time

    async def take_over(self) -> None:
        """Begin with what another engine has left: its own process, and what that executed, has gone with it.

        On a disk that is full the sweeper does it when there is room. Raises StoreUnavailable.
        """

        def begin(tx: Transaction, notices: Notices) -> None:
            tx.restart_clock(self._clock(), RETRY_DELAY_MS_MAX)
            for worker_id in tx.holders(wire.EMBEDDED_WORKER):
                self._attempts.lose_all(tx, notices, worker_id)

        self._is_to_take_over = True
        try:
            await self._commits.make(begin, renews=True)
        except StoreUnavailable as error:
            if not error.for_room:
                raise
        else:
            self._is_to_take_over = False

    async def restart_clock(self) -> None:
        """While this server was away it could hear no worker, so each gets its whole lease from now."""
        await self._commits.make(lambda tx, _: tx.restart_clock(self._clock(), RETRY_DELAY_MS_MAX), renews=True)

    async def _follow_clock(self) -> None:
        """When the time of day was set, leases move with it: none ends earlier or later for that."""
        clock = self._clock
        jump_ms = clock.jump_ms() if isinstance(clock, Clock) else 0
        if not jump_ms:
            return
        is_followed = False

        def follow(tx: Transaction, _: Notices) -> None:
            nonlocal is_followed
            if self._store.is_shared:  # others follow it as well: together they would move the leases too far
                tx.restart_clock(self._clock() + jump_ms, RETRY_DELAY_MS_MAX)
            else:
                tx.shift_clock(jump_ms)
            assert isinstance(clock, Clock)
            if not is_followed:
                clock.follow(jump_ms)  # before any write after this one
            is_followed = True

        try:
            await self._commits.make(follow)
        except StoreUnavailable:
            if is_followed and isinstance(clock, Clock):
                clock.follow(-jump_ms)
            raise
        self._last_sweep_ms += jump_ms
        operator.info("The clock was set by %g s, and leases with it.", jump_ms / 1000)

    # Other servers

    def listen(self) -> None:
        """Follow what other servers commit, from now on."""
        if self._store.is_shared:
            self._store.listen(self._hear)

    def _hear(self, words: Sequence[list[Any]]) -> None:
        if not words:
            self._look_for_lost(len(self._watched))
        notices = Notices()
        for word in words:
            notices.hear(word)
        self._follow_here(notices, {})

    def _look_for_lost(self, count: int) -> None:
        """Let so many of those who wait look for themselves, each in its turn: a word of another server may be lost."""
        keys = list(self._watched)
        for key in keys[self._looked : self._looked + count]:
            self._watched.wake(key)
        self._looked = 0 if self._looked + count >= len(keys) else self._looked + count

    async def _free_slots(self) -> None:
        """Of tasks that have ended at other servers."""
        for worker_id, held in self._streams.held().items():
            running = await self._store.read(methodcaller("held", worker_id))
            for task_id in held - {task.task_id for task in running}:
                self._giver.release(task_id)

    async def hand_over(self) -> None:
        """After `close`: what this process executes, or programs that were here do, goes on at another engine."""

        def leave(tx: Transaction, _: Notices) -> None:
            for holder in tx.holders(wire.EMBEDDED_WORKER):
                tx.rename_holder(holder, wire.LOCAL_WORKER + holder.removeprefix(wire.EMBEDDED_WORKER))
            for holder in tx.holders(wire.LOCAL_WORKER):
                if server_of(holder) == self._store.server:
                    tx.rename_holder(holder, owner_of(holder))

        await self._commits.make(leave)

    async def run_sweeper(self) -> None:
        """Sweep until cancelled. A store that is unavailable is tried again: its disk may have space by then."""
        while True:
            pause_ms = SWEEP_INTERVAL_MS
            try:
                pause_ms = await self.sweep()
            except StoreUnavailable as error:
                self._commits.note_outage(error)
                self._commits.deaf = self._commits.deaf or self._store.is_shared  # as other servers were
            except Exception:  # without a sweeper no lease would ever end
                log.exception("A sweep for expired leases failed. The next one follows.")
            else:
                self._commits.note_end_of_outage()
            await asyncio.sleep(pause_ms / 1000)

    async def sweep(self) -> int:
        """Fire the timers that are due, give up attempts whose lease has expired, and wake the polls that wait for a
        retry's time to come. Returns in how many milliseconds the next sweep is to be.
        """
        if self._is_to_take_over:
            await self.take_over()
            if self._is_to_take_over:
                return SWEEP_INTERVAL_MS
        await self._follow_clock()
        now_ms = self._clock()
        self._commits.deaf = self._commits.deaf or abs(now_ms - self._last_sweep_ms) > ABSENCE_MS
        self._last_sweep_ms = now_ms
        if self._commits.deaf:
            self._commits.deaf = False  # until it fails again, be it here
            await self.restart_clock()
        expired, timer_ms, due, rebuilds = await self._store.read(
            lambda reader: (
                reader.expired(now_ms),
                reader.next_timer(),
                reader.due(now_ms, TIMERS_AT_ONCE),
                reader.rebuilds(),
            )
        )
        self._rebuilding.take_up(rebuilds)
        for tasks, rule in ((expired, self._attempts.expire), (due, self._executions.fire)):
            if keys := {task.task_key for task in tasks}:
                await self._commits.make(partial(rule, task_keys=keys), about_tasks=keys)
        await self._give_up_absent(now_ms)
        for version_hash in list(self._ready):
            self._ready.wake(version_hash)
        self._giver.fill_slots(look=True)
        if self._store.is_shared and now_ms - self._shared_look_ms > SHARED_LOOK_MS:
            self._shared_look_ms = now_ms
            self._look_for_lost(LOST_AT_ONCE)
            await self._free_slots()
            await self._give_up_for_the_dead(now_ms)
        for task_id in [task_id for task_id, (_, since_ms) in self._stops.items() if now_ms - since_ms > STOP_KEPT_MS]:
            del self._stops[task_id]
        return SWEEP_INTERVAL_MS if timer_ms is None else max(0, min(timer_ms - self._clock(), SWEEP_INTERVAL_MS))

    async def _give_up_absent(self, now_ms: int) -> None:
        """Let others have what is held by workers whose streams broke off, and that were not heard of since."""
        for worker_id, since_ms in list(self._broken_off.items()):
            if 0 <= now_ms - since_ms < ABSENT_MS:
                continue
            del self._broken_off[worker_id]
            if not self._streams.is_open(worker_id):
                await self._lose_absent(worker_id, since_ms)

    async def _give_up_for_the_dead(self, now_ms: int) -> None:
        """Let others have what was executed at servers that have died, by programs that were not heard of since."""
        there = await self._store.servers()
        if self._store.server not in there:  # it cannot tell
            return
        holders = await self._store.read(methodcaller("holders", wire.LOCAL_WORKER))
        missed = {server_of(each) for each in holders} - there - {""}
        since_ms = {server: self._missed.get(server, now_ms) for server in missed}
        self._missed = {server: since for server, since in since_ms.items() if now_ms - since < ABSENT_MS}
        await asyncio.gather(
            *(
                self._lose_absent(worker_id, since_ms[server], even_once=True)
                for worker_id in holders
                if (server := server_of(worker_id)) in missed and server not in self._missed
            )
        )

    async def _lose_absent(self, worker_id: str, since_ms: int, *, even_once: bool = False) -> None:
        if held := await self._store.read(methodcaller("held", worker_id)):
            rule = partial(self._attempts.lose_absent, worker_id=worker_id, since_ms=since_ms, even_once=even_once)
            await self._commits.make(rule, about_tasks=[task.task_key for task in held])

    # What it can tell of itself

    async def is_ready(self) -> bool:
        """Whether it can record what it is told, and goes on. Told within seconds, whatever the database does."""
        return await self._readiness.is_ready()

    async def _touch(self) -> None:
        await self._commits.make(lambda tx, _: tx.touch())

    async def inspect(self) -> dict[str, Any]:
        """What `Store.inspect` tells, and `workers`; `database` says besides whether it can be written to:
        `problem` is why not, `failure` what went wrong last with it, in the last minutes, and `failure_ms` how long
        ago."""
        problem = None
        try:
            async with asyncio.timeout(TOUCH_SECONDS):
                await self._touch()
        except StoreUnavailable as error:
            problem = str(error)
        except TimeoutError:
            problem = f"The database {self._store.where} has not answered for {TOUCH_SECONDS:g} s. Is it there?"
        now_ms = self._clock()
        told = await self._store.inspect(now_ms)
        failed_ms, failure = self._commits.failure or (0, None)
        if now_ms - failed_ms > FAILURE_KEPT_MS:
            failed_ms, failure = 0, None
        told["database"] |= {
            "problem": problem or told["database"].get("problem"),
            "failure": failure,
            "failure_ms": now_ms - failed_ms if failure else None,
        }
        return told | {"workers": self._workers.seen(told.pop("held", {}))}

    async def measure(self) -> str:
        """Its metrics, in Prometheus' text format. A database that cannot be read leaves its tasks untold."""
        tasks: dict[tuple[str, str], int] = {}
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(MEASURE_SECONDS):
                found = await self._store.read(lambda reader: reader.count_tasks(), is_look=True)
            tasks = {(status, kind): 0 for kind in (*graph.NODE_TYPES, graph.ITEM) for status in _open_statuses(kind)}
            tasks |= found
        waiting = {"end": self._watched.count(), "task": self._ready.count()}
        pools = self._streams.pools()
        slots = {
            "free": sum(max(pool.free, 0) for pool in pools),
            "busy": sum(len(pool.held) for pool in pools),
        }
        return self._store.metrics.text(
            self.name,
            tasks,
            waiting,
            slots,
            self._store.connections(),
            self._store.notification_lag_seconds(),
        )

    async def definition(self, workflow_id: str, version_hash: str) -> Workflow:
        """One version of a workflow, the one registered last when the hash is empty. Raises NotFound."""
        found = await self._store.read(lambda reader: reader.workflow(workflow_id, version_hash))
        if found is None:
            raise not_registered(workflow_id, version_hash)
        return found

    # Commits and waits

    def _follow(self, notices: Notices, ended: dict[str, Snapshot]) -> None:
        self._follow_here(notices, ended)
        if self._store.is_shared and (words := notices.words()):
            self._store.tell(words)

    def _follow_here(self, notices: Notices, ended: dict[str, Snapshot]) -> None:
        """Wake whoever waits for what has been committed."""
        for execution_id in notices.ended:
            self._watched.wake(execution_id, ended.get(execution_id))
        for workflow_id, version_hash, execution_id in notices.ready:
            self._giver.backlog.add((workflow_id, version_hash))
            self._ready.wake(version_hash)
            self._watched.wake(execution_id)
        for execution_id in notices.stopped:
            self._watched.wake(execution_id)
        for task in notices.stop:
            if task.task_id in notices.cut:  # else it may be nearly done, and its late word is taken
                self._streams.stop(task.task_id)
            self._streams.release(task.task_id)
            if task.task_id in notices.cut and (tell := self._told_to_stop.pop(task.task_id, None)):
                self._unheard.discard(task.task_id)
                tell(notices.stopped.get(task.execution_id, ""))
            if task.worker_id is not None:
                self._stops[task.task_id] = (task.worker_id, self._clock())
                if len(self._stops) > STOPS_LIMIT:
                    self._stops.popitem(last=False)
        for worker_id in notices.silent:
            self._streams.silence(worker_id)
        if notices.ready or notices.stop:
            self._giver.fill_slots()

    async def close(self) -> None:
        """Let every waiting call answer with what there is, and finish what has begun."""
        self.closing.set()
        for waiters in (self._watched, self._ready):
            for key in list(waiters):
                waiters.wake(key)
        while self._jobs:
            await asyncio.wait(self._jobs)

    def end(self) -> None:
        """After all that it was asked."""
        self._apart.close()


def _open_statuses(node_type: str) -> tuple[TaskStatus, ...]:
    if node_type in (graph.APPROVAL, graph.TIMER):
        return (TaskStatus.WAITING,)
    # For its items, for a child, or parked.
    waits = (TaskStatus.WAITING,) if node_type in (graph.MAP, graph.SUBWORKFLOW, graph.EFFECT) else ()
    return (TaskStatus.READY, TaskStatus.RUNNING, *waits)
