"""One tool made durable: this process executes its calls, as it always did, and Nexum records them.

    agent = Agent(name="Researcher", tools=[durable_local(read_file)])    # read_file is a function_tool
    with durable_session("my-session"):
        result = await Runner.run(agent, question)

No worker is needed. Run the same session again, and each call that had completed comes back from the store.
"""

import copy
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from agents import FunctionTool, ItemHelpers
from agents.tool import _FailureHandlingFunctionToolInvoker, invoke_function_tool

from durable_model import WAIT_SECONDS
from durable_session import CallEvent, DurableCallError, DurableSession, current_session, nexum_client
from nexum_runtime import LimitExceeded, NexumError
from recording import Unrecordable, from_recorded, to_recorded
from submit_task import DURABLE, Effect, OutcomeUnknown, ToolFailed, unknown_outcome
from workflow import LOCAL_CALL, Local, ToolCall

NODE = LOCAL_CALL.nodes[0].id

Call = Callable[[], Awaitable[Any]]
Around = Callable[[str, Call], Awaitable[Any]]  # given a call's arguments, as JSON text, and the call itself


def durable_local(tool: FunctionTool, *, effect: Effect = "idempotent") -> FunctionTool:
    """A copy of a tool, whose calls this process executes and Nexum records, in the session around the run.

    What the model is told is what is recorded: the result, or the words in which the tool's own failure handling told
    it of an error, or of a timeout. Of a result that is neither JSON nor one of the SDK's own objects this is its
    text, and so that is what the run gets as well. An exception that ends the run is not recorded, and the call is made
    again by the next run. `effect` is as in `durable_tool`.
    Raises TypeError for a tool with an output schema.
    """
    return recorded_tool(tool, None, effect)


def recorded_tool(tool: FunctionTool, session: DurableSession | None, effect: Effect) -> FunctionTool:
    """`session` None: the one around the call."""
    if tool.output_json_schema is not None:
        raise TypeError(
            f"The tool {tool.name} cannot be made durable: it has an output schema, and a replay cannot tell its "
            "results from its errors."
        )

    async def around(arguments: str, call: Call) -> Any:
        run = session or current_session()
        if run is None:
            raise DurableCallError(
                f"The durable tool {tool.name} was called outside of a session: "
                "put Runner.run(...) inside `with durable_session(session_id):`."
            )

        async def told() -> Any:
            result = await call()
            if isinstance(result, tuple) and ItemHelpers._convert_tool_output_as_structured(result):
                result = list(result)  # of texts, images and files, which the SDK tells alike
            return result if is_recordable(result) else str(result)  # which is what the SDK tells of it

        try:
            return await recorded(run, tool.name, parsed_arguments(arguments), told, effect)
        except OutcomeUnknown as unknown:
            return str(unknown)

    return wrapped(tool, around)


def parsed_arguments(arguments: str) -> dict[str, Any]:
    """Providers format the same arguments in different ways."""
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:  # the tool says so to the model
        parsed = arguments
    return parsed if isinstance(parsed, dict) else {"input": parsed}


def wrapped(tool: FunctionTool, around: Around) -> FunctionTool:
    """A copy of the tool with `around` around its calls, its timeouts and its failure handling."""
    durable = copy.copy(tool)
    durable.timeout_seconds = None  # a call that takes too long is cancelled inside, where this is its result

    async def invoke(context: Any, arguments: str) -> Any:
        return await around(
            arguments, lambda: invoke_function_tool(function_tool=tool, context=context, arguments=arguments)
        )

    made_by_the_sdk = isinstance(tool.on_invoke_tool, _FailureHandlingFunctionToolInvoker)
    durable.on_invoke_tool = _Invoker(tool.on_invoke_tool, invoke) if made_by_the_sdk else invoke
    setattr(durable, DURABLE, True)
    return durable


class _Invoker(_FailureHandlingFunctionToolInvoker):
    """As which the SDK has to know a tool's invoker, to look at a call's arguments before it is approved, say."""

    def __init__(self, inner: Any, invoke: Callable[[Any, str], Awaitable[Any]]) -> None:
        vars(self).update(vars(inner))
        self._invoke = invoke

    def __agents_bind_function_tool__(self, function_tool: FunctionTool) -> "_Invoker":
        return self

    async def __call__(self, ctx: Any, input: str) -> Any:
        return await self._invoke(ctx, input)


def is_recordable(value: Any) -> bool:
    try:
        to_recorded(value)
    except Unrecordable:
        return False
    return True


async def recorded(
    session: DurableSession,
    name: str,
    arguments: dict[str, Any],
    call: Call,
    effect: Effect = "idempotent",
    *,
    again: Call | None = None,
) -> Any:
    """What `call()` returns, or has returned when it is recorded: a local effect.

    `again()` takes the place of `call()` when an earlier attempt may have had its effect.
    Raises what `call()` raises, OutcomeUnknown, ToolFailed for a call that is not made again, and DurableCallError.
    """
    execution_id = session.next_execution_id(name, {"local": arguments})
    started = time.monotonic()
    made: list[tuple[Any, dict[str, Any]]] = []  # what it returned, and what is to be recorded of that

    def tell(kind: Any, **more: Any) -> None:
        elapsed_ms = round((time.monotonic() - started) * 1000)
        session.tell(CallEvent(kind, execution_id, name, arguments, elapsed_ms, **more))

    def replayed(outputs: dict[str, Any]) -> Any:
        found = Local.model_validate(outputs[NODE])
        tell("cached", saved_ms=found.duration_ms)
        return from_recorded(found.result)

    async def run(call: Call) -> dict[str, Any]:
        tell("started")
        began = time.monotonic()
        value = await call()
        record = {"duration_ms": round((time.monotonic() - began) * 1000)}
        made.append((value, record))
        record["result"] = to_recorded(value)
        return record

    try:
        if (outputs := await session.recorded(execution_id)) is not None:
            return replayed(outputs)
        outcome = await nexum_client().run_local(
            LOCAL_CALL,
            ToolCall(tool_name=name, tool_args=arguments).model_dump(),
            lambda: run(call),
            again=lambda: run(again or call),
            execution_id=execution_id,
            restart="failed" if effect == "once" else "unknown",
            effect=effect,
            timeout=WAIT_SECONDS,
            on_wait=lambda waiting: tell("waiting", detail=waiting),
        )
    except (Unrecordable, LimitExceeded) as error:
        if not made:
            raise session.stop(str(error)) from None
        tell("unrecorded", detail=str(error))
        return made[0][0]
    except NexumError as error:
        tell("failed", detail=str(error))
        raise session.stop(str(error)) from None
    except Exception as error:
        tell("failed", detail=f"{type(error).__name__}: {error}")
        raise
    if outcome.error_code == "OUTCOME_UNKNOWN":
        tell("unknown", detail=outcome.error or "")
        raise unknown_outcome(name, outcome)
    if outcome.status != "COMPLETED":
        tell("failed", detail=outcome.error or "")
        raise ToolFailed(outcome.error)
    if made and outcome.outputs[NODE] == made[0][1]:  # and not what another process was first to record
        tell("stored")
        return made[0][0]
    return replayed(outcome.outputs)
