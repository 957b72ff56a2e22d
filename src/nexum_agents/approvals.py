"""The SDK's own approvals made durable: a run that was interrupted for one waits, and goes on, in any process.

A call of a tool with the SDK's `needs_approval` interrupts the run. Then its state is recorded, and each call waits for
`nexum approve` or `nexum reject`. Kill it and run it again: it goes on at that interruption, and does nothing of what
came before it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from agents import Agent, Runner, RunResult, RunResultStreaming, RunState, ToolApprovalItem, UserError
from pydantic_core import to_jsonable_python

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments, shown_arguments
from nexum_agents.clients import nexum_client
from nexum_agents.consent import Consents, Yes, consents, key_of
from nexum_agents.errors import DurableCallError
from nexum_agents.events import CallEvent
from nexum_agents.parking import waiting
from nexum_agents.sessions import WAIT_SECONDS, Place, current_scope, digest
from nexum_agents.tools import rejection
from nexum_agents.workflows import APPROVAL, APPROVAL_NODE, LOCAL_CALL, LOCAL_NODE, Recorded, ToolCall
from nexum_runtime import LimitExceeded, NexumError

R = TypeVar("R", bound=RunResult | RunResultStreaming)

STATE = "run-state"  # what a state is called in an execution id


async def _plainly(agent: Agent[Any], asked: Any, **run_options: Any) -> RunResult:
    return await Runner.run(agent, asked, **run_options)


async def in_a_stream(agent: Agent[Any], asked: Any, **run_options: Any) -> RunResult | RunResultStreaming:
    """As `Runner.run` does, but who follows the session hears the words, if the model streams them."""
    result = Runner.run_streamed(agent, asked, **run_options)
    try:
        async for _ in result.stream_events():
            pass
    except NotImplementedError:
        return await _plainly(agent, asked, **run_options)
    except BaseException:
        result.cancel()
        raise
    return result


async def run_with_approvals(agent: Agent[Any], input: Any, **run_options: Any) -> RunResult:
    """Run an agent as `Runner.run` does, and wait for a person's answer to each approval that it asks for.

    Use it inside `with durable_session(...)`. Each approval waits for `nexum approve ID` or `nexum reject ID --reason
    "…"`, however long that takes. The state of the interrupted run is recorded, so the next run goes on from there,
    also after an edit of the agent. Give a context again that JSON cannot hold.
    The arguments of a function tool may be changed (`nexum approve ID --args`). The model is told of these, and of a
    `--comment`, after the tool's result, as by a `durable_tool`.
    Raises DurableCallError, also outside of a session, and what the run raises.
    """
    return await run_until_it_ends(_plainly, agent, input, run_options)


async def run_until_it_ends(
    run: Callable[..., Awaitable[R]], agent: Agent[Any], input: Any, run_options: dict[str, Any]
) -> R:
    """`run_with_approvals`, by the way in which `run` runs the agent."""
    scope = current_scope()
    if scope is None:
        raise DurableCallError(
            f"Agent {agent.name!r} was run outside of a session: put it inside `with durable_session(session_id):`."
        )
    place = scope.place("run with approvals", STATE, [agent.name, digest(input)])
    said: Consents = {}
    token = consents.set(said)
    try:
        state = await _kept_state(place, agent)
        while True:
            if state is not None:
                said |= await _ask_people(place, state)
            result = await run(agent, state or input, **run_options)
            if not result.interruptions:
                return result
            state = result.to_state()
            await _keep_state(place, input, state)
    except BaseException:
        scope.give_back(place)  # the next one alike goes on with it
        raise
    finally:
        consents.reset(token)


async def _keep_state(place: Place, input: Any, state: RunState[Any, Any]) -> None:
    """Record the state of an interrupted run. One that is too large for Nexum is let go: then a run again replays."""
    scope = place.scope
    calls = [[each.qualified_name, each.arguments] for each in state.get_interruptions()]
    _, responses, _ = seams.resumed(state)
    asked = {"input": to_jsonable_python(input), "turn": len(responses), "calls": calls}
    about = ToolCall(tool_name=STATE, tool_args=asked).model_dump()
    execution_id = scope.place("state", _name(place), about).execution_id
    result = state.to_json()

    async def keep() -> dict[str, Any]:
        return {"result": result, "duration_ms": 0}

    try:
        await nexum_client().run_local(
            LOCAL_CALL, about, keep, execution_id=execution_id, restart="unknown", timeout=WAIT_SECONDS
        )
    except LimitExceeded:
        return
    except NexumError as error:
        raise scope.stop(error) from None


async def _kept_state(place: Place, agent: Agent[Any]) -> RunState[Any, Any] | None:
    """The latest state of this run that is recorded, or None."""
    scope = place.scope
    await scope.session.open()
    try:
        prefix = f"{scope.session.session_id}/{_name(place)}/"
        newest = await nexum_client().executions(prefix, limit=1, status="COMPLETED")
        if not newest:
            return None
        outcome = await nexum_client().status(newest[0].execution_id)
    except NexumError as error:
        raise scope.stop(error) from None
    try:
        return await RunState.from_json(agent, Recorded.model_validate(outcome.outputs[LOCAL_NODE]).result)
    except UserError:  # the agent is another one by now: the run is replayed, and goes on from where it differs
        return None


def _name(place: Place) -> str:
    """What the states of a run are called in an execution id."""
    return f"{STATE}-{place.alike}-{place.number}"


async def _ask_people(run: Place, state: RunState[Any, Any]) -> Consents:
    """Wait until each interruption of a state is answered, and tell the state. Returns each yes."""
    interruptions, said = state.get_interruptions(), Consents()
    answers = await asyncio.gather(*(_ask(run, each) for each in interruptions))
    for interruption, answer in zip(interruptions, answers, strict=True):
        if isinstance(answer, str):
            state.reject(interruption, rejection_message=answer)
        else:
            state.approve(interruption)
            said[key_of(interruption.call_id, interruption.arguments)] = answer
    return said


async def _ask(run: Place, interruption: ToolApprovalItem) -> Yes | str:
    """What a person said with a yes, or what the model is told of a no."""
    scope = run.scope
    tool_name, session = interruption.qualified_name or "tool", scope.session
    tool_args = parsed_arguments(interruption.arguments or "")
    place = scope.place(
        "approval", f"approval:{tool_name}", [session.as_first(run.id), tool_args, interruption.call_id]
    )

    def tell(kind: Any, detail: str = "") -> None:
        session.tell(CallEvent(kind, place.execution_id, tool_name, shown_arguments(tool_args), detail=detail))

    try:
        with waiting(place.execution_id):
            outcome = await nexum_client().execute(
                APPROVAL,
                ToolCall(tool_name=tool_name, tool_args=tool_args).model_dump(),
                execution_id=place.execution_id,
                takes_args=interruption.tool_lookup_key is not None,  # which function tools alone have
                timeout=WAIT_SECONDS,
                labels=place.labels(tool_args),
                on_wait=lambda waiting: tell("waiting", waiting),
            )
    except NexumError as error:
        tell("failed", str(error))
        raise scope.stop(error) from None
    if outcome.status == "COMPLETED":
        tell("approved")
        yes: Yes = outcome.outputs[APPROVAL_NODE]
        return yes
    tell("rejected", outcome.error or "")
    return rejection(tool_name, outcome)
