"""A whole agent made durable in one line: its model's turns, its tools, MCP's among them, and all agents it reaches.

    agent = durable_agent(agent, "my-session")
    result = await Runner.run(agent, question)

Everything runs in this process, as it always did, and is recorded by Nexum before the agent sees it; no worker is
needed. Run the same session again, and it replays to the point where it broke without a request to a model or a tool.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import CellType, FunctionType
from typing import Any
from weakref import ref

from agents import (
    Agent,
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    Handoff,
    HostedMCPTool,
    ImageGenerationTool,
    ModelProvider,
    MultiProvider,
    ProgrammaticToolCallingTool,
    RunContextWrapper,
    ShellTool,
    Tool,
    ToolSearchTool,
    WebSearchTool,
)
from agents.models import get_default_model
from agents.models.interface import Model
from agents.sandbox import SandboxAgent
from agents.tool import resolve_function_tool_failure_error_function, set_function_tool_failure_error_function
from pydantic_core import to_jsonable_python

from durable_local import Call, is_recordable, recorded, recorded_tool, wrapped
from durable_model import DurableModel, name_of
from durable_session import DurableCallError, DurableSession, entered, run_of
from submit_task import DURABLE, Effect

# The provider of the model runs these within a turn, which is recorded as a whole.
HOSTED = (
    CodeInterpreterTool,
    FileSearchTool,
    HostedMCPTool,
    ImageGenerationTool,
    ProgrammaticToolCallingTool,
    ToolSearchTool,
    WebSearchTool,
)


def durable_agent(
    agent: Agent[Any],
    session_id: str,
    *,
    provider: ModelProvider | None = None,
    effects: Mapping[str, Effect] | None = None,
) -> Agent[Any]:
    """A copy of the agent, and of all that it hands off to or has as tools, in which everything is recorded.

    Make one for each run. Models that are given by name come from `provider`, by default the SDK's own: a provider in
    a RunConfig is not asked, and a model in it takes the place of the agent's and is not recorded. `effects` says of a
    tool, by its name, what a crash in the middle of it may have done: "read" or "idempotent" (the default; it is run
    again) or "once" (it is not: the model is told that it may or may not have run). Tools made by `durable_tool` stay
    with their worker. What is recorded of a tool is said at `durable_local`; of a guardrail it is what it found, with
    an `output_info` of classes of your own made plain JSON.
    A replay runs the agent's code again, but for its tools and guardrails: hooks, `on_handoff`, `is_enabled`, filters,
    instructions that a function makes. What a recorded tool once did to the run's context it does not do again. An
    interrupted run's `RunState` goes on with this very copy, or by durable_approval.py: by itself another copy counts
    identical calls from 0 again.
    Raises TypeError naming what cannot be made durable, ValueError for `effects` of a tool that no agent has,
    DurableCallError for a session id that is none.
    """
    effects = effects or {}
    copies = _Copies(run_of(session_id), provider or MultiProvider(), effects)
    durable = copies.agent(agent)
    if not copies.may_meet_more and (unmet := effects.keys() - copies.met):
        raise ValueError(f"No agent has a tool {min(unmet)!r} whose effect `effects` could say: is it spelled so?")
    return durable


class _Copies:
    """The durable copies of the agents of one run."""

    def __init__(self, session: DurableSession, provider: ModelProvider, effects: Mapping[str, Effect]) -> None:
        self._session, self._provider, self._effects = session, provider, effects
        self._copies: dict[int, tuple[Agent[Any], Agent[Any]]] = {}  # by the original's id: (original, copy)
        self.met: set[str] = set()  # the names of the tools that are recorded
        self.may_meet_more = False  # during the run

    def agent(self, agent: Agent[Any]) -> Agent[Any]:
        if id(agent) in self._copies:  # agents may hand off back and forth
            return self._copies[id(agent)][1]
        if isinstance(agent, SandboxAgent):
            raise TypeError(
                f"Agent {agent.name!r} cannot be made durable: what it does in its sandbox is not recorded."
            )
        durable = copy.copy(agent)
        self._copies[id(agent)] = (agent, durable)
        self._copies[id(durable)] = (durable, durable)
        durable.__class__ = self._with_mcp_tools(type(agent))
        self.may_meet_more |= bool(agent.mcp_servers)
        durable.model = self._model(agent.model)
        durable.tools = [self._tool(agent, tool) for tool in agent.tools]
        durable.handoffs = [self._handoff(each) for each in agent.handoffs]
        durable.input_guardrails = [self._guardrail(agent, each) for each in agent.input_guardrails]
        durable.output_guardrails = [self._guardrail(agent, each) for each in agent.output_guardrails]
        return durable

    def _with_mcp_tools(self, kind: type[Agent[Any]]) -> type[Agent[Any]]:
        """MCP tools are known only during a run, when the agent asks its servers for them."""
        copies = self

        class Durable(kind):  # type: ignore[misc, valid-type]
            durable_session = self._session

            async def get_mcp_tools(self, run_context: Any) -> list[Tool]:
                return [copies._tool(self, tool) for tool in await super().get_mcp_tools(run_context)]

        Durable.__name__ = Durable.__qualname__ = kind.__name__
        return Durable

    def _model(self, model: str | Model | None) -> Model:
        if isinstance(model, DurableModel):
            return model
        if isinstance(model, Model):
            return DurableModel(self._session, lambda: model, name_of(model))
        return DurableModel(self._session, lambda: self._provider.get_model(model), model or get_default_model())

    def _tool(self, agent: Agent[Any], tool: Tool) -> Tool:
        if isinstance(tool, HOSTED) or (isinstance(tool, ShellTool) and tool.executor is None):
            return tool
        if not isinstance(tool, FunctionTool):
            name = getattr(tool, "name", "")
            raise TypeError(
                f"Agent {agent.name!r} cannot be made durable: its tool {name} ({type(tool).__name__}) is executed by "
                "the SDK itself, and its calls cannot be recorded."
            )
        if hasattr(tool, DURABLE):
            durable = wrapped(tool, self._in_session)
        elif tool._is_agent_tool:
            durable = self._agent_tool(tool)
        else:
            durable = recorded_tool(tool, self._session, self._effects.get(tool.name, "idempotent"))
            self.met.add(tool.name)
        for guardrails in ("tool_input_guardrails", "tool_output_guardrails"):
            each_of = getattr(tool, guardrails)
            setattr(durable, guardrails, each_of and [self._tool_guardrail(each) for each in each_of])
        return durable

    async def _in_session(self, _: str, call: Call) -> Any:
        with entered(self._session):
            return await call()

    def _agent_tool(self, tool: FunctionTool) -> FunctionTool:
        """The tool that runs the durable copy of its agent: all that agent does is recorded, so the call need not be.

        The SDK keeps the agent in the closure of the tool's function, and so it is exchanged there.
        """
        function = getattr(tool.on_invoke_tool, "_invoke_tool_impl", None)
        held: dict[str, CellType] = {}
        if isinstance(function, FunctionType):
            held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if function is None or "self" not in held or held["self"].cell_contents is not tool._agent_instance:
            raise TypeError(f"The agent tool {tool.name} cannot be made durable: it was not made by `Agent.as_tool`.")
        for name in ("run_config", "session"):
            if name in held and held[name].cell_contents is not None:
                raise TypeError(f"The agent tool {tool.name} cannot be made durable: it has a {name} of its own.")
        held["self"] = CellType(self.agent(tool._agent_instance))
        rebound = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(held.values())
        )
        rebound.__dict__.update(function.__dict__)
        durable = copy.copy(tool)
        durable._agent_instance = held["self"].cell_contents
        durable.on_invoke_tool = copy.copy(durable.on_invoke_tool)
        durable.on_invoke_tool._invoke_tool_impl = rebound  # type: ignore[attr-defined]
        if tell := resolve_function_tool_failure_error_function(tool):

            def tell_the_model(context: RunContextWrapper[Any], error: Exception) -> Any:
                if isinstance(error, DurableCallError):
                    raise error  # as in submit_task.py: without Nexum the run does not go on
                return tell(context, error)

            set_function_tool_failure_error_function(durable, tell_the_model)
        return durable

    def _handoff(self, target: Agent[Any] | Handoff[Any, Any]) -> Agent[Any] | Handoff[Any, Any]:
        if isinstance(target, Agent):
            return self.agent(target)
        durable = copy.copy(target)
        known = target._agent_ref() if target._agent_ref else None
        if isinstance(known, Agent):  # what cannot be made durable is said now and not in the middle of a run
            durable._agent_ref = ref(self.agent(known))
        else:
            self.may_meet_more = True

        async def invoke(context: Any, arguments: str) -> Any:
            return self.agent(await target.on_invoke_handoff(context, arguments))

        durable.on_invoke_handoff = invoke
        return durable

    def _guardrail(self, agent: Agent[Any], guardrail: Any) -> Any:
        async def check(context: Any, of: Agent[Any], checked: Any) -> Any:
            content = {"agent": agent.name, "checked": _plain(checked)}
            return await self._found(guardrail, content, lambda: guardrail.guardrail_function(context, of, checked))

        return replace(guardrail, name=guardrail.get_name(), guardrail_function=check)

    def _tool_guardrail(self, guardrail: Any) -> Any:
        async def check(data: Any) -> Any:
            content = {"tool": data.context.tool_name, "arguments": data.context.tool_arguments}
            content |= {"output": _plain(data.output)} if hasattr(data, "output") else {}
            return await self._found(guardrail, content, lambda: guardrail.guardrail_function(data))

        return replace(guardrail, name=guardrail.get_name(), guardrail_function=check)

    async def _found(self, guardrail: Any, content: dict[str, Any], check: Callable[[], Any]) -> Any:
        """A guardrail may well ask a model, so what it found is recorded like the result of a tool."""

        async def run() -> Any:
            found = check()
            found = await found if inspect.isawaitable(found) else found
            return found if is_recordable(found) else replace(found, output_info=_plain(found.output_info))

        return await recorded(self._session, f"guardrail:{guardrail.get_name()}", content, run)


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=lambda other: type(other).__name__)
