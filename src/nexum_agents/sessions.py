"""The durable session around what runs now, and where in it that is.

    with durable_session("s1") as session:               # a block: one try at the work of the session
        result = await Runner.run(agent, "question")     # a run in it

A *scope* is a place where turns and calls are numbered: the block itself, a run in it, a call in a run (which may run
other agents), and so on, to any depth. What happens is known by its place and its content, never by its time:

    {session}/{name}/{digest of the scope, the kind and the content}/{which of those alike in this scope, from 0}

So what runs side by side is told apart by its scope, an edit of the prompt strands no call, and two processes on one
session agree. A run that ended without a result is gone on with by the next one alike in its block.
"""

import asyncio
import difflib
import hashlib
import inspect
import json
import re
import secrets
import threading
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Literal, get_args
from weakref import WeakSet

from pydantic_core import to_jsonable_python

from nexum_agents import seams
from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, LimitReached, OutcomeUnknown, ending
from nexum_agents.events import OUTCOMES, CallEvent, DurableEvent, OnEvent, Saved, TurnEvent, question_text
from nexum_agents.limits import Limits, Making
from nexum_agents.watching import Watcher
from nexum_agents.workflows import ASKED_ANEW, RUN_END, TURN_NODE
from nexum_runtime import Client, NexumError, ServerUnavailable
from nexum_runtime.logs import Log
from nexum_runtime.text import error_text, shorten
from nexum_runtime.wire import EFFECTS, LABEL_CHARS

SESSION_ID_CHARS = 64
SESSION_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{SESSION_ID_CHARS}}}")
NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9._:@=-]")
NAME_CHARS = 80  # of a name in an execution id
DIGEST_CHARS = 16
WHY_CHARS = 300  # of an error that ended a run
TURN = "model-turn"  # what a turn is called in an execution id
ANEW = "asked-anew"
RUN_END_NAME = "run-end"  # likewise, how a run ended
LABEL_KINDS = {"approved call": "call", "call of a worker": "call", "agent": "call"}  # what people call the same
NOTE_SECONDS = 5.0  # for a note that the next run can make as well
WAIT_SECONDS = 600.0  # for another process that does the very same, or for a server that is away
ALIKE = 0.8  # of two names of tools, from which on one may be a slip for the other

Effect = Literal["read", "idempotent", "once"]
SessionEffect = Literal["read", "idempotent", "once", "replay"]
Tools = Literal["run", "cached-only"]

log = Log("nexum_agents")


class DurableSession:
    """The block that `durable_session` makes.

    `session_id`, `saved`: what came from the store so far in this block, and `page_url`: where a server that serves a
    page shows this session, known from the first turn or call on.
    """

    def __init__(
        self,
        session_id: str,
        effects: Mapping[str, SessionEffect],
        *,
        turns: bool,
        tools: Tools,
        on_event: OnEvent | None,
        limits: Limits | None = None,
    ) -> None:
        check_session_id(session_id)
        if not isinstance(effects, Mapping):
            raise TypeError(f'effects is {effects!r}; it must name tools: {{"send_invoice": "once"}}.')
        for name, effect in effects.items():
            if effect not in (*EFFECTS, "replay"):
                raise ValueError(f"The effect of {name} is {effect!r}; it can be {', '.join((*EFFECTS, 'replay'))}.")
        if tools not in get_args(Tools):
            raise ValueError(f"tools is {tools!r}; it can be {', '.join(get_args(Tools))}.")
        if on_event is not None and (not callable(on_event) or inspect.iscoroutinefunction(on_event)):
            raise TypeError(
                "on_event must be a plain function, not an async one: it is called in a thread of its own. "
                "asyncio.run_coroutine_threadsafe reaches your loop from there."
            )
        self.session_id, self.effects, self.turns = session_id, dict(effects), turns
        self._watcher = Watcher(on_event) if on_event is not None else None
        self.is_cached_only = tools == "cached-only"
        self.limits = limits or Limits({})
        self._token: Token[Scope | None] | None = None
        self._is_to_be_entered = True
        self._made_at = _place_outside()
        self._begin()

    def __del__(self) -> None:
        if getattr(self, "_is_to_be_entered", False):  # as Python says of a coroutine that was never awaited
            text = f"durable_session({self.session_id!r}) was never entered: put it into a `with` statement."
            warnings.warn_explicit(text, RuntimeWarning, *self._made_at)

    def _begin(self) -> None:
        self.saved = Saved()
        self.page_url = ""
        self.block = ""  # of this try at the session's work, so that another one can be told from it
        self.first_id = self.session_id  # of the session that this one was first forked from; else it is this one
        self.turn_numbers: dict[str, int] = {}  # of this block, by execution id, from 1
        self.asked_anew: dict[str, tuple[int, str]] = {}  # by id: how often, and why
        self.recorded_turns: Counter[str] = Counter()  # by scope: the number of the last turn before this block
        self._ends: dict[str, dict[str, Any]] = {}  # how runs ended, by execution id
        self._journal: dict[str, dict[str, Any]] | None = None  # what had completed before this block: id → outputs
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._tools_met: set[str] = set()
        self._names_told: set[str] = set()
        self.root = Scope(self, None, "")
        self._outer: Scope | None = None
        self._left_elsewhere = False

    def __enter__(self) -> "DurableSession":
        if self._token is not None:
            raise DurableCallError(
                f"This block of session {self.session_id!r} is open already. "
                "Call durable_session(…) again for another block."
            )
        self._is_to_be_entered = False
        from nexum_agents import refusals  # which knows of sessions

        refusals.refuse()
        self._begin()
        self.block = secrets.token_hex(4)
        self._outer = current_scope()
        self._token = _scope.set(self.root)
        self._thread = threading.get_ident()
        _open.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        _open.discard(self)
        self._tell_of_unknown_names()
        if token is None:
            return
        try:
            _scope.reset(token)
        except ValueError:  # left in another context than entered, as generators are; there it means nothing more
            self._left_elsewhere = True

    async def __aenter__(self) -> "DurableSession":
        self.__enter__()
        try:
            await self.open()
        except BaseException:
            self.__exit__()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__()

    async def open(self) -> None:
        """Read what is recorded, once a block. Raises DurableCallError when no server answers."""
        loop = asyncio.get_running_loop()
        if self._journal is not None:
            return
        if self._opening is None or self._opening[0] is not loop:
            self._opening = loop, asyncio.Lock()
        async with self._opening[1]:  # runs that begin at the same time read it once
            if self._journal is None:
                self._take(await self._read())
                if self.limits.are_set:
                    await self._count()

    async def _read(self) -> dict[str, dict[str, Any]]:
        client = nexum_client()
        try:
            await client.check()
            return await self._journal_of(client)
        except NexumError as error:
            raise ending(error) from None

    async def _count(self) -> None:
        """Take note of what all runs of the session have used so far."""
        try:
            found = await nexum_client().session(self.session_id)
        except NexumError as error:
            raise ending(error) from None
        if found is not None:
            recorded, numbers = found["recorded"], found["numbers"]
            self.limits.begin(recorded.get("turn", 0), recorded.get("call", 0), numbers.get("tokens", 0))

    def _take(self, journal: dict[str, dict[str, Any]]) -> None:
        self._journal = journal
        for execution_id, outputs in journal.items():
            if isinstance(end := outputs.get(RUN_END.nodes[0].id), dict):
                self._ends[execution_id] = end
            elif (note := outputs.get(ASKED_ANEW.nodes[0].id)) is not None:
                self._note_anew(**note["result"])
            elif isinstance(turn := outputs.get(TURN_NODE), dict):
                scope, nth = turn.get("scope", ""), turn.get("nth", 0)
                self.recorded_turns[scope] = max(self.recorded_turns[scope], nth)

    async def _journal_of(self, client: Client) -> dict[str, dict[str, Any]]:
        while True:
            try:
                return await client.journal(f"{self.session_id}/", to_go_on=True, tell=self._is_of)
            except ServerUnavailable:  # it was there a moment ago
                await client.check(WAIT_SECONDS)

    def _is_of(self, first_id: str, page: str) -> None:
        self.first_id = first_id or self.session_id
        self.page_url = f"{page}/session?id={self.session_id}" if page else ""

    def as_first(self, id: str) -> str:
        """An id as it is in the session that this one was first forked from: what digests are made of.

        So what a fork has of another session is known by the same digests there.
        """
        return f"{self.first_id}/{_inside(id)}"

    async def recorded(self, execution_id: str) -> dict[str, Any] | None:
        """The outputs of what had completed before this block, by node; each is given once. Raises DurableCallError."""
        await self.open()
        assert self._journal is not None
        return self._journal.pop(execution_id, None)

    async def note_end(self, run: "Scope", agent: str, output: Any, error: BaseException | None = None) -> None:
        """Record how a run ended: its final output, or an error. The run has ended all the same if that fails."""
        try:
            result = to_jsonable_python(output, fallback=str, inf_nan_mode="strings")
            await self._note_end(run, agent, result, error)
        except Exception as failure:
            log.warning("How the run of %s ended could not be recorded: %s", agent, failure)

    async def _note_end(self, run: "Scope", agent: str, result: Any, error: BaseException | None) -> None:
        """One that is recorded already, as in a replay, is not recorded again.

        A run that failed and goes on ends once more, and so does one in which something else happened, as with
        another prompt, whatever it came to: its ends are numbered.
        """
        trail = f"{run.trail % (1 << 64):016x}"
        prefix, number = f"{self.session_id}/{RUN_END_NAME}/{run.key}", 0
        last: dict[str, Any] | None = None
        while (ended := self._ends.get(f"{prefix}/{number}")) is not None:
            last, number = ended, number + 1
        if last is not None and "error" not in last:
            is_same = canonical(last["result"]) == canonical(result) and last.get("trail", trail) == trail
            if error or is_same:
                return
        record: dict[str, Any] = {"result": result, "agent": agent, "duration_ms": 0, "trail": trail}
        if error is not None:
            record["error"] = shorten(error_text(error), WHY_CHARS)
        labels = {"kind": "run", "name": RUN_END_NAME, "text": agent[:LABEL_CHARS], "run": run.key}
        labels["outcome"] = "COMPLETED" if error is None else "FAILED"

        async def end() -> dict[str, Any]:
            return record

        await nexum_client().run_local(
            RUN_END,
            {"agent": agent},
            end,
            execution_id=f"{prefix}/{number}",
            restart="unknown",
            timeout=NOTE_SECONDS,
            labels=labels,
        )
        self._ends[f"{prefix}/{number}"] = record

    async def ask_anew(self, id: str, times: int, why: str) -> None:
        """Record that what is recorded under an id ended a run: the next run asks anew, and can say why."""
        note: dict[str, Any] = {"id": _inside(id), "times": times, "why": why}
        if times <= self.times_anew(id):
            return
        self._note_anew(**note)

        async def record() -> dict[str, Any]:
            return {"result": note, "duration_ms": 0}

        execution_id = f"{self.session_id}/{ANEW}/{digest(_inside(id))}/{times - 1}"
        try:
            await nexum_client().run_local(
                ASKED_ANEW, note, record, execution_id=execution_id, restart="unknown", timeout=NOTE_SECONDS
            )
        except NexumError as error:  # then the next run meets the same error, and records this
            log.warning("It could not be recorded that %s is to be asked anew: %s", id, error)

    def times_anew(self, id: str) -> int:
        return self.asked_anew.get(id, (0, ""))[0]

    def _note_anew(self, id: str, times: int, why: str) -> None:
        id = f"{self.session_id}/{_inside(id)}"  # a note of a fork, or an older one, names another session, or none
        if times > self.times_anew(id):
            self.asked_anew[id] = times, why

    def effect_of(self, tool_name: str) -> SessionEffect:
        return self.effects.get(tool_name, "idempotent")

    def meet_tools(self, names: Iterable[str]) -> None:
        """Take note of the tools that there are, and say which names in `effects` look like slips for them."""
        self._tools_met.update(names)
        for name in self._unknown_names():
            if near := difflib.get_close_matches(name, self._tools_met - self.effects.keys(), 1, ALIKE):
                self._names_told.add(name)
                log.warning("effects names %r, but no tool has that name. Did you mean %r?", name, *near)

    def _tell_of_unknown_names(self) -> None:
        for name in self._unknown_names() if self._tools_met else ():
            known = ", ".join(sorted(self._tools_met))
            log.warning("effects names %r, but no tool with that name was there. The tools were %s.", name, known)

    def _unknown_names(self) -> list[str]:
        return [name for name in self.effects if name not in self._tools_met | self._names_told]

    def tell(self, event: DurableEvent) -> None:
        """Tell who watches."""
        if event.kind == "cached":
            self.saved.add(event)
        if self._watcher is None:
            _log_event(event)
        else:
            self._watcher.tell(event)


class Scope:
    """A place where turns and calls are numbered: a block, a run, or a call inside which something runs."""

    def __init__(self, session: DurableSession, parent: "Scope | None", key: str, *, is_run: bool = False) -> None:
        self.session, self.parent, self.key, self.is_run = session, parent, key, is_run
        self.asked = ""  # of a run: its question, where there is one
        self.execution_id = ""  # of a call's scope: the call's
        self.number: int | None = None  # of a call's scope: the call's, for the tool that submits it
        self.turns = 0  # so far
        self.is_replaying = True  # no model was asked in it so far
        self.trail = 0  # of a run: the sum of the marks of all that happened in it, in whatever order
        self.stopped: DurableCallError | None = None  # of a run: why it cannot go on
        self.is_cut_short = False  # of a call: something inside ended the run
        self.last_turn: tuple[str, int] | None = None  # its id, and how often it was asked anew before
        self.tripped: list[tuple[str, int]] = []  # the guardrails' checks that ended it, likewise
        self.told_of_error = False  # of a call: a run inside ended in an error
        self.unknown: OutcomeUnknown | None = None  # of a call: a step inside that may or may not have happened
        self.models: dict[tuple[int, str], Any] = {}  # what stands for the models that it asks, by id and name
        self._jobs: set[asyncio.Task[Any]] = set()
        self._made: Counter[str] = Counter()  # by what they are: how many alike
        self._given_back: defaultdict[str, set[int]] = defaultdict(set)
        self._runs: defaultdict[str, set[int]] = defaultdict(set)  # alike runs that are under way, or ended well
        self._expected: defaultdict[tuple[str, str], deque[int]] = defaultdict(deque)  # calls of the turns so far

    def place(self, kind: str, name: str, content: Any, number: int | None = None) -> "Place":
        """What something is: its scope, kind, name and content, and its number among those alike."""
        alike = digest([self.key, kind, name, content])
        if number is None:
            number = min(self._given_back[alike], default=self._made[alike])
            if number in self._given_back[alike]:
                self._given_back[alike].remove(number)
            else:
                self._made[alike] += 1
        place = Place(self, kind, alike, number, name)
        self.run.trail += place.mark
        return place

    def give_back(self, place: "Place") -> None:
        """It was not done after all: when it is done again, it is the same."""
        self.run.trail -= place.mark
        self._given_back[place.alike].add(place.number)

    def expect(self, calls: Iterable[tuple[str, str, Any]]) -> None:
        """Number the calls of a turn, (call id, tool, arguments) each, in their order: they may begin in another."""
        for call_id, tool, arguments in calls:
            alike = canonical([tool, arguments])
            self._expected[call_id, alike].append(self._next_call(alike))

    def number_of_call(self, call_id: str, tool: str, arguments: Any) -> int:
        alike = canonical([tool, arguments])
        expected = self._expected.get((call_id, alike))
        return expected.popleft() if expected else self._next_call(alike)

    def _next_call(self, alike: str) -> int:
        self._made[alike] += 1
        return self._made[alike] - 1

    @property
    def run(self) -> "Scope":
        """The outermost run around this place, or the block."""
        scope, found = self, self
        while scope.parent is not None:
            found = scope if scope.is_run else found
            scope = scope.parent
        return found if found.is_run else scope

    def stop(self, why: str | DurableCallError | NexumError) -> DurableCallError:
        """The error that ends this run; from now on nothing begins in it.

        For an agent's tool that is an agent itself tells the outer model of whatever it raises.
        """
        if isinstance(why, str):
            why = DurableCallError(why)
        error = ending(why) if isinstance(why, NexumError) else why
        if self.run.is_run:
            self.run.stopped = type(error)(str(error))  # without its traceback
            scope: Scope | None = self
            while scope is not None and scope is not self.run:
                scope.is_cut_short, scope = True, scope.parent
        return error

    def check(self) -> None:
        """Raise DurableCallError if this run cannot go on."""
        if error := self.run.stopped:
            raise type(error)(str(error))

    async def limit_reached(self, *kinds: str) -> LimitReached | None:
        """Why the session may begin nothing new of these kinds, if so: once what has begun in this run is recorded."""
        limits = self.session.limits
        while found := limits.reached(*kinds):
            if not await limits.settled(self.run.key, self._inside_of):
                kind, used, most = found
                return LimitReached(
                    f"Session {self.session.session_id} has used {used:,} of {most:,} {kind}. Raise max_{kind} and run "
                    "it again to go on."
                )
        return None

    @property
    def _inside_of(self) -> frozenset[str]:
        """The execution ids of the calls around."""
        found, scope = set(), self
        while scope.parent is not None:
            found.add(scope.execution_id)
            scope = scope.parent
        return frozenset(found)

    def making(self, place: "Place", *, here: bool = True) -> AbstractContextManager[Making]:
        """A block in which that is made, by this process or by a worker."""
        kind = "calls" if place.is_call else "turns" if place.kind == "turn" else ""
        return self.session.limits.making(kind, self.run.key, place.execution_id, here=here)

    @property
    def was_told(self) -> bool:
        """Whether the model had been told, before this block, of what its last turn came to."""
        return self.is_replaying and self.session.recorded_turns[self.key] > self.turns

    def add_job(self, job: Coroutine[Any, Any, Any]) -> None:
        """What this run does beside, and waits for before it ends."""
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    @contextmanager
    def inside(self, place: "Place") -> "Iterator[Scope]":
        """What runs in the block runs inside that call."""
        scope = Scope(self.session, self, digest(self.session.as_first(place.execution_id)))
        scope.execution_id = place.execution_id
        token = _scope.set(scope)
        try:
            yield scope
        finally:
            _scope.reset(token)

    @asynccontextmanager
    async def running(self, name: str, content: Any) -> "AsyncIterator[Scope]":
        """What runs in the block is a run, of the agent of that name."""
        alike = digest([self.key, "run", name, content])
        taken = self._runs[alike]
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(number)  # before anything is waited for: alike runs are numbered in the order of their beginning
        run = Scope(self.session, self, digest([alike, number]), is_run=True)
        token = _scope.set(run)
        try:
            await self.session.open()
            yield run
            await asyncio.gather(*run._jobs)
        except BaseException as error:
            taken.discard(number)
            await run._ended_by(error)
            raise
        finally:
            _scope.reset(token)

    async def _ended_by(self, error: BaseException) -> None:
        blamed: dict[str, tuple[int, str]] = {}
        if seams.is_of_the_answer(error) or seams.is_of_a_guardrail(error):
            ids = [self.last_turn, *self.tripped] if seams.is_of_the_answer(error) else self.tripped
            why = shorten(error_text(error), WHY_CHARS)
            blamed = {id: (times, why) for id, times in filter(None, ids)}
        scope = self.parent
        while scope is not None and not scope.is_run:
            scope.told_of_error = True
            scope = scope.parent
        if blamed and not any(hasattr(each, _BLAMED) for each in _chain(error)):  # or a run inside is to blame
            setattr(error, _BLAMED, blamed)
        if scope is not None:  # the run around this one may go on
            return
        for each in _chain(error):
            for id, (times, why) in getattr(each, _BLAMED, {}).items():
                await self.session.ask_anew(id, times + 1, why)


class Place:
    """Something that happens in a session: its `execution_id`, and what that is made of."""

    def __init__(self, scope: Scope, kind: str, alike: str, number: int, name: str) -> None:
        self.scope, self.kind, self.alike, self.number, self.name = scope, kind, alike, number, name
        name = NOT_OF_AN_ID.sub("_", name)[:NAME_CHARS]  # the digest tells apart what looks the same by this
        self.id = f"{scope.session.session_id}/{name}/{alike}/{number}"
        self.times = scope.session.times_anew(self.id)
        self.execution_id = f"{self.id}.{self.times}" if self.times else self.id

    @property
    def mark(self) -> int:
        """A number that nothing else has in its session."""
        return int(self.alike, 16) * (self.number + 1) + self.times

    @property
    def is_call(self) -> bool:
        """Whether it is a call of a tool."""
        return LABEL_KINDS.get(self.kind, self.kind) == "call"

    def labels(self, arguments: "dict[str, Any] | str | None" = None) -> dict[str, Any]:
        """What it is, for whoever lists the executions of the session."""
        kind = LABEL_KINDS.get(self.kind, self.kind)
        run, text = self.scope.run, shown(arguments)
        labels = {"kind": kind, "name": self.name, "text": text, "run": run.key, "block": run.session.block}
        if kind == "turn":
            labels["asked"] = run.asked
        return {key: text[:LABEL_CHARS] for key, text in labels.items() if text}

    @property
    def why_anew(self) -> str:
        """Why it is not what is recorded already; "" if nothing was."""
        why = self.scope.session.asked_anew.get(self.id, (0, ""))[1]
        return f"asked anew, as its answer ended the run: {why}" if why else ""


def shown(arguments: "dict[str, Any] | str | None") -> str:
    """`"durable execution", max_results=5`: the first one by its value alone."""
    if not isinstance(arguments, dict):
        return arguments or ""
    values = [_SHOWING.encode(value) for value in arguments.values()]
    return ", ".join(
        value if n == 0 else f"{name}={value}" for n, (name, value) in enumerate(zip(arguments, values, strict=True))
    )


def _place_outside() -> tuple[str, int]:
    """The file and the line outside of this package that this is called from."""
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("nexum_agents"):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ("", 0)


_BLAMED = "_nexum_blamed"  # of an error: the ids of what is to be asked anew, how often that was done before, and why
_scope: ContextVar[Scope | None] = ContextVar("durable_scope", default=None)
_open: WeakSet[DurableSession] = WeakSet()  # the blocks that are entered now
_left_out: set[int] = set()  # the threads of which it was said that they are in no session


def durable_session(
    session_id: str,
    *,
    effects: Mapping[str, SessionEffect] | None = None,
    turns: bool = True,
    tools: Tools = "run",
    on_event: OnEvent | None = None,
    max_turns: int | None = None,
    max_calls: int | None = None,
    max_tokens: int | None = None,
) -> DurableSession:
    """Make a block in which all that the Agents SDK runs is recorded, or comes from the store.

    Use it with `with` or `async with`. Recorded are the turns of every model, function and MCP tools, guardrails,
    agents as tools, the SDK's sessions, and `durable_step`s. Run the same block again, in any process: it replays what
    is recorded, and goes on from there. Your own code around them runs again: hooks, dynamic instructions, filters.

    - `session_id` has 1 to 64 characters of `A-Za-z0-9._-`. It names one piece of work: take a new one for each new
      question.
    - `effects` says for a tool, by its name, what a second attempt would do. "read" and "idempotent" (the default)
      tools are tried again after a crash. A "once" tool is not: the model is told that it may or may not have run. A
      "replay" tool is executed in every run, for what it does to the run's context. Its own steps come from the store.
    - `turns=False` records the calls alone.
    - `tools="cached-only"` calls no tool and runs no step. One that is not recorded ends the run with NotRecorded.
      Turns are asked. Use it to try another prompt or model on a recorded session: see `fork_session`.
    - `on_event(event)` is called for every turn and call, in order and in a thread of its own. The run does not wait
      for a slow one.
    - `max_turns`, `max_calls` and `max_tokens` are limits for the whole session, over all its runs and processes. At a
      limit, what has begun is let finish, and the run ends with LimitReached. Raise the limit and run again to go on.
      A turn or a call counts from its beginning, and its tokens when it has answered: turns side by side may use more.
      What other processes use meanwhile is counted when the block is entered again.

    Raises DurableCallError for a bad `session_id`, ValueError for a bad effect, limit or `tools`, TypeError for an
    `on_event` that is async. What runs inside raises DurableCallError when Nexum cannot record it.
    """
    limits = Limits({"turns": max_turns, "calls": max_calls, "tokens": max_tokens})
    effects = {} if effects is None else effects
    return DurableSession(session_id, effects, turns=turns, tools=tools, on_event=on_event, limits=limits)


def root_of(session_id: str) -> "Scope":
    """The scope of a block of this session that nobody enters."""
    session = durable_session(session_id)
    session._is_to_be_entered = False
    return session.root


def current_scope() -> Scope | None:
    """Where in which session the caller is; None outside of any."""
    scope = _scope.get()
    while scope is not None and scope.parent is None and scope.session._left_elsewhere:
        scope = scope.session._outer
    return scope


def tell_if_left_out() -> None:
    """Say that a run is in no session, if it is in another thread than one: threads do not inherit it."""
    thread = threading.get_ident()
    if thread == threading.main_thread().ident or thread in _left_out:
        return
    for session in list(_open):
        if session._thread != thread:
            _left_out.add(thread)
            log.warning(
                "A run in thread %s is recorded in no session, while session %r is open in another thread. If it "
                "belongs there: open the session in this thread, or start it with asyncio.to_thread.",
                threading.current_thread().name,
                session.session_id,
            )
            return


def enter(scope: Scope) -> None:
    """From now on the context of the caller, a task of its own, is in this scope."""
    _scope.set(scope)


def check_session_id(session_id: str, name: str = "session_id") -> None:
    """Raise DurableCallError unless the argument of this name is 1 to 64 characters of `A-Za-z0-9._-`."""
    if not isinstance(session_id, str) or not SESSION_ID.fullmatch(session_id):
        raise DurableCallError(
            f"{name} is {session_id!r}; it must be 1 to {SESSION_ID_CHARS} characters of A-Za-z0-9._-"
        )


def _inside(id: str) -> str:
    """What an id of a turn or a call is in its session: `{name}/{digest}/{number}`, of which no part has a "/"."""
    return "/".join(id.split("/")[-3:])


def digest(value: Any) -> str:
    """16 hexadecimal digits that are the same for the same JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:DIGEST_CHARS]


def canonical(value: Any) -> str:
    """The same text for the same JSON."""
    try:
        return _ENCODER.encode(value)
    except TypeError:  # keys that cannot be sorted
        return _ENCODER.encode(_plain(value))


def _plain(value: Any) -> Any:
    """What JSON has no form for: models and data classes by their parts, and what has none by its type."""
    return to_jsonable_python(value, fallback=lambda other: type(other).__name__)


_SHOWING = json.JSONEncoder(ensure_ascii=False, default=str)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain)  # made once


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _log_event(event: DurableEvent) -> None:
    """Nobody watches, so it is logged what waits for a person, with the command that answers, and what is amiss."""
    if event.kind == "unrecorded":
        what = f"turn {event.number}" if isinstance(event, TurnEvent) else event.execution_id
        log.warning("%s is not recorded: %s", what, event.detail)
    if isinstance(event, TurnEvent) and event.kind == "started" and event.detail:
        log.info("turn %d is new: %s", event.number, event.detail)
    if event.kind == "unknown":
        log.warning(
            "%s may or may not have happened. Find out, and say: nexum resolve %s OUTCOME   with for OUTCOME %s",
            event.execution_id,
            event.execution_id,
            OUTCOMES,
        )
    if isinstance(event, CallEvent) and event.kind == "waiting" and event.detail == "answer":
        log.warning(
            "%s asks: %s Answer with: nexum answer %s 'your answer'   or: nexum reject %s --reason 'why not'",
            event.execution_id,
            question_text(event.tool_args),
            event.execution_id,
            event.execution_id,
        )
    if event.kind == "waiting" and event.detail == "approval":
        log.warning(
            "%s waits for a yes. Answer with: nexum approve %s   or: nexum reject %s --reason 'why not'",
            event.execution_id,
            event.execution_id,
            event.execution_id,
        )
