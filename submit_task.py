"""Submit one tool call to Nexum and wait for its recorded result.

`durable_tool` takes the place of `@function_tool`:

    agent = Agent(name="Researcher", tools=[durable_tool(web_search)])
    with durable_session("my-session"):
        result = await Runner.run(agent, question)

Every call the agent makes is executed by worker.py and recorded by Nexum before the agent sees it. Run the same
session again, and each call that had completed comes back from the store.
"""

import asyncio
import functools
import hashlib
import inspect
import os
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

from agents import FunctionTool, RunContextWrapper, default_tool_error_function, function_tool
from agents.exceptions import AgentsException
from pydantic_core import to_jsonable_python

from nexum_runtime import Client, NexumError, Outcome
from nexum_runtime.wire import (
    ATTEMPTS_DEFAULT,
    ATTEMPTS_LIMIT,
    DEFAULT_ADDRESS,
    EFFECTS,
    TIMEOUT_MS_LIMIT,
    canonical_json,
)
from workflow import NODE, ToolCall, ToolResult, tool_call_workflow

TIMEOUT_SECONDS = 120.0  # for one call, from its submission to its result
ATTEMPT_SECONDS = 60.0  # for one attempt of a durable tool
PAUSE_SECONDS = 30.0  # between two attempts, at most
SESSION_ID_CHARS = 64
SESSION_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{SESSION_ID_CHARS}}}")
NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9._:@=-]")
NAME_CHARS = 80  # of a tool's name in an execution id
WORKFLOW = tool_call_workflow()

Effect = Literal["read", "idempotent", "once"]


class DurableCallError(AgentsException):
    """Nexum could not carry a call: no server, no result in time, a refused id. It stops the run."""


class ToolFailed(Exception):
    """The tool ran and failed. Its own words are told to the model, and the run goes on."""


class OutcomeUnknown(ToolFailed):
    """A tool that is attempted only once may or may not have run. So the model is told, until it is settled."""


@dataclass(frozen=True)
class CallEvent:
    """What a durable session tells about one of its calls."""

    kind: Literal["started", "waiting", "stored", "cached", "failed", "unknown"]
    execution_id: str
    tool_name: str
    tool_args: dict[str, Any]
    elapsed_ms: int = 0  # since the call was submitted
    saved_ms: int = 0  # cached: what the tool took when it ran
    detail: str = ""  # failed or unknown: why; waiting: for a "server", a "worker" that takes it, or the "result"


def check_session_id(session_id: str) -> None:
    """Raise DurableCallError unless it is 1 to 64 of `A-Za-z0-9._-`."""
    if not SESSION_ID.fullmatch(session_id):
        raise DurableCallError(f"SESSION_ID is {session_id!r}; it must be 1 to {SESSION_ID_CHARS} of A-Z a-z 0-9 . _ -")


@dataclass
class DurableSession:
    """One run of a session: identical calls are counted from 0, so a run again finds every call of the run before."""

    session_id: str
    on_event: Callable[[CallEvent], None] = lambda event: None
    repeats: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        check_session_id(self.session_id)

    def next_execution_id(self, tool_name: str, tool_args: dict[str, Any]) -> str:
        """The identity of a call: its session, tool, arguments, and which of the identical calls of this run it is."""
        digest = hashlib.sha256(canonical_json([tool_name, tool_args]).encode()).hexdigest()[:16]
        name = NOT_OF_AN_ID.sub("_", tool_name)[:NAME_CHARS]  # the digest tells apart what looks the same by this
        call = f"{self.session_id}/{name}/{digest}"
        self.repeats[call] += 1
        return f"{call}/{self.repeats[call] - 1}"


_current: ContextVar[DurableSession | None] = ContextVar("durable_session", default=None)
_sessions: dict[str, DurableSession] = {}  # of calls made outside any `with durable_session(...)`
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()


@contextmanager
def durable_session(
    session_id: str, on_event: Callable[[CallEvent], None] = lambda event: None
) -> Iterator[DurableSession]:
    """Make the durable tool calls inside belong to `session_id`, 1 to 64 of `A-Za-z0-9._-` (else DurableCallError)."""
    session = DurableSession(session_id, on_event)
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def nexum_client() -> Client:
    """The client of this event loop; NEXUM_ADDRESS says where the server is."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = Client(os.environ.get("NEXUM_ADDRESS", DEFAULT_ADDRESS))
    return _clients[loop]


async def submit_tool_call(
    tool_name: str,
    tool_args: dict[str, Any],
    session_id: str,
    timeout: float = TIMEOUT_SECONDS,
    *,
    effect: Effect = "idempotent",
    max_attempts: int | None = None,
    attempt_timeout: float | None = None,
) -> str:
    """The result of a tool call: from the store if this session has made it before, else as soon as it is recorded.

    `tool_args` is anything JSON can carry. `timeout` is how many seconds to wait here for the result: a server that
    restarts meanwhile is waited for. `attempt_timeout` is how many seconds one attempt may take. For `effect` and
    `max_attempts` see `durable_tool`.
    Raises ToolFailed with the tool's own words, OutcomeUnknown when a tool with `effect="once"` may or may not have
    run, DurableCallError when Nexum could not carry the call.
    """
    session = _current.get()
    if session is None or session.session_id != session_id:
        session = _sessions.setdefault(session_id, DurableSession(session_id))
    execution_id = session.next_execution_id(tool_name, tool_args)
    started = asyncio.get_running_loop().time()

    def report(kind: Any, saved_ms: int = 0, detail: str = "") -> None:
        elapsed_ms = round((asyncio.get_running_loop().time() - started) * 1000)
        session.on_event(CallEvent(kind, execution_id, tool_name, tool_args, elapsed_ms, saved_ms, detail))

    report("started")
    try:
        outcome = await nexum_client().execute(
            WORKFLOW,
            ToolCall(tool_name=tool_name, tool_args=tool_args).model_dump(),
            execution_id=execution_id,
            # A call that failed in an earlier run deserves another try; one that happens once, if it never began.
            restart="failed" if effect == "once" else "unknown",
            effect=effect,
            max_attempts=max_attempts,
            attempt_timeout=attempt_timeout,
            timeout=timeout,
            on_wait=lambda waiting: report("waiting", detail=waiting),
        )
    except NexumError as error:
        report("failed", detail=str(error))
        raise DurableCallError(str(error)) from None
    if outcome.error_code == "OUTCOME_UNKNOWN" and effect == "once":
        report("unknown", detail=_why(outcome))
        raise OutcomeUnknown(
            f"This call of {tool_name} may or may not have run. Assume neither, and do not make it again: a person has "
            f"to find out first. What is known: {_why(outcome)}"
        )
    if outcome.status != "COMPLETED":
        report("failed", detail=_why(outcome))
        raise ToolFailed(_why(outcome))
    recorded = ToolResult.model_validate(outcome.outputs[NODE])
    if outcome.before == "COMPLETED":
        report("cached", saved_ms=recorded.duration_ms)
    else:
        report("stored")
    return recorded.result


def _why(outcome: Outcome) -> str:
    return outcome.error or f"The call was {outcome.status.lower()}."


def durable_tool(
    function: Callable[..., Any],
    *,
    effect: Effect = "idempotent",
    max_attempts: int | None = None,
    timeout: float = ATTEMPT_SECONDS,
    **function_tool_options: Any,
) -> FunctionTool:
    """The tool that `function_tool(function, **options)` makes, with every call of it recorded by Nexum.

    `function`, sync or async, runs in the worker: worker.py finds it by its name in `tools.TOOLS`. Its arguments and
    result travel as JSON; a result that is not a str reaches the model as JSON text.

    `effect` says what an attempt that was cut short may have done to the world, and so what a crash may do to a call:
      "read"        nothing: it is tried again, up to `max_attempts` times (1 to 20, default 4)
      "idempotent"  what another attempt does no second time (see `nexum_runtime.idempotency_key`): tried again as well
      "once"        what must not be done twice: attempted at most once. If its worker vanished, it took too long, or
                    its result could not be recorded, the model is told that it may or may not have run, and so it is
                    by every run of the session until the worker's late word or a person (`nexum resolve`) settles it.
                    A tool that raises has failed, unless by `ToolError(…, unknown=True)` it says that it cannot tell.
                    A call that failed is not attempted again either, unless by `nexum resolve --retry`.
    `timeout` is how many seconds one attempt may take. An async function is cancelled then; a sync one cannot be: its
    thread runs on, and what it returns is dropped.

    Raises TypeError for a function whose calls cannot travel: one that takes the run context, or *args or **kwargs;
    ValueError for an `effect`, `max_attempts` or `timeout` out of range.
    """
    _check_that_calls_can_travel(function)
    if effect not in EFFECTS:
        raise ValueError(f"The effect of {function.__name__} is {effect!r}; it can be {', '.join(EFFECTS)}.")
    default, most = (1, 1) if effect == "once" else (ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT)
    attempts = default if max_attempts is None else max_attempts
    if not 1 <= attempts <= most:
        limit = "only 1, as its effect is once" if effect == "once" else f"1 to {most}"
        raise ValueError(f"max_attempts of {function.__name__} is {max_attempts}; it can be {limit}.")
    if not 0.001 <= timeout <= TIMEOUT_MS_LIMIT / 1000:
        raise ValueError(f"The timeout of {function.__name__} is {timeout:g} s; it can be 1 ms to 24 hours.")
    signature = inspect.signature(function)

    @functools.wraps(function)  # the schema, name and description are made from the function that is wrapped
    async def submit(*args: Any, **kwargs: Any) -> str:
        session = _current.get()
        if session is None:
            raise DurableCallError(
                f"The durable tool {function.__name__} was called outside of a session: "
                "put Runner.run(...) inside `with durable_session(session_id):`."
            )
        tool_args = to_jsonable_python(signature.bind(*args, **kwargs).arguments)
        return await submit_tool_call(
            function.__name__,
            tool_args,
            session.session_id,
            timeout=attempts * (timeout + PAUSE_SECONDS),
            effect=effect,
            max_attempts=attempts,
            attempt_timeout=timeout,
        )

    tell = function_tool_options.pop("failure_error_function", default_tool_error_function)

    def tell_the_model(context: RunContextWrapper[Any], error: Exception) -> Any:
        if isinstance(error, DurableCallError) or tell is None:
            raise error  # without this the SDK tells the model of a hiccup, and the run goes on without Nexum
        return str(error) if isinstance(error, ToolFailed) else tell(context, error)

    return function_tool(submit, failure_error_function=tell_the_model, **function_tool_options)


def _check_that_calls_can_travel(function: Callable[..., Any]) -> None:
    if isinstance(function, FunctionTool):
        raise TypeError(f"durable_tool takes the place of function_tool: give it the function {function.name} itself.")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        hint = typing.get_origin(hints.get(parameter.name)) or hints.get(parameter.name)
        if inspect.isclass(hint) and issubclass(hint, RunContextWrapper):
            raise TypeError(f"{function.__name__} takes the run context, which cannot travel to a worker.")
        if parameter.kind not in named:
            raise TypeError(f"{function.__name__} takes {parameter}; a durable tool's arguments all have names.")
