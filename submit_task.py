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
import inspect
import typing
from collections.abc import Callable
from typing import Any, Literal

from agents import FunctionTool, RunContextWrapper, default_tool_error_function, function_tool
from pydantic_core import to_jsonable_python

from durable_session import (
    CallEvent,
    DurableCallError,
    DurableSession,
    current_session,
    durable_session,
    nexum_client,
)
from nexum_runtime import NexumError, Outcome, ServerUnavailable
from nexum_runtime.wire import ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT, EFFECTS, TIMEOUT_MS_LIMIT
from workflow import NODE, ToolCall, ToolResult, approved_tool_call_workflow, tool_call_workflow

TIMEOUT_SECONDS = 120.0  # for one call, from its submission to its result
ATTEMPT_SECONDS = 60.0  # for one attempt of a durable tool
PAUSE_SECONDS = 30.0  # between two attempts, at most
DURABLE = "is_durable"  # an attribute of tools whose calls are recorded
WORKFLOW, APPROVED_WORKFLOW = tool_call_workflow(), approved_tool_call_workflow()

__all__ = ["CallEvent", "DurableCallError", "DurableSession", "durable_session", "durable_tool", "submit_tool_call"]

Effect = Literal["read", "idempotent", "once"]


class ToolFailed(Exception):
    """The tool ran and failed. Its own words are told to the model, and the run goes on."""


class ToolRejected(ToolFailed):
    """A person said no, and it was not run. The model is told, with the reason."""


class OutcomeUnknown(ToolFailed):
    """A tool that is attempted only once may or may not have run. So the model is told, until it is settled."""


_sessions: dict[str, DurableSession] = {}  # of calls made outside any `with durable_session(...)`


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
) -> str:
    """The result of a tool call: from the store if this session has made it before, else as soon as it is recorded.

    `tool_args` is anything JSON can carry. `timeout` is how many seconds to wait here for the result: a server that
    restarts meanwhile is waited for. `attempt_timeout` is how many seconds one attempt may take. For `effect` and
    `max_attempts` see `durable_tool`. With `needs_approval` it waits, for as long as that takes, until a person says
    yes (`nexum approve`).
    Raises ToolFailed with the tool's own words, ToolRejected when a person said no, OutcomeUnknown when a tool with
    `effect="once"` may or may not have run, DurableCallError when Nexum could not carry the call.
    """
    session = current_session()
    if session is None or session.session_id != session_id:
        session = _sessions.setdefault(session_id, DurableSession(session_id))
    content = {"needs_approval": tool_args} if needs_approval else tool_args
    execution_id = session.next_execution_id(tool_name, content)
    started = asyncio.get_running_loop().time()

    def report(kind: Any, saved_ms: int = 0, detail: str = "") -> None:
        elapsed_ms = round((asyncio.get_running_loop().time() - started) * 1000)
        session.tell(CallEvent(kind, execution_id, tool_name, tool_args, elapsed_ms, saved_ms, detail))

    async def execute(restart: Literal["failed", "unknown"] | None) -> Outcome:
        return await nexum_client().execute(
            APPROVED_WORKFLOW if needs_approval else WORKFLOW,
            ToolCall(tool_name=tool_name, tool_args=tool_args).model_dump(),
            execution_id=execution_id,
            restart=restart,
            effect=effect,
            max_attempts=max_attempts,
            attempt_timeout=attempt_timeout,
            timeout=timeout,
            on_wait=lambda waiting: report("waiting", detail=waiting),
        )

    try:
        try:
            recorded = await session.recorded(execution_id)
        except ServerUnavailable:
            recorded = None  # `execute` waits for it
        if recorded is not None:
            result = ToolResult.model_validate(recorded[NODE])
            report("cached", saved_ms=result.duration_ms)
            return result.result
        report("started")
        outcome = await execute(restart=None)
        failed_before = outcome.status != "COMPLETED" and outcome.before == outcome.status
        if failed_before and not await session.was_told(execution_id):
            # A call that failed in an earlier run deserves another try; one that happens once, if it never began.
            outcome = await execute(restart="failed" if effect == "once" else "unknown")
    except NexumError as error:
        report("failed", detail=str(error))
        raise session.stop(str(error)) from None
    if outcome.error_code == "OUTCOME_UNKNOWN" and effect == "once":
        report("unknown", detail=_why(outcome))
        raise unknown_outcome(tool_name, outcome)
    if outcome.error_code == "REJECTED":
        report("rejected", detail=_why(outcome))
        raise ToolRejected(rejection(tool_name, outcome))
    if outcome.status != "COMPLETED":
        report("failed", detail=_why(outcome))
        raise ToolFailed(_why(outcome))
    result = ToolResult.model_validate(outcome.outputs[NODE])
    if outcome.before == "COMPLETED":  # another process has been there since this run began
        report("cached", saved_ms=result.duration_ms)
    else:
        report("stored")
    return result.result


def unknown_outcome(tool_name: str, outcome: Outcome) -> OutcomeUnknown:
    """What the model is told of a call whose outcome is not known."""
    return OutcomeUnknown(
        f"This call of {tool_name} may or may not have run. Assume neither, and do not make it again: a person has "
        f"to find out first. What is known: {_why(outcome)}"
    )


def rejection(tool_name: str, outcome: Outcome) -> str:
    """What the model is told of a call that a person said no to."""
    return f"This call of {tool_name} was not made. {_why(outcome)}"


def _why(outcome: Outcome) -> str:
    return outcome.error or f"The call was {outcome.status.lower()}."


def durable_tool(
    function: Callable[..., Any],
    *,
    effect: Effect = "idempotent",
    max_attempts: int | None = None,
    timeout: float = ATTEMPT_SECONDS,
    needs_approval: bool | Callable[..., bool] = False,
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
    `needs_approval`, True or a function of the call's arguments that says so, lets no worker have a call before a
    person has said yes to it: `nexum approve`. Other calls go on meanwhile. `nexum reject` tells the model why not.

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
        session = current_session()
        if session is None:
            raise DurableCallError(
                f"The durable tool {function.__name__} was called outside of a session: "
                "put Runner.run(...) inside `with durable_session(session_id):`."
            )
        tool_args = to_jsonable_python(signature.bind(*args, **kwargs).arguments)
        asks = needs_approval(*args, **kwargs) if callable(needs_approval) else needs_approval
        return await submit_tool_call(
            function.__name__,
            tool_args,
            session.session_id,
            timeout=attempts * (timeout + PAUSE_SECONDS),
            effect=effect,
            max_attempts=attempts,
            attempt_timeout=timeout,
            needs_approval=asks,
        )

    tell = function_tool_options.pop("failure_error_function", default_tool_error_function)

    def tell_the_model(context: RunContextWrapper[Any], error: Exception) -> Any:
        if isinstance(error, DurableCallError) or tell is None:
            raise error  # without this the SDK tells the model of a hiccup, and the run goes on without Nexum
        return str(error) if isinstance(error, ToolFailed) else tell(context, error)

    tool = function_tool(submit, failure_error_function=tell_the_model, **function_tool_options)
    setattr(tool, DURABLE, True)
    return tool


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
