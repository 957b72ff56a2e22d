"""Calls of `Runner` once more, in a new block of the same session, where nothing may be asked or executed.

`remember` keeps what a call was given, before the call can change it. `replay` makes the calls of a test again, in
their order, with every model, tool, guardrail, MCP server and memory replaced by one that notes and refuses.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from agents import (
    AgentBase,
    CustomTool,
    FunctionTool,
    LocalShellTool,
    Model,
    ModelProvider,
    Runner,
    RunState,
    ShellTool,
    agent_tool_state,
    get_current_trace,
    trace,
)
from agents.guardrail import InputGuardrail, OutputGuardrail
from agents.handoffs import Handoff
from agents.lifecycle import AgentHooksBase, RunHooksBase
from agents.mcp import MCPServer
from agents.tool import _FailureHandlingFunctionToolInvoker as Invoker
from agents.tool_guardrails import ToolInputGuardrail, ToolOutputGuardrail
from watching import Call, Watch, subclasses

from nexum_agents import durable_session

# What does the work: of objects of a class, the function in an attribute. Of most function tools it is an `Invoker`.
WORK = {
    FunctionTool: "on_invoke_tool",
    CustomTool: "on_invoke_tool",
    LocalShellTool: "executor",
    ShellTool: "executor",
    InputGuardrail: "guardrail_function",
    OutputGuardrail: "guardrail_function",
    ToolInputGuardrail: "guardrail_function",
    ToolOutputGuardrail: "guardrail_function",
}
MEMORY_METHODS = ("get_items", "add_items", "pop_item")
NEVER_COPIED = (AgentBase, Model, ModelProvider, Handoff, MCPServer, RunHooksBase, AgentHooksBase, *WORK)


class Refused(AssertionError):
    """Something was asked or executed in a replay."""


@dataclass
class Again:
    """What a call was given."""

    agent: Any
    input: Any  # a function that makes it, for a RunState that is kept as JSON
    options: dict[str, Any]
    agents: list[Any]  # all that can be reached
    attributes: list[tuple[Any, dict[str, Any]]]  # of those agents and their tools, as they were then
    around: Any  # the trace of the test's that it was made in, or None
    why_not: str = ""  # it cannot be called again, and why


@dataclass
class Replayed:
    """What came of the replays of a test."""

    alike: int = 0
    differ: list[str] = field(default_factory=list)
    did: list[str] = field(default_factory=list)  # what was asked or executed
    not_replayed: list[str] = field(default_factory=list)  # why, for each call that was not


_refusing: ContextVar[list[str] | None] = ContextVar("refusing", default=None)


def remember(agent: Any, input: Any, options: dict[str, Any]) -> Again:
    """Keep what a call is given. What changes as it runs is copied: its input, its context, the agents' attributes."""
    why_not = ""
    with _copying():
        try:
            kept_input = _as_json(agent, input) if _has_interrupted_agents(input) else copy.deepcopy(input)
        except Exception as error:
            kept_input, why_not = input, f"its input cannot be copied ({type(error).__name__})"
        options = dict(options)
        with suppress(Exception):  # locks, connections: the replay gets the same object
            options["context"] = copy.deepcopy(options.get("context"))
    agents = _reached(agent, input)
    tools = [tool for each in agents for tool in getattr(each, "tools", None) or []]
    attributes = [(each, _attributes(each)) for each in (*agents, *tools)]
    return Again(agent, kept_input, options, agents, attributes, get_current_trace(), why_not)


async def replay(watch: Watch, session_id: str) -> Replayed:
    """Make the calls of a test once more in one new block of its session, and compare."""
    found = Replayed()
    events: list[Any] = []
    async with durable_session(session_id, on_event=events.append):
        for call in [call for call in watch.calls if call.parent is None]:
            why_not = call.why_not_whole or call.again.why_not
            if why_not:
                found.not_replayed.append(why_not)
                continue
            events.clear()
            for each, attributes in call.again.attributes:
                vars(each).update(attributes)
            with watch.aside() as calls, _refused(call) as did:
                try:
                    await _call_again(call)
                except Exception as error:
                    did.append(f"raised {type(error).__name__}: {str(error)[:200]}")
            did += [f"told of {type(event).__name__} started" for event in events if event.kind == "started"]
            found.did += [f"{call.name}: {what}" for what in dict.fromkeys(did)]
            lines = [] if did else call.differs(calls[0]) if calls else ["it was not called"]
            found.differ += [f"{call.name}: {line}" for line in lines]
            found.alike += not did and not lines
    return found


async def _call_again(call: Call) -> None:
    again = call.again
    given = await again.input() if callable(again.input) else again.input
    with trace("replay", disabled=again.around.export() is None) if again.around is not None else nullcontext():
        if call.how == "run":
            await Runner.run(again.agent, given, **again.options)
        else:
            result = Runner.run_streamed(again.agent, given, **again.options)
            async for _ in result.stream_events():
                pass


@contextmanager
def _refused(call: Call) -> Iterator[list[str]]:
    """Nothing is asked or executed in this block; the list has what was tried."""
    did: list[str] = []
    token = _refusing.set(did)
    with pytest.MonkeyPatch.context() as patch:
        for base, names in ((Model, ("get_response", "stream_response")), (MCPServer, ("list_tools", "call_tool"))):
            for kind in subclasses(base):
                if kind.__module__.startswith("nexum_agents"):  # what the session puts around them, which answers
                    continue
                for name in names:
                    if name in vars(kind):
                        patch.setattr(kind, name, _refusing_for(vars(kind)[name], f"{kind.__name__}.{name}"))
        if (memory := call.again.options.get("session")) is not None:
            for name in MEMORY_METHODS:
                if hasattr(type(memory), name):
                    refusing = _refusing_for(getattr(type(memory), name), f"{type(memory).__name__}.{name}")
                    patch.setattr(type(memory), name, refusing)
        for worker in _workers(call.again.agents):
            name = WORK[type(worker)]
            work = vars(worker).get(name)
            if work is not None and not isinstance(work, Invoker):
                label = f"{type(worker).__name__} {getattr(worker, 'name', '')}"
                patch.setitem(vars(worker), name, _refusing_for(work, label))
        invoke = Invoker.__call__

        def refusing_tool(self: Any, *asked: Any) -> Any:
            tool = self._function_tool
            if getattr(tool, "_is_agent_tool", False):  # its agent runs again, and what it does comes from the store
                return invoke(self, *asked)
            return _refusing_for(functools.partial(invoke, self), f"FunctionTool {tool.name}")(*asked)

        patch.setattr(Invoker, "__call__", refusing_tool)
        try:
            yield did
        finally:
            _refusing.reset(token)


def _refusing_for(function: Callable[..., Any], what: str) -> Any:
    """`function`, but in a replay it notes and raises. It keeps its name, which guardrails are known by."""

    @functools.wraps(function)
    def refusing(*asked: Any, **named: Any) -> Any:
        if (did := _refusing.get()) is None:
            return function(*asked, **named)
        did.append(what)
        raise Refused(f"{what} was asked in a replay")

    return refusing


def _has_interrupted_agents(input: Any) -> bool:
    """Whether agents as tools were interrupted in a run that goes on. The SDK keeps those beside its RunState."""
    if not isinstance(input, RunState) or input._context is None:
        return False
    scope = agent_tool_state.get_agent_tool_state_scope(input._context)
    return any(key[0] == scope for key in agent_tool_state._agent_tool_run_results_by_obj)


def _as_json(agent: Any, state: RunState[Any, Any]) -> Callable[[], Any]:
    """The state as another process would get it."""
    kept, context = state.to_json(), copy.deepcopy(state._context.context) if state._context else None
    return lambda: RunState.from_json(agent, kept, context_override=context)


def _workers(agents: Iterable[Any]) -> list[Any]:
    """The tools and guardrails of agents that do work of their own, each once."""
    found: dict[int, Any] = {}
    for agent in agents:
        tools = list(getattr(agent, "tools", None) or [])
        for tool in tools:
            found |= {
                id(each): each
                for name in ("tool_input_guardrails", "tool_output_guardrails")
                for each in getattr(tool, name, None) or []
            }
        checks = [*(getattr(agent, "input_guardrails", None) or []), *(getattr(agent, "output_guardrails", None) or [])]
        found |= {id(each): each for each in (*tools, *checks) if not getattr(each, "_is_agent_tool", False)}
    return [each for each in found.values() if type(each) in WORK]


def _reached(agent: Any, input: Any) -> list[Any]:
    """Every agent that a run can come to: by handoffs, as tools, and the one that an interrupted run was at."""
    found: dict[int, Any] = {}
    ahead = [agent, input._current_agent if isinstance(input, RunState) else None]
    while ahead:
        each = ahead.pop()
        if not isinstance(each, AgentBase) or id(each) in found:
            continue
        found[id(each)] = each
        for handoff in getattr(each, "handoffs", None) or []:
            agent_of_it = getattr(handoff, "_agent_ref", None)
            ahead.append(agent_of_it() if agent_of_it is not None else handoff)
        ahead += [getattr(tool, "_agent_instance", None) for tool in getattr(each, "tools", None) or []]
    return list(found.values())


def _attributes(thing: Any) -> dict[str, Any]:
    return {name: list(value) if type(value) is list else value for name, value in vars(thing).items()}


@contextmanager
def _copying() -> Iterator[None]:
    """In this block a deep copy keeps agents, models, tools and the like as the objects that they are."""

    def itself(self: Any, memo: Any) -> Any:
        return self

    with pytest.MonkeyPatch.context() as patch:
        for kind in NEVER_COPIED:
            patch.setattr(kind, "__deepcopy__", itself, raising=False)
        yield
