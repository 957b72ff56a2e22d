"""The SDK's own approvals made durable: a run that was interrupted for one waits, and goes on, in any process.

    with durable_session("my-session"):
        result = await run_with_approvals(agent, question)    # in the place of Runner.run

A call of a tool with the SDK's `needs_approval` interrupts the run. Here its state is recorded by Nexum then, with how
far the durable session is, and each call waits for `nexum approve` or `nexum reject`. Kill it and run it again: it goes
on at that interruption, and does nothing of what came before it.
"""

import asyncio
from typing import Any

from agents import Agent, Runner, RunResult, RunState, ToolApprovalItem, UserError
from pydantic_core import to_jsonable_python

from durable_local import parsed_arguments
from durable_session import CallEvent, DurableCallError, DurableSession, current_session, nexum_client
from nexum_runtime import LimitExceeded, NexumError
from submit_task import rejection
from workflow import APPROVAL, LOCAL_CALL, Local, ToolCall

STATE = "run-state"  # what a state is called in an execution id
WAIT_SECONDS = 600.0  # for a server that is away


async def run_with_approvals(agent: Agent[Any], input: Any, **run_options: Any) -> RunResult:
    """What `Runner.run(agent, input, **run_options)` comes to once every approval that it asks for is answered.

    For a `durable_agent`, or inside `with durable_session(...)`. Raises DurableCallError, and what the run raises.
    """
    state = await kept_state(agent, input)
    if state is not None:
        await ask_people(agent, state)
    while True:
        result = await Runner.run(agent, state or input, **run_options)
        if not result.interruptions:
            return result
        state = result.to_state()
        await keep_state(agent, input, state)
        await ask_people(agent, state)


async def keep_state(agent: Agent[Any], input: Any, state: RunState[Any, Any]) -> None:
    """Record the state of an interrupted run with its durable session, and how far that is.

    One that is too large for Nexum is let go: then a run again replays to this interruption. Raises DurableCallError.
    """
    session = _session_of(agent)
    calls = [[each.qualified_name, each.arguments] for each in state.get_interruptions()]
    asked = to_jsonable_python(input)
    about = ToolCall(tool_name=STATE, tool_args={"input": asked, "calls": calls}).model_dump()
    execution_id = session.next_execution_id(STATE, about)
    result = {"input": asked, "state": state.to_json(), "progress": session.progress()}
    kept = Local(result=result, duration_ms=0).model_dump()

    async def keep() -> dict[str, Any]:
        return kept

    try:
        await nexum_client().run_local(
            LOCAL_CALL, about, keep, execution_id=execution_id, restart="unknown", timeout=WAIT_SECONDS
        )
    except LimitExceeded:
        return
    except NexumError as error:
        raise session.stop(str(error)) from None


async def kept_state(agent: Agent[Any], input: Any) -> RunState[Any, Any] | None:
    """The latest state that is kept with the durable session, or None if that is not of this agent with this input.

    The session goes on from where it was then: identical calls are counted on. A context that JSON does not carry is
    to be given to `Runner.run` again. Raises DurableCallError.
    """
    session = _session_of(agent)
    try:
        newest = await nexum_client().executions(f"{session.session_id}/{STATE}/", limit=1, status="COMPLETED")
        if not newest:
            return None
        outcome = await nexum_client().status(newest[0].execution_id)
    except NexumError as error:
        raise session.stop(str(error)) from None
    kept = Local.model_validate(outcome.outputs[LOCAL_CALL.nodes[0].id]).result
    if kept["input"] != to_jsonable_python(input):
        return None
    try:
        state = await RunState.from_json(agent, kept["state"])
    except UserError:  # the agent is another one by now: the run is replayed, and goes on from where it differs
        return None
    session.go_on_from(kept["progress"])
    return state


async def ask_people(agent: Agent[Any], state: RunState[Any, Any]) -> None:
    """Wait until each interruption of a state is answered, by `nexum approve` or `nexum reject`, and tell the state."""
    session, interruptions = _session_of(agent), state.get_interruptions()
    refusals = await asyncio.gather(*(_ask(session, each) for each in interruptions))
    for interruption, refusal in zip(interruptions, refusals, strict=True):
        if refusal:
            state.reject(interruption, rejection_message=refusal)
        else:
            state.approve(interruption)


async def _ask(session: DurableSession, interruption: ToolApprovalItem) -> str:
    """ "" for a yes, else what the model is told."""
    tool_name = interruption.qualified_name or "tool"
    tool_args = parsed_arguments(interruption.arguments or "")
    execution_id = session.next_execution_id(f"approval:{tool_name}", tool_args)

    def tell(kind: Any, detail: str = "") -> None:
        session.tell(CallEvent(kind, execution_id, tool_name, tool_args, detail=detail))

    try:
        outcome = await nexum_client().execute(
            APPROVAL,
            ToolCall(tool_name=tool_name, tool_args=tool_args).model_dump(),
            execution_id=execution_id,
            timeout=WAIT_SECONDS,
            on_wait=lambda waiting: tell("waiting", waiting),
        )
    except NexumError as error:
        tell("failed", str(error))
        raise session.stop(str(error)) from None
    if outcome.status == "COMPLETED":
        tell("approved")
        return ""
    tell("rejected", outcome.error or "")
    return rejection(tool_name, outcome)


def _session_of(agent: Agent[Any]) -> DurableSession:
    session: DurableSession | None = getattr(agent, "durable_session", None) or current_session()
    if session is None:
        raise DurableCallError(
            f"Agent {agent.name!r} was run outside of a session: put it inside `with durable_session(session_id):`."
        )
    return session
