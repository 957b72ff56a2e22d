"""The contract every store keeps.

A store runs the engine's decisions as transactions: `write(work)` calls `work(tx)` with a Transaction and commits
what it did, all of it or nothing; when `write` returns, the commit is synced to disk. Writes of one server run one
after another. `read(work)` changes nothing and sees what was committed before it began, and also what has begun before
its commit (see `begin_write`): that is waited for. `work` is plain synchronous code; that of a write is quick, for it
may hold up the event loop, or be in a thread of its own. It may be run again when what it did could not be kept, and
leaves nothing elsewhere but what that run puts right.

Times are integer epoch milliseconds, JSON travels as text and comes back as the very text that was stored.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from nexum_runtime.server.model.metrics import Metrics
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus

T = TypeVar("T")

ANOTHER = "NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH"  # how to name another database


class StoreUnavailable(Exception):
    """The database cannot be used now: it cannot be opened, is held by another server, or the disk is full.

    The text names the file. Nothing was committed. With `for_room` its disk is full, or so it seems.
    """

    def __init__(self, text: str, *, for_room: bool = False) -> None:
        super().__init__(text)
        self.for_room = for_room


class StoreInUse(StoreUnavailable):
    """Another process has the database."""


@dataclass(frozen=True)
class Workflow:
    workflow_id: str
    version_hash: str
    ir_json: str
    compatibility: str
    registered_at_ms: int
    active_executions: int = 0


def session_of(execution_id: str) -> str:
    """What stands before the first "/" of an execution's id; "" for one without a session."""
    session_id, slash, _ = execution_id.partition("/")
    return session_id if slash else ""


ANSWERING = ("ROUTER", "MAP", "SUBWORKFLOW")  # node types whose results say how it goes on

TAKEN_BACK = "~"  # in an id: "s1~1" is what was taken back of "s1" the first time


def is_taken_back(session_id: str) -> bool:
    """Whether this is no session of its own, but the record of what was taken back of one."""
    return TAKEN_BACK in session_id


class Execution(NamedTuple):
    execution_id: str
    workflow_id: str
    version_hash: str
    status: ExecutionStatus
    input_json: str
    max_attempts: int
    effect: str  # one of wire.EFFECTS
    timeout_ms: int | None  # of one attempt
    error: str | None
    error_code: ErrorCode | None
    created_at_ms: int
    ended_at_ms: int | None
    labels_json: str | None = None  # see wire.LABELS
    parent_node: str | None = None  # of a child: the node of its parent that waits for it
    awaited_by_json: str | None = None  # a list of the ids of the attempts that were parked until it ends

    @property
    def session_id(self) -> str:
        return session_of(self.execution_id)

    @property
    def parent_id(self) -> str:
        """Of a child."""
        return self.execution_id.rpartition("/")[0]


class Task(NamedTuple):
    task_key: str  # from `new_task_key`; "{task_key}.{attempt}" is the task id on the wire
    execution_id: str
    workflow_id: str
    version_hash: str
    node_id: str
    node_type: str
    status: TaskStatus
    attempt: int  # attempts begun so far
    attempt_limit: int
    # READY: not to be claimed before; WAITING: when a timer fires, the time to answer is over, or it is parked until.
    available_at_ms: int = 0
    worker_id: str | None = None
    lease_ms: int | None = None
    lease_expires_at_ms: int | None = None
    error: str | None = None  # FAILED: why
    error_code: ErrorCode | None = None
    part: int | None = None  # of an item: which it is, from 0 on; of its MAP: how many are DONE
    parts: int | None = None  # of both: how many items there are

    @property
    def task_id(self) -> str:
        """The id of the current attempt."""
        return f"{self.task_key}.{self.attempt}"


@dataclass(frozen=True)
class Approval:
    """One that a person is asked for."""

    execution_id: str
    node_id: str
    workflow_id: str
    since_ms: int


@dataclass(frozen=True)
class Stop:
    """That a session is stopped: nothing of it begins."""

    at_ms: int
    by: str  # who says so; may be empty
    reason: str  # may be empty


@dataclass(frozen=True)
class Rebuild:
    """What is done with a large session in many transactions: it is not whole before the last one, and nothing of it
    begins."""

    session_id: str
    other: str  # the session that it is forked from, or what becomes the record of what is taken back of it
    at_ms: int  # when that was begun
    by: str  # who says so; may be empty
    first: int = 0  # what is taken back, as in a span
    end: int = 0

    @property
    def is_fork(self) -> bool:
        return not is_taken_back(self.other)


class Span(NamedTuple):
    """Executions of a session, by the order in which those of all sessions were started."""

    session_id: str
    first: int
    end: int  # the first that is not of it


@dataclass(frozen=True)
class Session:
    """What is known of a session."""

    session_id: str
    began_at_ms: int
    heard_at_ms: int  # when an execution of it began or ended last
    stop: Stop | None
    rebuild: Rebuild | None
    executions: int
    kinds: dict[str, int]  # by the kind that their labels say: how many executions
    recorded: dict[str, int]  # likewise, of those that are COMPLETED
    runs: int  # how many different ones the labels name
    numbers: dict[str, int]  # the sums of the numbers in the labels
    unknown: list[str]  # ids of executions whose outcome is unknown, a few
    asks: list[str]  # ids of executions that wait for a person, a few
    waiting: list[str]  # ids of executions of which a task could be claimed and none runs, a few
    waits_for_worker: bool  # and not all of these for their program
    running: list[str]  # ids of executions of which a task runs, a few
    parked: list[str]  # ids of executions of which a task is parked and none runs or could, a few
    last: Execution | None  # the one that was started last
    end: str | None  # id of the last one of the kind "run" that is COMPLETED: how a run ended
    forked_from: dict[str, Any] | None  # what its ExecutionForked says, and "forked_at_ms"
    taken_back: list[str]  # under which ids what was taken back of it can be read


@dataclass(frozen=True)
class EventRow:
    at_ms: int
    type: Event
    node_id: str | None
    attempt: int | None
    data: dict[str, Any]


class Reader(Protocol):
    """What a read may ask. `None` stands for "there is none"."""

    def workflow(self, workflow_id: str, version_hash: str) -> Workflow | None:
        """One version; the one registered last when `version_hash` is empty."""

    def workflows(self, workflow_id: str) -> list[Workflow]:
        """All versions, the newest first, each with its number of RUNNING executions; of every workflow for ""."""

    def workflow_ids(self, version_hash: str) -> list[str]:
        """The workflows that have a version of this hash."""

    def count_workflows(self) -> int:
        """How many versions there are of all workflows."""

    def execution(self, execution_id: str) -> Execution | None: ...

    def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        """The newest first; an empty filter lets all pass."""

    def sessions(self, prefix: str, limit: int) -> list[Session]:
        """Those whose id begins with `prefix`, or with a "/" at its end that one; the last to begin something first.

        What was taken back of a session is among them only when `prefix` says so.
        """

    def first_session(self, session_id: str) -> str:
        """The session that it was first forked from; itself when it is no fork."""

    def taken_back(self, session_id: str) -> list[str]:
        """Under which ids what was taken back of a session can be read."""

    def turns(self, session_id: str) -> list[tuple[int, str]]:
        """(order, id) of the executions that their labels call a turn, in the order in which they were started."""

    def order_of(self, execution_id: str) -> int | None:
        """Where an execution is in the order in which those of all sessions were started."""

    def before(self, prefix: str, order: int, limit: int) -> list[tuple[int, str]]:
        """(order, id) of the executions under a prefix that were started before that one, the newest first."""

    def after(self, prefix: str, order: int, limit: int, *, is_near: bool) -> list[tuple[int, str]]:
        """(order, id) of those that were started after that one, the oldest first. `is_near`: few of all were."""

    def named(self, orders: Collection[int]) -> dict[int, str]:
        """The ids of the executions of these orders, of those that there are."""

    def under_way(self, span: Span) -> list[Execution]:
        """Those that have not ended, or of which a task is open."""

    def orders(self, span: Span) -> list[int]:
        """Theirs, the first first."""

    def ended(self, span: Span, orders: Collection[int] | None = None) -> list[tuple[int, int]]:
        """(order, mark) of those of which nothing is under way, or of those of them that have these orders.

        The mark of one that is COMPLETED is 0 for good; that of another one grows with everything that happens to it.
        """

    def would_happen_again(self, orders: Collection[int]) -> list[tuple[int, str]]:
        """(order, id) of those that have begun something that happens once, or were approved."""

    def longest_id(self, span: Span) -> int:
        """How many characters the longest of their ids has; 0 when there is none."""

    def knows_session(self, session_id: str) -> bool:
        """Whether an execution of it was ever started."""

    def is_larger(self, session_id: str, than: int) -> bool:
        """Whether it has more executions than that."""

    def stop_of(self, session_id: str) -> Stop | None:
        """That a session is stopped, or None when it is not."""

    def hindrances(self, session_id: str) -> tuple[Stop | None, Rebuild | None]:
        """Why nothing of a session begins."""

    def rebuilds(self) -> list[tuple[Rebuild, int]]:
        """All that is done in many transactions, and when each last came on."""

    def count_running(self, prefix: str, limit: int) -> int:
        """How many RUNNING executions' ids begin with `prefix`, counted up to `limit`."""

    def ended_before(self, at_ms: int, prefix: str, after_seq: int, limit: int) -> list[tuple[int, str]]:
        """(seq, id) of executions that ended by `at_ms` and are done with, the oldest after `after_seq` first.

        One with a task that still runs is not, nor one whose outcome is unknown, as it waits for a person's word; if it
        was taken back it does not.
        """

    def outputs(self, execution_id: str, nodes: Collection[str] | None = None) -> dict[str, str]:
        """The output's JSON text of every node that is DONE, or of those of these, in the order they were scheduled."""

    def child(self, execution_id: str, node_id: str) -> Execution | None:
        """The execution that this node has started."""

    def item_outputs(self, execution_id: str, map_id: str) -> list[str]:
        """Of the items of a MAP that are DONE, in their order."""

    def item(self, task_key: str) -> str:
        """The JSON text of the item of a MAP that this task is for."""

    def ready_item(self, version_hash: str, workflow_ids: Collection[str]) -> str | None:
        """The id of an execution of these workflows of which the task for an item is READY."""

    def journal(self, prefix: str, after: str, limit_chars: int) -> tuple[dict[str, dict[str, str]], str]:
        """The outputs of COMPLETED executions whose ids begin with `prefix`, by id, in the order of ids.

        Those that follow the id `after`, and about as many as `limit_chars` allow, but whole executions, and one at
        the least. Returns also where to go on: the id of the last.
        """

    def tasks(self, execution_id: str) -> list[Task]:
        """In the order they were scheduled."""

    def node_task(self, execution_id: str, node_id: str) -> Task | None: ...

    def count_tasks(self) -> dict[tuple[str, str], int]:
        """How many tasks are open: `{(status, node type): count}`, without those that are none."""

    def task(self, task_key: str) -> Task | None: ...

    def events(self, execution_id: str) -> list[EventRow]:
        """In the order they happened."""

    def count_events(self, execution_id: str) -> int: ...

    def expired(self, now_ms: int) -> list[Task]:
        """RUNNING tasks whose lease ended at or before `now_ms`."""

    def approvals(self, limit: int) -> list[Approval]:
        """The approvals that are WAITING, the longest first."""

    def next_timer(self) -> int | None:
        """When the first of the WAITING timers fires, of the WAITING approvals has its deadline, or of what is parked
        goes on."""

    def due(self, now_ms: int, limit: int) -> list[Task]:
        """WAITING timers that fire at or before `now_ms`, approvals whose deadline is by then, and what is parked until
        then, the first first.

        What is available at 0 has no such time.
        """

    def held(self, worker_id: str) -> list[Task]:
        """RUNNING tasks of this worker, in the order they were scheduled."""

    def holders(self, prefix: str) -> list[str]:
        """The workers that have RUNNING tasks, of those whose ids begin so."""


class Transaction(Reader, Protocol):
    """What a write may do besides. Moves that `states` does not allow change nothing and return False."""

    def add_workflow(self, workflow: Workflow) -> None: ...

    def make_latest(self, workflow_id: str, version_hash: str) -> None:
        """Make a version that is known the one registered last."""

    def add_execution(self, execution: Execution) -> None:
        """Its session is heard of by it."""

    def label(self, execution_id: str, labels_json: str) -> None:
        """Say anew what an execution is."""

    def set_stop(self, session_id: str, stop: Stop | None) -> None:
        """Stop a session that is known, or let it go on."""

    def rename_holder(self, worker_id: str, to: str) -> None:
        """The RUNNING tasks of this worker are those of another one."""

    def set_rebuild(self, rebuild: Rebuild, now_ms: int) -> None:
        """This is done with its session, and has just come on."""

    def end_rebuild(self, session_id: str) -> None:
        """The session is whole."""

    def take_back(self, session_id: str, orders: Collection[int], to: str, stop: Stop) -> None:
        """Make these executions of a session, with their tasks and events, those of the session `to`, which is stopped.

        Each tells it by an event.
        """

    def delete_empty(self, session_id: str) -> None:
        """Forget a session that has no execution any more, if it is not stopped."""

    def copy(self, session_id: str, orders: Collection[int], to: str, at_ms: int, data: dict[str, Any]) -> None:
        """Copy these executions of a session, with their tasks and events, into the session `to`.

        Each copy tells it by an event with this data.
        """

    def add_session(self, session_id: str, at_ms: int) -> None: ...

    def move_execution(
        self,
        execution_id: str,
        to: ExecutionStatus,
        *,
        error: str | None = None,
        error_code: ErrorCode | None = None,
        ended_at_ms: int | None = None,
    ) -> Execution | None:
        """The execution as it is then, or None when that is no move of it."""

    def set_awaited_by(self, execution_id: str, awaited_by_json: str) -> None:
        """Say which attempts are parked until it ends."""

    def set_execution_error(self, execution_id: str, error: str, error_code: ErrorCode) -> None:
        """Say anew why a FAILED execution failed."""

    def declare(self, execution_id: str, max_attempts: int, effect: str, timeout_ms: int | None) -> None:
        """Change what attempts there may be from now on: each task gets as many more or fewer as the execution.

        One that is READY has one left at the least.
        """

    def delete_execution(self, execution_id: str) -> None:
        """Forget an execution, its tasks and its events."""

    def new_task_key(self) -> str:
        """One that no task has had, nor can be guessed; tasks are scheduled in the order of their keys."""

    def add_task(self, task: Task, item_json: str | None = None) -> None: ...

    def move_task(
        self,
        task_key: str,
        to: TaskStatus,
        *,
        output_json: str | None = None,
        available_at_ms: int = 0,
        attempt_limit: int | None = None,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> bool:
        """An `attempt_limit` of None stays as it is; the lease ends with every move."""

    def finish(self, task_key: str, attempt: int, output_json: str) -> Task | None:
        """The attempt that runs is DONE: the task, or None when this is not the attempt that runs, or its node is of a
        type whose result means something to the server: one of ANSWERING."""

    def wait_for_items(self, task_key: str, parts: int) -> None:
        """A WAITING MAP has so many items from now on, and none of them is DONE."""

    def count_item(self, execution_id: str, map_id: str) -> Task | None:
        """One more item of this MAP is DONE: its task as it is then."""

    def cancel_waiting(self, execution_id: str) -> None:
        """Every task of it that is READY or WAITING is CANCELLED."""

    def ready_again(self, execution_id: str, max_attempts: int) -> None:
        """Every task of it that is FAILED or CANCELLED is READY, with so many attempts more."""

    def settle_failure(self, task_key: str, error: str) -> None:
        """Say of a FAILED task whose outcome was unknown that it failed, and why."""

    def say_failure(self, task_key: str, error: str, error_code: ErrorCode) -> None:
        """Say anew why a FAILED task failed."""

    def claim(
        self,
        version_hash: str,
        workflow_ids: Collection[str],
        worker_id: str,
        lease_ms: int,
        now_ms: int,
        execution_id: str | None = None,
        *,
        with_items: bool = True,
    ) -> Task | None:
        """The READY task of these workflows that was scheduled first, now RUNNING with one attempt more.

        None of a session that is stopped, nor for an item of a MAP unless `with_items`. With `execution_id`, of this
        execution alone.
        """

    def renew_leases(self, worker_id: str, now_ms: int, task_keys: Collection[str] | None = None) -> None:
        """This worker's RUNNING tasks, or those of them in `task_keys`, may be silent for a whole lease from now."""

    def touch(self) -> None:
        """Write something that changes nothing: whether it can be committed tells whether anything can."""

    def restart_clock(self, now_ms: int, delay_limit_ms: int) -> None:
        """From now every lease has its whole time again, and no READY task waits longer than the limit."""

    @abstractmethod
    def shift_clock(self, by_ms: int) -> None:
        """Leases end so much later, and retries are due: the clock was set. Timers go by the time of day."""

    def add_event(
        self,
        execution_id: str,
        at_ms: int,
        type: Event,
        node_id: str | None = None,
        attempt: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None: ...


class Store(ABC):
    metrics: Metrics  # of what it has committed
    where: str  # its file, or its URL without a password
    is_shared: bool = False  # other servers may have it at the same time
    server: str = ""  # which one this is of those; there is none like it

    lacks_room: StoreUnavailable | None = None  # why it can only be read, while its disk is full
    # Told of the events of each commit: (execution id, time, type, node, attempt, data as JSON).
    watch: Callable[[Sequence[tuple[Any, ...]]], None] | None = None

    def time_of_day_ms(self) -> int:
        """By which its servers go."""
        return time.time_ns() // 1_000_000

    def listen(self, hear: "Callable[[Sequence[list[Any]]], None]") -> None:
        """From now on `hear` is called, in this event loop, with what other servers `tell`.

        It is called with nothing when some of it may have been lost.
        """
        raise NotImplementedError

    def connections(self) -> dict[str, int]:
        """That this server has with its database: how many are {"open", "busy"}. A file needs none."""
        return {"open": 0, "busy": 0}

    def notification_lag_seconds(self) -> float:
        """How long it takes at the moment to `hear` what a server has told."""
        return 0.0

    def tell(self, words: "Sequence[list[Any]]") -> None:
        """Say something to the other servers, soon. It may be lost."""
        raise NotImplementedError

    async def servers(self) -> set[str]:
        """Those that have it, as one that is paused does, but none that has died, or whose connections have ended."""
        raise NotImplementedError

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` as one transaction. Raises what `work` raised (then nothing is kept), or StoreUnavailable."""
        return await self.begin_write(work)

    @abstractmethod
    def begin_write(
        self,
        work: Callable[[Transaction], T],
        *,
        executed: Callable[[], bool] | None = None,
        settled: Callable[[BaseException | None], None] | None = None,
        is_patient: bool = False,
        is_long: bool = False,
        about: Collection[str] = (),
        about_tasks: Collection[str] = (),
    ) -> "asyncio.Future[T]":
        """`write`, begun at once: works are run in the order in which they were begun.

        `executed` is called when `work` has returned. Where that is before its commit, it may yet be lost. It returns
        whether something has begun by it; if so, nobody waits for the commit of a write that `is_patient`, and that may
        come a few milliseconds later. `settled` is called once it is synced, or with the error, also when the caller
        has been cancelled meanwhile; a caller who is cancelled before `work` was begun has it not run at all.
        A `work` that `is_long` is run in a thread: reads are made meanwhile, and other writes wait.

        `about` are ids of executions (or "{session}/") and `about_tasks` keys of tasks whose sessions `work` changes:
        no other server changes these meanwhile. What `claim` finds is for this one as well.
        """

    @abstractmethod
    async def read(self, work: Callable[[Reader], T], *, is_look: bool = False) -> T:
        """What `work` returns, which sees one state of the store. No other read waits for one that `is_look`: what
        people ask for can be large."""

    @abstractmethod
    async def inspect(self, now_ms: int) -> dict[str, Any]:
        """What a person asks who wonders what is wrong. Durations are in milliseconds, lists cut after a few entries.

        database    {"path", "size_bytes", "free_bytes" of its disk or None, "damage": what is wrong in it, or None,
                    "log_problem": why what is committed cannot leave its log, or None}; of PostgreSQL besides
                    "clock_ahead_ms" of this machine's, "notification_lag_ms", and, when it answers, "connections" of
                    all programs and the "connections_limit"; when it does not, "problem"
        executions  {state: how many}, see states.State
        stopped     [{"session_id", "at_ms", "by", "reason"}], the sessions that are
        held        {worker id: how many RUNNING tasks}
        waiting     [{"workflow_id", "version_hash", "local": it is for the process that has begun it, "tasks": how
                    many are READY, "execution_id": of the first, "since_ms": how long that has been so}]
        running     [{"execution_id", "node_id", "attempt", "worker_id", "silent_ms", "lease_ms"}], the quietest first
        expired     [{"execution_id", "node_id", "attempt", "ago_ms", "error"}], of executions that still run
        unknown     [execution id], of those whose outcome is unknown

        Of a damaged database only the first may be there.
        """

    @abstractmethod
    async def compact(self) -> int:
        """Give back to the disk what deleted rows took. Returns how many bytes that was."""

    @abstractmethod
    async def close(self) -> None: ...
