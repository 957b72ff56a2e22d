"""A run in a session: where it begins and ends, and what cannot be run in one."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from agents import Agent, FunctionTool, Handoff, OpenAIConversationsSession, RunState
from agents.sandbox import SandboxAgent

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments
from nexum_agents.errors import DurableCallError
from nexum_agents.sessions import Scope, current_scope, digest, enter, tell_if_left_out


def run(plain: Any) -> Any:
    """The seam at which `Runner.run` begins."""

    async def run(self: Any, starting_agent: Any, input: Any, **options: Any) -> Any:
        scope = current_scope()
        if scope is None:
            tell_if_left_out()
            return await plain(self, starting_agent, input, **options)
        scope.check()
        name, content, pending = _identity(starting_agent, input, options)
        async with scope.running(name, content) as run, _ending(run, name) as end:
            run.asked = _question(input)
            run.expect(pending)
            end.result = await plain(self, starting_agent, input, **options)
            return end.result

    return run


def start_streaming(plain: Any) -> Any:
    """The seam at which `Runner.run_streamed` begins, in a task of its own."""

    async def start_streaming(*args: Any, **options: Any) -> Any:
        scope, has_begun = current_scope(), False
        if scope is None:
            tell_if_left_out()
            return await plain(*args, **options)
        try:
            scope.check()
            state = options["run_state"] if options["is_resumed_state"] else None
            asked = state if state is not None else options["starting_input"]
            name, content, pending = _identity(options["starting_agent"], asked, options)
            async with scope.running(name, content) as run, _ending(run, name) as end:
                enter(run)
                run.asked = _question(asked)
                run.expect(pending)
                has_begun = True
                told = await plain(*args, **options)
                end.result = options["streamed_result"]
                return told
        except BaseException:
            if not has_begun:  # else the SDK has seen to it
                seams.end_stream(options["streamed_result"])
            raise

    return start_streaming


class _End:
    """Of a run: what it came to, if it did."""

    result: Any = None


@asynccontextmanager
async def _ending(run: Scope, name: str) -> AsyncIterator[_End]:
    """A run, whose end is recorded if it is an outermost one. It has not ended if it was cut off, or waits."""
    end = _End()
    try:
        yield end
    except DurableCallError:  # it could not be carried, and goes on
        raise
    except Exception as error:
        if run.run is run:
            await run.session.note_end(run, name, None, error)
        raise
    if run.run is run and end.result is not None and end.result.final_output is not None:
        agent = getattr(end.result.last_agent, "name", "") or name
        await run.session.note_end(run, agent, end.result.final_output)


def _identity(agent: Any, input: Any, options: dict[str, Any]) -> tuple[str, Any, list[tuple[str, str, Any]]]:
    """The run's name, what it is asked, and which calls an interrupted one still has to make.

    Raises DurableCallError for what cannot be run in a session.
    """
    check_that_it_can_be_recorded(agent, options.get("session"))
    if not isinstance(input, RunState):
        return agent.name, ["run", digest(input)], []
    asked, responses, current = seams.resumed(input)
    items = [item for response in responses[-1:] for item in response.output]
    pending = [
        (str(item.call_id), item.name, parsed_arguments(item.arguments))
        for item in items
        if getattr(item, "type", "") == "function_call"
    ]
    name = getattr(current, "name", "") or agent.name
    return name, ["resumed", digest(asked), len(responses), digest(pending)], pending


def _question(input: Any) -> str:
    """The last text of a user in it; "" without one."""
    asked = seams.resumed(input)[0] if isinstance(input, RunState) else input
    if isinstance(asked, str):
        return asked
    for item in reversed(asked if isinstance(asked, list) else []):
        content = item.get("content") if isinstance(item, dict) and item.get("role") == "user" else None
        parts = content if isinstance(content, list) else [{"text": content}]
        if texts := [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]:
            return "\n".join(texts)
    return ""


def check_that_it_can_be_recorded(agent: Any, memory: Any = None) -> None:
    """Raise DurableCallError, naming it, for what cannot be recorded; nothing has run then."""
    if not isinstance(agent, Agent):
        raise DurableCallError(
            f"A {type(agent).__name__} cannot run in a durable session: only an Agent can. Run it outside of the block."
        )
    for each in reachable(agent, set()):
        if isinstance(each, SandboxAgent):
            raise DurableCallError(
                f"Agent {each.name!r} cannot run in a durable session: it is a SandboxAgent, and what it does in its "
                "sandbox cannot be recorded. Run it outside of the block."
            )
    if isinstance(memory, OpenAIConversationsSession):
        raise DurableCallError(
            "An OpenAIConversationsSession cannot be used in a durable session: OpenAI keeps what is added to it, and "
            "after a crash it would be added again. Use another of the SDK's sessions, such as SQLiteSession."
        )


def reachable(agent: Any, seen: set[int]) -> Iterator[Any]:
    """The agent, and those that it can hand off to or has as tools, as far as that is known before it runs."""
    if agent is None or id(agent) in seen:
        return
    seen.add(id(agent))
    yield agent
    for target in agent.handoffs if isinstance(agent, Agent) else ():
        yield from reachable(seams.agent_of_handoff(target) if isinstance(target, Handoff) else target, seen)
    for tool in agent.tools if isinstance(agent, Agent) else ():
        if isinstance(tool, FunctionTool):
            yield from reachable(seams.agent_of_tool(tool), seen)
