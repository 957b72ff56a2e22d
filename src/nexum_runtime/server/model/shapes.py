"""What service, engine and rules hand to each other."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nexum_runtime import wire
from nexum_runtime.server.model.contract import Execution, Task

WHY_CHARS = 500  # of what a session was stopped for, as other servers are told


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
    synced: bool = False  # … and begins nothing before that is on the disk
    traceparent: str = ""  # for whoever executes it
    labels_json: str = ""  # what it is, see wire.LABELS
    asks: bool = False  # its approvals are questions, see wire.QUESTION
    takes_args: bool = False  # a yes may be to other arguments, see wire.TAKES_ARGS
    deadline_ms: int | None = None  # of each of its approvals
    default: str | None = None  # the answer when that has passed
    parent_node: str | None = None  # of a child: the node of its parent that waits for it


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
class Forget:
    """A wish to take back what a session has recorded."""

    after: int = 0  # how many turns stay, if `turn` does not say from where on
    turn: str = ""  # the number or the id of the first turn that is taken back
    by: str = ""  # who says so; may be empty
    even_once: bool = False  # also what happens once and may have happened


@dataclass(frozen=True)
class Fork:
    """A wish for a new session that begins with what another one has recorded."""

    session_id: str  # the new one
    before: str = ""  # the number or the id of the first turn that it does not have
    by: str = ""  # who says so; may be empty


class Until(NamedTuple):
    """What an attempt is parked until: one of these executions has ended, or so many milliseconds are over."""

    ended: tuple[str, ...]
    ms: int | None


@dataclass(frozen=True)
class Verdict:
    """A person's word on an approval."""

    is_yes: bool
    by: str  # who says so; may be empty
    text: str  # a comment, or why not; may be empty. To a question: the answer
    args: dict[str, Any] | None = None  # yes: what it goes on with instead of what was asked for


class Claimed(NamedTuple):
    task: Task
    execution: Execution
    input_json: str  # {"input": …, "deps": {node: output}}, and "timeout_ms" and "traceparent" where there is one
    is_once: bool  # its effect must not begin before the claim is synced
    item_json: str = ""  # of a task for an item of a MAP


class Ending(NamedTuple):
    """How an execution was COMPLETED that has one task."""

    execution: Execution
    task: Task
    output_json: str


class ToStop(NamedTuple):
    """Of a task whose worker should stop, what another server needs to know."""

    task_id: str
    worker_id: str | None
    execution_id: str


@dataclass
class Notices:
    """Whom to wake once the transaction is committed."""

    ended: dict[str, Ending | None] = field(default_factory=dict)  # by execution id
    ready: set[tuple[str, str, str]] = field(default_factory=set)  # (workflow id, version hash, execution id)
    stop: list[Task | ToStop] = field(default_factory=list)  # attempts whose worker should stop
    cut: set[str] = field(default_factory=set)  # ids of those tasks that a person wants stopped at once
    stopped: dict[str, str] = field(default_factory=dict)  # execution id → why, of those whose session was stopped
    silent: set[str] = field(default_factory=set)  # workers whose leases have ended

    def clear(self) -> None:
        for noted in vars(self).values():
            noted.clear()

    def words(self) -> list[list[Any]]:
        """All of it, for other servers."""
        return [
            *(["ended", each] for each in self.ended),
            *(["ready", *each] for each in self.ready),
            *(
                ["stop", each.task_id, each.worker_id, each.execution_id, each.task_id in self.cut]
                for each in self.stop
            ),
            *(["stopped", each, why[:WHY_CHARS]] for each, why in self.stopped.items()),
            *(["silent", each] for each in self.silent),
        ]

    def hear(self, word: list[Any]) -> None:
        """What another server has said; what is not understood, a newer one's, is left out."""
        match word:
            case ["ended", str(execution_id)]:
                self.ended[execution_id] = None
            case ["ready", workflow_id, version_hash, execution_id]:
                self.ready.add((workflow_id, version_hash, execution_id))
            case ["stop", str(task_id), worker_id, execution_id, is_cut]:
                self.stop.append(ToStop(task_id, worker_id, execution_id))
                self.cut |= {task_id} if is_cut else set()
            case ["stopped", str(execution_id), str(why)]:
                self.stopped[execution_id] = why
            case ["silent", str(worker_id)]:
                self.silent.add(worker_id)
