"""Tools whose calls a worker executes: `durable_tool` takes the place of `function_tool`."""

import copy
import functools
import inspect
import time
import typing
from collections.abc import Callable
from typing import Any, Literal, overload

from agents import FunctionTool, RunContextWrapper, default_tool_error_function, function_tool
from agents.tool_context import ToolContext

from nexum_agents import seams
from nexum_agents.calls import (
    ended_as,
    not_recorded,
    parsed_arguments,
    record_of,
    shown_arguments,
    unknown_outcome,
    value_of,
    why,
)
from nexum_agents.clients import nexum_client
from nexum_agents.consent import APPROVED, given, with_words
from nexum_agents.errors import DurableCallError, LimitReached, NotRecorded, ToolFailed, ToolRejected
from nexum_agents.events import CallEvent
from nexum_agents.parking import busy, waiting
from nexum_agents.sessions import Effect, Place, Scope, current_scope, root_of
from nexum_agents.values import returns_of
from nexum_agents.workflows import APPROVED_TOOL_CALL, NODE, TOOL_CALL, Recorded, ToolCall
from nexum_runtime import NexumError, Outcome
from nexum_runtime.wire import ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT, EFFECTS, TIMEOUT_MS_LIMIT

TIMEOUT_SECONDS = 120.0  # for one call, from its submission to its result
ATTEMPT_SECONDS = 60.0  # for one attempt of a durable tool
PAUSE_SECONDS = 30.0  # between two attempts, at most


async def submit_tool_call(
    tool_name: str,
    tool_args: dict[str, Any],
    session_id: str,
    timeout: float = TIMEOUT_SECONDS,
    *,
    effect: Effect = "idempotent",
    max_attempts: int | None = None,
    attempt_timeout: float | None = None,
    needs_approval: bool = False,
) -> Any:
    """Have a worker make one call, and return its result: from the store if this session has it already.

    `tool_args` is anything JSON can carry. `timeout` is how many seconds to wait here for the result: a server that
    restarts meanwhile is waited for. `attempt_timeout` is how many seconds one attempt may take. For `effect` and
    `max_attempts` see `durable_tool`. With `needs_approval` it waits, for as long as that takes, until a person says
    yes (`nexum approve`); what that person says besides is not in the result. Inside a block of this session, each call
    of it that is alike is one more call; outside of any it is always the first one.
    Raises ToolFailed with the tool's own words, ToolRejected when a person said no, OutcomeUnknown when a tool with
    `effect="once"` may or may not have run, DurableCallError when Nexum could not carry the call.
    """
    scope = current_scope()
    if scope is None or scope.session.session_id != session_id:
        scope = root_of(session_id)
    found = await _submit(
        place_of_call(scope, tool_name, tool_args, needs_approval=needs_approval),
        tool_name,
        tool_args,
        timeout,
        needs_approval=needs_approval,
        effect=effect,
        max_attempts=max_attempts,
        attempt_timeout=attempt_timeout,
    )
    return value_of(scope, tool_name, found)


def place_of_call(
    scope: Scope, tool_name: str, asked: Any, number: int | None = None, *, needs_approval: bool = False
) -> Place:
    """What a call by a worker is; by default the next one of those alike in its scope."""
    number = scope.number_of_call("", tool_name, asked) if number is None else number
    return scope.place("approved call" if needs_approval else "call of a worker", tool_name, asked, number)


async def _submit(
    place: Place,
    tool_name: str,
    asked: dict[str, Any] | str,
    timeout: float,
    *,
    needs_approval: bool,
    effect: Effect,
    max_attempts: int | None,
    attempt_timeout: float | None,
) -> Recorded:
    """What is recorded of a call, once it is. Raises as `submit_tool_call` does."""
    scope, session = place.scope, place.scope.session
    started = time.monotonic()

    def tell(kind: Any, saved_ms: int = 0, detail: str = "") -> None:
        elapsed_ms = round((time.monotonic() - started) * 1000)
        shown = shown_arguments(asked)
        session.tell(CallEvent(kind, place.execution_id, tool_name, shown, elapsed_ms, saved_ms, detail))

    async def execute(restart: Literal["failed", "unknown"] | None) -> Outcome:
        with waiting(place.execution_id) if needs_approval else busy():
            return await nexum_client().execute(
                APPROVED_TOOL_CALL if needs_approval else TOOL_CALL,
                ToolCall(tool_name=tool_name, tool_args=asked).model_dump(),
                execution_id=place.execution_id,
                restart=restart,
                effect=effect,
                max_attempts=max_attempts,
                attempt_timeout=attempt_timeout,
                takes_args=needs_approval,
                timeout=timeout,
                labels=place.labels(asked),
                on_wait=lambda waiting: tell("waiting", detail=waiting),
            )

    try:
        if (outputs := await session.recorded(place.execution_id)) is not None:
            result = record_of(scope, tool_name, outputs, NODE)
            tell("cached", saved_ms=result.duration_ms)
            return result
        refusal: DurableCallError | None = None
        if session.is_cached_only:
            refusal = not_recorded(scope, tool_name, asked)
        else:
            refusal = await scope.limit_reached("calls")
        if refusal is not None:
            ended = await ended_as(place)
            if ended is None or not (session.is_cached_only or _is_final(ended, effect, scope)):
                raise scope.stop(refusal)
            outcome = ended
        else:
            with scope.making(place, here=False) as making:
                tell("started")
                outcome = await execute(restart=None)
                failed_before = outcome.status != "COMPLETED" and outcome.before == outcome.status
                if failed_before and not scope.was_told:
                    # A call that failed in an earlier run deserves another try; one that happens once, if it never
                    # began.
                    outcome = await execute(restart="failed" if effect == "once" else "unknown")
                if outcome.status == "COMPLETED" and outcome.before != "COMPLETED":
                    session.limits.use(making)
    except (NotRecorded, LimitReached) as error:
        tell("failed", detail=str(error))
        raise
    except NexumError as error:
        tell("failed", detail=str(error))
        raise scope.stop(error) from None
    if outcome.error_code == "OUTCOME_UNKNOWN" and effect == "once":
        tell("unknown", detail=why(outcome))
        raise unknown_outcome(tool_name, outcome)
    if outcome.error_code == "REJECTED":
        tell("rejected", detail=why(outcome))
        raise ToolRejected(rejection(tool_name, outcome))
    if outcome.status != "COMPLETED":
        tell("failed", detail=why(outcome))
        raise ToolFailed(why(outcome))
    result = record_of(scope, tool_name, outcome.outputs, NODE)
    if outcome.before == "COMPLETED" or refusal is not None:  # another process has been there since this block began
        tell("cached", saved_ms=result.duration_ms)
    else:
        tell("stored")
    return result


def _is_final(ended: Outcome, effect: Effect, scope: Scope) -> bool:
    """Whether a run is told how a call ended, and does not make it again."""
    is_unknown = effect == "once" and ended.error_code == "OUTCOME_UNKNOWN"
    return ended.status == "COMPLETED" or is_unknown or scope.was_told


def rejection(tool_name: str, outcome: Outcome) -> str:
    """What the model is told of a call that a person said no to."""
    return f"This call of {tool_name} was not made. {why(outcome)}"


class Submitter:
    """Invokes a durable tool: submits its calls instead of executing them. It knows the tool that a worker executes."""

    def __init__(self, tool: FunctionTool, function: Callable[..., Any] | None, **how: Any) -> None:
        self.tool, self.function = tool, function
        self._effect: Effect = how["effect"]
        self._attempts: int = how["attempts"]
        self._timeout: float = how["timeout"]
        self._needs_approval: bool | Callable[..., bool] = how["needs_approval"]
        self._tell_error: Any = how["tell_error"]

    async def __call__(self, context: ToolContext[Any], arguments: str) -> Any:
        scope, name = current_scope(), self.tool.name
        if scope is None:
            raise DurableCallError(
                f"The durable tool {name} was called outside of a session: "
                "put Runner.run(...) inside `with durable_session(session_id):`."
            )
        asked = parsed_arguments(arguments)
        number, scope.number = scope.number, None
        if number is not None and scope.parent is not None:  # the call was numbered where its run was
            scope = scope.parent
        try:
            asks = self._asks(asked)
            found = await _submit(
                place_of_call(scope, name, asked, number, needs_approval=asks),
                name,
                given(context, arguments).get("args", asked),
                self._attempts * (self._timeout + PAUSE_SECONDS),
                needs_approval=asks,
                effect=self._effect,
                max_attempts=self._attempts,
                attempt_timeout=self._timeout,
            )
            return self._value(scope, found)
        except DurableCallError:
            raise  # told to the model, the run would go on without Nexum
        except Exception as error:
            if self._tell_error is None:
                raise
            if isinstance(error, ToolFailed):
                return str(error)
            told = self._tell_error(context, error)
            return await told if inspect.isawaitable(told) else told

    def _asks(self, asked: dict[str, Any] | str) -> bool:
        if callable(self._needs_approval):
            return bool(self._needs_approval(**asked)) if isinstance(asked, dict) else True
        return self._needs_approval

    def _value(self, scope: Scope, found: Recorded) -> Any:
        value = value_of(scope, self.tool.name, found, returns_of(self.function))
        if (adapter := seams.output_adapter(self.tool)) is not None:
            return adapter.validate_python(value)
        return with_words(value, found.note.get(APPROVED, ""))


@overload
def durable_tool(
    function: Callable[..., Any] | FunctionTool,
    *,
    effect: Effect = ...,
    max_attempts: int | None = ...,
    timeout: float = ...,
    needs_approval: bool | Callable[..., bool] = ...,
    **function_tool_options: Any,
) -> FunctionTool: ...
@overload
def durable_tool(
    function: None = None,
    *,
    effect: Effect = ...,
    max_attempts: int | None = ...,
    timeout: float = ...,
    needs_approval: bool | Callable[..., bool] = ...,
    **function_tool_options: Any,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def durable_tool(
    function: Callable[..., Any] | FunctionTool | None = None,
    *,
    effect: Effect = "idempotent",
    max_attempts: int | None = None,
    timeout: float = ATTEMPT_SECONDS,
    needs_approval: bool | Callable[..., bool] = False,
    **function_tool_options: Any,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make the tool that `function_tool(function, **options)` makes, but have a worker execute its calls.

    `function` may be a FunctionTool. It also works as a decorator, as `function_tool` does. A worker (`serve`) finds
    the tool by its name. The JSON that the model wrote travels to the worker, and is validated there. The result is
    what `function_tool` would have told the model: a text, JSON, an image, an object of the class that the function's
    return annotation names, or the `str()` of anything else.

    `effect` says what a second attempt would do, and so what happens after a crash in the middle:

    - "read": nothing. It is tried again, up to `max_attempts` times (1 to 20, default 4).
    - "idempotent": nothing more (see `idempotency_key`). It is tried again as well.
    - "once": harm. It is attempted at most once. If its worker vanished, it took too long, or its result could not be
      recorded, every run tells the model that it may or may not have run, until the worker's late result or a person
      (`nexum resolve`) settles it. A tool that raises has failed, unless it raises `ToolError(…, unknown=True)`. A call
      that failed is attempted again only by `nexum resolve --retry`.

    `timeout` is how many seconds one attempt may take. Then an async function is cancelled. A sync function cannot be
    cancelled: its thread runs on, and what it returns is dropped.
    `needs_approval`, True or a function of the call's arguments, keeps a call from the workers until a person says yes
    to it: `nexum approve`. Other calls go on meanwhile. `nexum reject` tells the model why not.
    With `nexum approve --args` the call is made with other arguments. The model is told of these, and of a `--comment`,
    after a result that is a text, or a list of texts, images and files: `(Approved by anna: only this once)`.

    Raises TypeError for a tool whose calls cannot travel: one that takes the run context, or that is an agent.
    Raises ValueError for a bad `effect`, `max_attempts` or `timeout`.
    """
    if function is None:
        how: dict[str, Any] = {"effect": effect, "max_attempts": max_attempts, "timeout": timeout}
        return lambda given: durable_tool(given, needs_approval=needs_approval, **how, **function_tool_options)
    tell_error = function_tool_options.pop("failure_error_function", default_tool_error_function)
    plain = plain_tool(function, function_tool_options)
    name = plain.name
    if effect not in EFFECTS:
        raise ValueError(f"The effect of {name} is {effect!r}; it can be {', '.join(EFFECTS)}.")
    default, most = (1, 1) if effect == "once" else (ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT)
    attempts = default if max_attempts is None else max_attempts
    if not 1 <= attempts <= most:
        limit = "only 1, as its effect is once" if effect == "once" else f"1 to {most}"
        raise ValueError(f"max_attempts of {name} is {max_attempts}; it can be {limit}.")
    if not 0.001 <= timeout <= TIMEOUT_MS_LIMIT / 1000:
        raise ValueError(f"The timeout of {name} is {timeout:g} s; it can be 1 ms to 24 hours.")
    tool = copy.copy(plain)
    tool.on_invoke_tool = Submitter(
        plain,
        getattr(plain, "__wrapped__", None),
        effect=effect,
        attempts=attempts,
        timeout=timeout,
        needs_approval=needs_approval,
        tell_error=tell_error,
    )
    return tool


def plain_tool(function: Callable[..., Any] | FunctionTool, options: dict[str, Any]) -> FunctionTool:
    """The plain tool that is to be executed elsewhere. Raises TypeError if its calls cannot travel."""
    if isinstance(function, FunctionTool):
        if options:
            raise TypeError(f"{function.name} is a FunctionTool already. Give {min(options)} to function_tool instead.")
        if isinstance(function.on_invoke_tool, Submitter):
            raise TypeError(f"{function.name} is a durable tool already.")
        if seams.is_agent_tool(function):
            raise TypeError(f"{function.name} is an agent as a tool: it runs where the outer agent runs.")
        tool = function
    else:
        if isinstance(function, functools.partial):  # which function_tool refuses, as it has no name
            options = {"name_override": getattr(function.func, "__name__", "tool"), **options}
            function = _named_after(function)
        tool = function_tool(function, **options)
    if takes_context(getattr(tool, "__wrapped__", None)):
        raise TypeError(f"{tool.name} takes the run context, which cannot travel to a worker.")
    return tool


def _named_after(partial: "functools.partial[Any]") -> Callable[..., Any]:
    """A function that does what the partial does, with the signature that is left of its function's."""
    signature = inspect.signature(partial)
    hints = typing.get_type_hints(partial.func, include_extras=True)
    free = {n: p for n, p in signature.parameters.items() if n not in partial.keywords}
    wrapper: Any

    if inspect.iscoroutinefunction(partial.func):

        async def wrapper(*args: Any, **named: Any) -> Any:
            return await partial(*args, **named)

    else:

        def wrapper(*args: Any, **named: Any) -> Any:
            return partial(*args, **named)

    wrapper.__name__, wrapper.__doc__ = getattr(partial.func, "__name__", "tool"), partial.func.__doc__
    wrapper.__signature__ = signature.replace(parameters=list(free.values()))
    wrapper.__annotations__ = {name: hint for name, hint in hints.items() if name in free or name == "return"}
    named: Callable[..., Any] = wrapper
    return named


def takes_context(function: Any) -> bool:
    """Whether a tool's function has the run context as its first parameter."""
    if function is None:
        return False
    if not inspect.isroutine(function):
        function = function.__call__
    try:
        hints = typing.get_type_hints(function)
        first = next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError, NameError):
        return False
    hint = hints.get(first) if first else None
    hint = typing.get_origin(hint) or hint
    return inspect.isclass(hint) and issubclass(hint, RunContextWrapper)
