"""Function tools, MCP's among them, and agents as tools: what a call of one is, and how it is recorded."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from agents import FunctionSpanData, FunctionTool, get_current_span
from mcp.types import Tool

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments, recorded
from nexum_agents.consent import given, with_words, words_of
from nexum_agents.errors import ToolFailed
from nexum_agents.recording import Unrecordable, to_recorded
from nexum_agents.sessions import Place, Scope, current_scope
from nexum_agents.standin import StandIn
from nexum_agents.tools import Submitter
from nexum_agents.values import from_value, returns_of
from nexum_agents.workflows import LOCAL_NODE, Recorded
from nexum_runtime.logs import Log
from nexum_runtime.signals import end_at_next_ctrl_c
from nexum_runtime.wire import canonical_json

Invoke = Callable[[], Awaitable[Any]]  # what the SDK does at the seam, and returns there

log = Log("nexum_agents")

GENERATED_ERROR, CUSTOM_DATA = "generated_error", "custom_data"  # in a note: see seams.Invocation
MCP_DATA, SPAN_ERROR = "mcp_data", "span_error"  # in a note: what the call's span tells of it in a trace
CANCELLED = "cancelled"  # in a note: the tool raised CancelledError


def invoke_tool(plain: Any) -> Any:
    """The seam at which a function tool is called."""

    async def invoke_tool(*, function_tool: FunctionTool, context: Any, arguments: str) -> Any:
        scope, yes = current_scope(), given(context, arguments)

        def invoke() -> Awaitable[Any]:
            is_to_change = "args" in yes and not isinstance(function_tool.on_invoke_tool, Submitter)  # which does it
            if is_to_change:
                seams.have_arguments_read_anew(context)
            text = canonical_json(yes["args"]) if is_to_change else arguments
            found: Awaitable[Any] = plain(function_tool=function_tool, context=context, arguments=text)
            return found

        if scope is None:
            return await invoke()
        scope.check()
        result = await _called(scope, function_tool, context, arguments, invoke)
        scope.check()  # an agent as a tool may have told the outer model of an error that ends the run
        return _with_words(result, words_of(yes), function_tool, context)

    return invoke_tool


def _with_words(result: Any, words: str, tool: FunctionTool, context: Any) -> Any:
    """The result with a person's words to the model after it, unless the tool declares what its results are like."""
    if not words or seams.output_adapter(tool) is not None:
        return result
    found = seams.invocation(result, context)
    if found.is_generated_error:
        return result
    output = with_words(found.output, words)
    return seams.invocation_result(seams.Invocation(output, found.is_generated_error, found.custom_data), context)


async def _called(scope: Scope, tool: FunctionTool, context: Any, arguments: str, invoke: Invoke) -> Any:
    name, asked, session = tool.qualified_name, parsed_arguments(arguments), scope.session
    number = scope.number_of_call(str(context.tool_call_id), tool.name, asked)
    session.meet_tools({tool.name, name})
    effect = session.effects.get(name) or session.effect_of(tool.name)
    if isinstance(tool.on_invoke_tool, Submitter) or effect == "replay":
        with scope.inside(scope.place("call", name, asked, number)) as inside:
            inside.number = number
            return await invoke()
    if seams.is_agent_tool(tool):
        return await _agent_called(scope.place("agent", name, asked, number), name, asked, context, invoke)
    note: dict[str, Any] = {}
    raised: list[ToolFailed] = []
    made: list[bool] = []  # in this run

    async def call() -> Any:
        made.append(True)
        inside = current_scope()
        try:
            found = seams.invocation(await _told_if_it_lasts(tool, invoke), context)
            if found.is_generated_error and inside is not None and inside.unknown is not None:
                raise inside.unknown  # the SDK would ask the model to try again what may have happened
            note.update(_told_by_the_span())
            return _noted(note, found)
        except ToolFailed as error:  # of a step inside, and the tool tells no model of its failures
            raised.append(error)
            raise

    try:
        output = await recorded(
            scope.place("call", name, asked, number),
            name,
            asked,
            call,
            effect,
            returns=returns_of(getattr(tool, "__wrapped__", None)),
            keep_error=partial(_is_cancelled_by_itself, note),
            note=note,
            refusable=True,
        )
        if not made:
            _tell_the_span(note)
    except ToolFailed as failed:
        if failed in raised and not seams.tells_failures(tool, context):
            raise
        if note.get(CANCELLED):
            raise asyncio.CancelledError(str(failed)) from None
        output = str(failed)
    return _as_noted(output, note, context)


async def _told_if_it_lasts(tool: FunctionTool, invoke: Invoke) -> Any:
    """Say at Ctrl-C that a sync tool, which the SDK runs in a thread, is waited for."""
    try:
        return await invoke()
    except asyncio.CancelledError:
        function = getattr(tool, "__wrapped__", None)
        if function is not None and not inspect.iscoroutinefunction(function) and end_at_next_ctrl_c():
            log.warning(
                "%s is a sync function, which cannot be cut short. This process ends when it has returned; "
                "Ctrl-C again ends it at once.",
                tool.name,
            )
        raise


async def _agent_called(place: Place, name: str, asked: Any, context: Any, invoke: Invoke) -> Any:
    """An agent as a tool: what happens inside is recorded, so the call need not be.

    Unless the agent's run ended in an error and the outer model was told so: then that is what a replay is told.
    """
    scope, note = place.scope, {}  # type: Scope, dict[str, Any]
    if (outputs := await scope.session.recorded(place.execution_id)) is not None:
        found = Recorded.model_validate(outputs[LOCAL_NODE])
        return _as_noted(from_value(found.result, found.form), found.note, context)
    with scope.inside(place) as inside:
        result = await invoke()
    if not inside.told_of_error or scope.run.stopped:
        return result

    async def told() -> Any:
        return _noted(note, seams.invocation(result, context))

    return _as_noted(await recorded(place, name, asked, told, note=note, quietly=True), note, context)


def _noted(note: dict[str, Any], found: seams.Invocation) -> Any:
    """The output of a call; what there is to know of it besides goes into the note."""
    if found.is_generated_error:
        note[GENERATED_ERROR] = True
    if found.custom_data:
        with suppress(Unrecordable):  # it is for the run's items alone
            note[CUSTOM_DATA] = to_recorded(found.custom_data)
    return found.output


def _as_noted(output: Any, note: dict[str, Any], context: Any) -> Any:
    """What the SDK is given at the seam."""
    custom_data = from_value(note[CUSTOM_DATA], "") if CUSTOM_DATA in note else None
    return seams.invocation_result(seams.Invocation(output, note.get(GENERATED_ERROR, False), custom_data), context)


def _told_by_the_span() -> dict[str, Any]:
    """What the call has told the SDK's trace, for a replay to tell as well."""
    span = get_current_span()
    if span is None or not isinstance(span.span_data, FunctionSpanData):
        return {}
    told = {MCP_DATA: span.span_data.mcp_data, SPAN_ERROR: span.error}
    with suppress(Unrecordable):
        return {name: to_recorded(value) for name, value in told.items() if value}
    return {}


def _tell_the_span(note: dict[str, Any]) -> None:
    span = get_current_span()
    if span is not None and isinstance(span.span_data, FunctionSpanData):
        span.span_data.mcp_data = note.get(MCP_DATA, span.span_data.mcp_data)
        if SPAN_ERROR in note:
            span.set_error(note[SPAN_ERROR])


def _is_cancelled_by_itself(note: dict[str, Any], error: BaseException) -> bool:
    """Whether a tool raised CancelledError of its own accord: the SDK tells the model of that, and goes on."""
    task = asyncio.current_task()
    if not isinstance(error, asyncio.CancelledError) or (task is not None and task.cancelling()):
        return False
    note[CANCELLED] = True
    return True


def list_mcp_tools(plain: Any) -> Any:
    """The seam at which an MCP server is asked for its tools: a replay gets them with no server there."""

    async def list_mcp_tools(cls: Any, server: Any, run_context: Any, agent: Any) -> Any:
        scope = current_scope()
        if scope is None:
            return await plain(cls, server, run_context, agent)
        return await plain(cls, _Lister(server, scope), run_context, agent)

    return list_mcp_tools


def _as_mcp_has_it(tool: Tool) -> Tool:
    """A server of one's own may list objects of a class of its own, which a record could not name."""
    return tool if type(tool) is Tool else Tool.model_validate(tool.model_dump(by_alias=True))


class _Lister(StandIn):
    """Stands for an MCP server whose list of tools is recorded."""

    def __init__(self, server: Any, scope: Scope) -> None:
        super().__init__(server)
        self._scope = scope

    async def list_tools(self, run_context: Any, agent: Any) -> Any:
        content = {"server": self._stands_for.name, "agent": getattr(agent, "name", "")}

        async def call() -> Any:
            return [_as_mcp_has_it(each) for each in await self._stands_for.list_tools(run_context, agent)]

        place = self._scope.place("mcp", "list-mcp-tools", content)
        return await recorded(place, "list-mcp-tools", content, call, "read", exactly=True, quietly=True)
