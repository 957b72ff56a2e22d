"""One run of a durable session: what its calls and turns are called, and what is told of them.

A session is all that Nexum has recorded under one SESSION_ID. Each tool call and each turn of the model is one
execution, whose id follows from its content, so that a run again finds what the run before it has recorded:

    {session}/{name}/{digest of the content}/{which of the identical ones of this run, from 0}
"""

import asyncio
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from agents import get_current_span, get_current_trace
from agents.exceptions import AgentsException

from nexum_runtime import Client
from nexum_runtime.text import duration_text
from nexum_runtime.wire import DEFAULT_ADDRESS, canonical_json

SESSION_ID_CHARS = 64
SESSION_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{SESSION_ID_CHARS}}}")
NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9._:@=-]")
NAME_CHARS = 80  # of a tool's name in an execution id
TURN = "model-turn"  # what a turn is called in an execution id


class DurableCallError(AgentsException):
    """Nexum could not carry a call or a turn: no server, no result in time, a refused id. It stops the run."""


@dataclass(frozen=True)
class CallEvent:
    """What a durable session tells about one of its tool calls."""

    kind: Literal["started", "waiting", "approved", "rejected", "stored", "cached", "failed", "unknown", "unrecorded"]
    execution_id: str
    tool_name: str
    tool_args: dict[str, Any]
    elapsed_ms: int = 0  # since the call was submitted
    saved_ms: int = 0  # cached: what the tool took when it ran
    detail: str = ""  # rejected, failed, unknown, unrecorded: why; waiting: for what (nexum_runtime.client.Waiting)


@dataclass(frozen=True)
class TurnEvent:
    """What a durable session tells about one turn of the model."""

    kind: Literal["started", "waiting", "stored", "cached", "failed", "unrecorded"]
    execution_id: str
    number: int  # of the turns of this run, from 1
    model: str
    elapsed_ms: int = 0  # since it was asked for
    saved_ms: int = 0  # cached: what the model took
    tokens: int = 0  # that the model has charged for it, now (stored) or then (cached)
    says: str = ""  # stored, cached: what the model does, in a few words
    detail: str = ""  # started: why it is not a recorded turn; failed or unrecorded: why; waiting: see CallEvent


DurableEvent: TypeAlias = CallEvent | TurnEvent
OnEvent: TypeAlias = Callable[[DurableEvent], None]


@dataclass
class Saved:
    """What came from the store, and what it had cost when it was recorded."""

    turns: int = 0
    calls: int = 0
    duration_ms: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        """`3 turns and 5 calls came from the store, which saved 4.1 s and 1,234 tokens`."""
        costs = [duration_text(self.duration_ms)] if self.duration_ms else []
        costs += [f"{self.tokens:,} tokens"] if self.tokens else []
        saved = f", which saved {' and '.join(costs)}" if costs else ""
        return f"{counted(self.turns, self.calls) or 'Nothing'} came from the store{saved}"


def counted(turns: int, calls: int) -> str:
    """`3 turns and 1 call`, or "" for none of either."""
    counts = ((turns, "turn"), (calls, "call"))
    return " and ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count)


def check_session_id(session_id: str) -> None:
    """Raise DurableCallError unless it is 1 to 64 of `A-Za-z0-9._-`."""
    if not SESSION_ID.fullmatch(session_id):
        raise DurableCallError(f"SESSION_ID is {session_id!r}; it must be 1 to {SESSION_ID_CHARS} of A-Z a-z 0-9 . _ -")


@dataclass
class DurableSession:
    """One run of a session: identical calls are counted from 0, so a run again finds every call of the run before."""

    session_id: str
    on_event: OnEvent = lambda event: None
    saved: Saved = field(default_factory=Saved)
    turns: dict[str, int] = field(default_factory=dict)  # of the model, so far in this run: their numbers, from 1
    turns_asked: int = 0  # … that did not come from the store
    stopped: str = ""  # why this run cannot go on
    _made: Counter[str] = field(default_factory=Counter)  # identical calls
    _given_back: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _journal: dict[str, dict[str, Any]] | None = None  # what had completed when it was first asked: id → outputs

    def __post_init__(self) -> None:
        check_session_id(self.session_id)

    def next_execution_id(self, name: str, content: Any) -> str:
        """The identity of a call: its session, name, content, and which of the identical calls of this run it is."""
        digest = hashlib.sha256(canonical_json([name, content]).encode()).hexdigest()[:16]
        name = NOT_OF_AN_ID.sub("_", name)[:NAME_CHARS]  # the digest tells apart what looks the same by this
        call = f"{self.session_id}/{name}/{digest}"
        if self._given_back[call]:
            number = min(self._given_back[call])
            self._given_back[call].remove(number)
        else:
            number = self._made[call]
            self._made[call] += 1
        return f"{call}/{number}"

    def give_back(self, execution_id: str) -> None:
        """The call was not made after all: when it is made again, it is this one."""
        call, _, number = execution_id.rpartition("/")
        self._given_back[call].add(int(number))

    def has_met(self, execution_id: str) -> bool:
        """Whether this execution is one of this run."""
        call, _, number = execution_id.rpartition("/")
        return int(number) < self._made[call] and int(number) not in self._given_back[call]

    async def recorded(self, execution_id: str) -> dict[str, Any] | None:
        """The outputs of an execution that had completed before this run, by node; each is given once.

        All of the session's come in one call, and from then on none is asked for. Raises NexumError.
        """
        if self._journal is None:
            journal = await nexum_client().journal(f"{self.session_id}/")
            self._journal = journal if self._journal is None else self._journal  # it may have come meanwhile
        return self._journal.pop(execution_id, None)

    def progress(self) -> dict[str, Any]:
        """How far this run is, as JSON: with it another process goes on where this one was."""
        given_back = {call: sorted(numbers) for call, numbers in self._given_back.items() if numbers}
        return {"turns": self.turns, "made": dict(self._made), "given_back": given_back}

    def go_on_from(self, progress: dict[str, Any]) -> None:
        """Be as far as that run was, or further."""
        self.turns = progress["turns"] | self.turns
        self._made |= Counter(progress["made"])
        for call, numbers in progress["given_back"].items():
            self._given_back[call].update(numbers)

    @property
    def is_replaying(self) -> bool:
        """Whether the model was not asked yet in this run: its turns came from the store so far."""
        return bool(self.turns) and not self.turns_asked

    def stop(self, why: str) -> DurableCallError:
        """The error that ends this run; from now on no model is asked in it.

        For an agent's tool that is an agent itself catches whatever that one raises, and tells it to the model.
        """
        self.stopped = why
        return DurableCallError(why)

    async def was_told(self, execution_id: str) -> bool:
        """Whether the model went on after this call had failed: then its failure is part of what is replayed.

        A failure that it has not been told of yet deserves another try, and so does one that is met after this run
        has left the recorded ones.
        """
        if not self.is_replaying:
            return False
        client = nexum_client()
        newest = await client.executions(f"{self.session_id}/{TURN}/", limit=1)
        histories = [history async for history in client.history(execution_id)]
        created_at_ms = [round(datetime.fromisoformat(turn.created_at).timestamp() * 1000) for turn in newest]
        return any(at_ms > history["ended_at_ms"] for at_ms in created_at_ms for history in histories)

    def tell(self, event: DurableEvent) -> None:
        if event.kind == "cached":
            self.saved.duration_ms += event.saved_ms
            if isinstance(event, TurnEvent):
                self.saved.turns += 1
                self.saved.tokens += event.tokens
            else:
                self.saved.calls += 1
        self.on_event(event)


_current: ContextVar[DurableSession | None] = ContextVar("durable_session", default=None)
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()


@contextmanager
def durable_session(session_id: str, on_event: OnEvent = lambda event: None) -> Iterator[DurableSession]:
    """Make the durable tool calls inside belong to `session_id`, 1 to 64 of `A-Za-z0-9._-` (else DurableCallError)."""
    with entered(DurableSession(session_id, on_event)) as session:
        yield session


@contextmanager
def entered(session: DurableSession) -> Iterator[DurableSession]:
    """Make the durable tool calls inside belong to this run of a session."""
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def current_session() -> DurableSession | None:
    """The session of the innermost `with durable_session(...)` around the caller."""
    return _current.get()


def run_of(session_id: str) -> DurableSession:
    """The current session if it has this id, else a new run of it."""
    session = current_session()
    return session if session is not None and session.session_id == session_id else DurableSession(session_id)


def nexum_client() -> Client:
    """The client of this event loop; NEXUM_ADDRESS says where the server is."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = Client(os.environ.get("NEXUM_ADDRESS", DEFAULT_ADDRESS), span_attributes=_sdk_ids)
    return _clients[loop]


def _sdk_ids() -> dict[str, str]:
    """Where the SDK's own traces have what runs now."""
    trace, span = get_current_trace(), get_current_span()
    ids = {"trace_id": trace.trace_id if trace else "", "span_id": span.span_id if span else ""}
    return {f"openai_agents.{name}": id for name, id in ids.items() if id not in ("", "no-op")}
