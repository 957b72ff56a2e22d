"""Every private name of the Agents SDK that this project leans on, and nothing else.

`instrument` puts a function of ours at each of a handful of seams of the SDK, as OpenTelemetry's instrumentations do
for the libraries that they observe. Outside of a durable session each passes through. Importing this module with a
version of the SDK that lacks one of the names raises ImportError, which names both versions.
"""

import copy
from collections.abc import Callable
from importlib.metadata import version
from operator import attrgetter
from typing import Any, NamedTuple

import agents
import agents._function_tool_arguments
import agents.guardrail
import agents.handoffs
import agents.mcp.util
import agents.memory.session
import agents.result
import agents.run
import agents.run_internal.run_loop
import agents.run_internal.run_steps
import agents.run_internal.session_persistence
import agents.run_internal.tool_actions
import agents.run_internal.tool_execution
import agents.run_state
import agents.tool
import agents.tool_guardrails
from agents.exceptions import (
    InputGuardrailTripwireTriggered,
    ModelBehaviorError,
    ModelRefusalError,
    OutputGuardrailTripwireTriggered,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)

TRIED_WITH = "0.24"  # the series of openai-agents that the tests pass with

# What is replaced, from the outside in: the name that the SDK looks up when it gets there.
SEAMS = {
    "run": "agents.run.AgentRunner.run",  # a run begins
    "start_streaming": "agents.run.start_streaming",  # a streamed run begins, in its own task
    "get_model": "agents.run_internal.run_loop.get_model",  # which model a turn is asked of
    "invoke_tool": "agents.run_internal.tool_execution._invoke_function_tool_with_metadata",
    "list_mcp_tools": "agents.mcp.util.MCPUtil._list_tools_with_span",
    "check_input": "agents.guardrail.InputGuardrail.run",
    "check_output": "agents.guardrail.OutputGuardrail.run",
    "check_tool_input": "agents.tool_guardrails.ToolInputGuardrail.run",
    "check_tool_output": "agents.tool_guardrails.ToolOutputGuardrail.run",
    "memory_get": "agents.run_internal.session_persistence._session_get_items",
    "memory_add": "agents.run_internal.session_persistence._session_add_items",
    "memory_compact": "agents.run_internal.session_persistence._apply_post_write_compaction",
    "memory_pop": "agents.run_internal.session_persistence._session_pop_item",
    "local_shell": "agents.run_internal.tool_actions.LocalShellAction.execute",
    "shell": "agents.run_internal.tool_actions.ShellAction.execute",
    "custom_tool": "agents.run_internal.tool_actions.CustomToolAction.execute",
    "apply_patch": "agents.run_internal.tool_actions.ApplyPatchAction.execute",
    "computer": "agents.run_internal.tool_actions.ComputerAction._execute_action_and_capture",
}

# What is used as it is: (where it is, what it is for).
USED = {
    "agents.tool._FunctionToolInvocationResult": "what a call of a function tool came to",
    "agents.items.ItemHelpers._convert_tool_output_as_structured": "whether a tuple is of texts, images and files",
    "agents.tool.FunctionTool._is_agent_tool": "whether a tool is an agent",
    "agents.tool.FunctionTool._agent_instance": "which agent that is",
    "agents.tool.FunctionTool._output_type_adapter": "the type that a tool with an output schema returns",
    "agents.tool.set_function_tool_failure_error_function": "how a tool tells the model of a failure",
    "agents.tool.resolve_function_tool_failure_error_function": "whether it does",
    "agents.memory.session._call_session_method": "how a session's methods are called",
    "agents.run_internal.tool_actions.ComputerAction._iter_actions": "what a computer is to do",
    "agents._function_tool_arguments.PreparedFunctionArguments": "a call's arguments as the SDK has read them",
    "agents.handoffs.Handoff._agent_ref": "which agent a handoff leads to",
    "agents.result.RunResultStreaming._event_queue": "where who reads a streamed run waits",
    "agents.run_internal.run_steps.QueueCompleteSentinel": "what ends that wait",
    "agents.run_state.RunState._original_input": "what an interrupted run was asked",
    "agents.run_state.RunState._model_responses": "what its model answered so far",
    "agents.run_state.RunState._current_agent": "which of its agents was interrupted",
}


def _found(path: str) -> Any:
    """The object at a dotted path; a field of a data class counts as found. Raises AttributeError."""
    parts = path.removeprefix("agents.").split(".")
    at: Any = agents
    for part in parts:
        fields = getattr(at, "__dataclass_fields__", {})
        at = fields[part] if part in fields else getattr(at, part)
    return at


def check() -> None:
    """Raise ImportError unless the installed SDK has every name. Called at import."""
    for path in (*SEAMS.values(), *USED):
        try:
            _found(path)
        except AttributeError:
            raise ImportError(
                f"openai-agents {version('openai-agents')} has no {path}, which durable sessions need. "
                f"This version of openai-agents-nexum works with openai-agents {TRIED_WITH}: "
                f"pip install 'openai-agents~={TRIED_WITH}.0'"
            ) from None


Seam = Callable[..., Any]
Ours = Callable[[Seam], Seam]  # given what the SDK has there, what is to be there


def plain(name: str) -> Any:
    """What the SDK has at a seam, a classmethod as it is."""
    owner, last = _owner(name)
    return vars(owner)[last]


def _owner(name: str) -> tuple[Any, str]:
    where, _, last = SEAMS[name].rpartition(".")
    return attrgetter(where.removeprefix("agents."))(agents), last


def instrument(**ours: Ours) -> None:
    """Put a function of ours at each seam that is named: `ours(plain)` takes the place of `plain`."""
    for name, make in ours.items():
        (owner, last), plain = _owner(name), vars(_owner(name)[0])[SEAMS[name].rpartition(".")[2]]
        if isinstance(plain, classmethod):
            setattr(owner, last, classmethod(make(plain.__func__)))
        else:
            setattr(owner, last, make(plain))


def is_of_the_answer(error: BaseException) -> bool:
    """Whether a run ended because of what its model answered last."""
    return isinstance(
        error,
        ModelBehaviorError
        | ModelRefusalError
        | OutputGuardrailTripwireTriggered
        | ToolInputGuardrailTripwireTriggered
        | ToolOutputGuardrailTripwireTriggered,
    )


def is_of_a_guardrail(error: BaseException) -> bool:
    """Whether a run ended because a guardrail tripped."""
    return isinstance(
        error,
        InputGuardrailTripwireTriggered
        | OutputGuardrailTripwireTriggered
        | ToolInputGuardrailTripwireTriggered
        | ToolOutputGuardrailTripwireTriggered,
    )


def is_agent_tool(tool: agents.FunctionTool) -> bool:
    return tool._is_agent_tool


def agent_of_tool(tool: agents.FunctionTool) -> Any:
    """The agent that a tool runs, or None."""
    return tool._agent_instance


def agent_of_handoff(handoff: Any) -> Any:
    """The agent that a Handoff leads to, or None if that is not known before it is made."""
    return handoff._agent_ref and handoff._agent_ref()


def actions_of(tool_call: Any) -> list[Any]:
    """What a computer is to do."""
    return agents.run_internal.tool_actions.ComputerAction._iter_actions(tool_call)


def output_adapter(tool: agents.FunctionTool) -> Any:
    """The pydantic TypeAdapter of what a tool with an output type returns, or None."""
    return tool._output_type_adapter


def have_arguments_read_anew(context: Any) -> None:
    """Of a call that is made with other arguments than the model wrote."""
    context._function_tool_arguments = None  # PreparedFunctionArguments


def tells_failures(tool: agents.FunctionTool, context: Any) -> bool:
    """Whether a tool tells the model of its failures, instead of ending the run."""
    return agents.tool.resolve_function_tool_failure_error_function(tool, context) is not None


def raising(tool: agents.FunctionTool) -> agents.FunctionTool:
    """A copy of a tool that raises what goes wrong instead of telling it in words."""
    return agents.tool.set_function_tool_failure_error_function(copy.copy(tool), None)


async def call_session(method: Any, *arguments: Any, wrapper: Any) -> Any:
    """Call a session's method as the SDK does: with the run's context if the method takes it."""
    return await agents.memory.session._call_session_method(method, *arguments, wrapper=wrapper)


def is_structured_output(value: Any) -> bool:
    """Whether the SDK tells the model of this value as of texts, images and files."""
    return bool(agents.ItemHelpers._convert_tool_output_as_structured(value))


class Invocation(NamedTuple):
    """What a call of a function tool came to."""

    output: Any
    is_generated_error: bool  # the SDK's own words for a failure, which no output schema applies to
    custom_data: Any  # what an MCP server sent besides, for the run's items alone


def invocation(result: Any, context: Any) -> Invocation:
    """The parts of what the SDK's seam "invoke_tool" returned."""
    return Invocation(result.output, result.is_sdk_generated_error, getattr(context, "_custom_data", None))


def invocation_result(found: Invocation, context: Any) -> Any:
    """What the SDK's seam "invoke_tool" is to return."""
    if found.custom_data is not None and context is not None:
        context._custom_data = found.custom_data
    return agents.tool._FunctionToolInvocationResult(found.output, is_sdk_generated_error=found.is_generated_error)


def end_stream(result: Any) -> None:
    """Wake who reads a streamed run: it has ended, and its task tells how."""
    result.is_complete = True
    result._event_queue.put_nowait(agents.run_internal.run_steps.QueueCompleteSentinel())


def resumed(state: agents.RunState[Any, Any]) -> tuple[Any, list[Any], Any]:
    """What tells one interrupted run from another: its input, the answers so far, and its agent."""
    return state._original_input, state._model_responses, state._current_agent


check()
