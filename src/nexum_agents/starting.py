"""Runs that workers execute: `start_run` starts one from anywhere, and no process has to wait for it.

    start_run ─→ an execution of the agent's workflow ─→ a worker that serves the agent: Runner.run in its session

When that worker dies, another one begins the run anew, and replays to where it broke.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from agents import Agent, ToolApprovalItem
from agents.memory import Session
from agents.run import DEFAULT_MAX_TURNS
from agents.stream_events import AgentUpdatedStreamEvent, StreamEvent
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_jsonable_python

from nexum_agents.approvals import in_a_stream, run_until_it_ends
from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, RunFailed, ToolError, ending
from nexum_agents.parking import parkable
from nexum_agents.runs import check_that_it_can_be_recorded
from nexum_agents.sessions import WAIT_SECONDS, check_session_id, durable_session, root_of
from nexum_agents.streaming import Streamed, streamed
from nexum_agents.workflows import RUN_NODE, Recorded, run_workflow
from nexum_runtime import ExecutionTimeout, NexumError, Outcome, Parked, ServerUnavailable, idempotency_key, wire
from nexum_runtime.client.outcome import OnWait
from nexum_runtime.definition import Workflow
from nexum_runtime.logs import Log
from nexum_runtime.text import error_text

if TYPE_CHECKING:
    from nexum.context import ContextView

RUN = "run-by-a-worker"  # what it is called in an execution id
WORKERS_LOST_LIMIT = wire.ATTEMPTS_LIMIT  # that were lost while they executed it; then it fails
Memory: TypeAlias = Callable[[str], Session]  # of a session's id: the SDK's session that its runs use
FOREVER_SECONDS = 10 * 365 * 24 * 3600.0

log = Log("worker")


class Order(BaseModel):
    """What such an execution is started with; besides with its `version`, if it is pinned to one."""

    agent: str
    input: Any  # a text, or the SDK's input items
    max_turns: int
    context: Any = None


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to: its `final_output`, the name of the `last_agent`, the `new_items` as input items of the SDK,
    and the `usage`: {"requests", "input_tokens", "output_tokens", "total_tokens"}, of the turns that its last worker
    asked or replayed."""

    final_output: Any
    last_agent: str
    new_items: list[dict[str, Any]]
    usage: dict[str, int]


class StartedRun:
    """A run that workers execute. What it came to can be asked for in any process: start the same run again there."""

    def __init__(
        self, session_id: str, execution_id: str, workflow: Workflow, order: dict[str, Any], agent: Agent[Any]
    ) -> None:
        self.session_id, self.execution_id = session_id, execution_id
        self._workflow, self._order, self._agent = workflow, order, agent

    async def result(
        self, output_type: Any = None, *, timeout: float | None = None, on_wait: OnWait | None = None
    ) -> RunOutcome:
        """Wait for its end, for `timeout` seconds at most. `on_wait` is told, after a second or two and from then on
        now and then, what it waits for: a "worker" that serves the agent, or a "server".

        The final output is of the `output_type`, by default that of the agent if `start_run` was given it itself; else
        it is JSON. Raises RunFailed when the run ended in an error, TimeoutError when there is no end in time,
        SessionStopped, pydantic's ValidationError for what is not of the `output_type`, and DurableCallError.
        """
        seconds = FOREVER_SECONDS if timeout is None else timeout
        try:
            outcome = await nexum_client().execute(
                self._workflow, self._order, execution_id=self.execution_id, timeout=seconds, on_wait=on_wait
            )
        except ExecutionTimeout:
            raise TimeoutError(f"The run {self.execution_id} has not ended within {seconds:g} s.") from None
        except NexumError as error:
            raise ending(error) from None
        known = getattr(self._agent.output_type, "output_type", self._agent.output_type)
        return outcome_of(outcome, known if output_type is None else output_type)

    async def stream_events(self) -> AsyncIterator[StreamEvent]:
        """The run as `Runner.run_streamed(…).stream_events()` tells one, from its beginning, in any process.

            async for event in run.stream_events():
                if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
                    print(event.data.delta, end="", flush=True)

        Words come as they are said, and none twice: when a turn is asked again after a crash, those alone that go on
        from what was told. If its answer is another one by then, it is told whole, from its `response.created` on. The
        model's other events and the items come when the turn is recorded, outputs when their calls are. The agents in
        the events are those that `start_run` was given; with a name alone, they are agents with nothing but a name.
        Raises as `result` does, and DurableCallError when another run of a worker is under way in the session.
        """
        told = Streamed(self._agent)
        yield AgentUpdatedStreamEvent(new_agent=self._agent)
        async for event in streamed(self.execution_id, told):
            yield event
        for event in told.ended((await self.result(Any)).new_items):
            yield event


async def start_run(
    agent: str | Agent[Any],
    input: str | list[Any],
    *,
    session_id: str,
    max_turns: int = DEFAULT_MAX_TURNS,
    context: Any = None,
    version: str = "",
) -> StartedRun:
    """Have a worker that serves this agent run it in a durable session, and return at once.

        run = await start_run("Researcher", "What is durable execution?", session_id="s1")
        print((await run.result()).final_output)

    `agent` is its name, or the agent itself. The same run, of the same agent, input, `max_turns`, `context` and
    `version` in the same session, is started once: to start it again finds it, or lets it go on where it failed. When
    its worker dies, another one goes on with it; nobody has to do anything. Approvals wait for `nexum approve`.
    `context` is given to the run as JSON carries it. With a `version` it waits for a worker that serves this version.

    Raises DurableCallError for a bad `session_id`, `max_turns` or `version`, for an input or a context that JSON cannot
    carry, and when no server answers; SessionStopped.
    """
    check_session_id(session_id)
    check_version(version)
    name = agent if isinstance(agent, str) else agent.name
    if type(max_turns) is not int or max_turns < 1:
        raise DurableCallError(f"max_turns is {max_turns!r}; it must be a whole number from 1 on.")
    asked, carried = _json("input", input, exactly=False), _json("context", context, exactly=True)
    order = Order(agent=name, input=asked, max_turns=max_turns, context=carried).model_dump()
    order |= {"version": version} if version else {}
    place = root_of(session_id).place("run of a worker", RUN, order)
    workflow = run_workflow(name, version)
    start = partial(
        nexum_client().execute,
        workflow,
        order,
        execution_id=place.execution_id,
        max_attempts=WORKERS_LOST_LIMIT,
        labels=place.labels(f"{name}: {input}" if isinstance(input, str) else name),
        timeout=WAIT_SECONDS,
        wait=False,
    )
    try:
        found = await start()
        if found.status == "FAILED" and found.before == found.status:
            await start(restart="unknown")
    except NexumError as error:
        raise ending(error) from None
    return StartedRun(session_id, place.execution_id, workflow, order, Agent(name) if isinstance(agent, str) else agent)


def check_version(version: str) -> None:
    """Raises DurableCallError."""
    if not isinstance(version, str) or not re.fullmatch("[A-Za-z0-9._+-]{0,40}", version):
        raise DurableCallError(f"version is {version!r}; it must be up to 40 letters, digits, and . _ + - of ASCII.")


def workflows_of(agents: Iterable[Agent[Any]], version: str, memory: Memory | None) -> list[Workflow]:
    """What a worker executes that serves these agents, of this version. Raises ValueError for two of one name,
    DurableCallError."""
    check_version(version)
    served: dict[str, list[Workflow]] = {}
    for agent in agents:
        check_that_it_can_be_recorded(agent)
        if agent.name in served:
            raise ValueError(
                f"Two agents are called {agent.name!r}: a worker could not tell whose a run is. Rename one."
            )
        run = partial(_run, agent, memory)
        served[agent.name] = [run_workflow(agent.name, each, run) for each in {"", version}]
    return [each for workflows in served.values() for each in workflows]


async def _run(agent: Agent[Any], memory: Memory | None, context: "ContextView") -> Recorded:
    """A run, as a worker executes it."""
    order = Order.model_validate(context.input)
    session_id, began = str(idempotency_key()).partition("/")[0], time.monotonic()
    log.info("%s begins, or goes on, in session %s", agent.name, session_id)
    options = {"context": order.context, "max_turns": order.max_turns}

    async def go_on() -> tuple[Any, Any]:
        if memory is not None:
            options["session"] = memory(session_id)
        async with durable_session(session_id) as session:
            return session.saved, await run_until_it_ends(in_a_stream, agent, order.input, options)

    try:
        saved, result = await parkable(go_on)
    except Parked:
        log.info("%s waits in session %s, and is parked", agent.name, session_id)
        raise
    except DurableCallError as error:
        away = isinstance(error.__context__, ServerUnavailable | ExecutionTimeout)
        raise ToolError(str(error), retryable=away) from None
    except Exception as error:
        log.warning("%s failed in session %s: %s", agent.name, session_id, error_text(error))
        raise ToolError(error_text(error), retryable=False) from None
    duration_ms = round((time.monotonic() - began) * 1000)
    log.info(
        "%s done in %d ms in session %s, %d turns from the store", agent.name, duration_ms, session_id, saved.turns
    )
    usage = result.context_wrapper.usage
    items = [item for item in result.new_items if not isinstance(item, ToolApprovalItem)]
    note = {
        "last_agent": getattr(result.last_agent, "name", ""),
        "new_items": to_jsonable_python([item.to_input_item() for item in items], fallback=str),
        "usage": {name: getattr(usage, name) for name in ("requests", "input_tokens", "output_tokens", "total_tokens")},
    }
    output = to_jsonable_python(result.final_output, fallback=str, inf_nan_mode="strings")
    return Recorded(result=output, duration_ms=duration_ms, note=note)


def outcome_of(outcome: Outcome, output_type: Any = None) -> RunOutcome:
    """Raises RunFailed unless it is COMPLETED."""
    if outcome.status != "COMPLETED":
        raise RunFailed(
            f"The run {outcome.execution_id} is {outcome.status}: {outcome.error or 'nothing more is known'}"
        )
    found = Recorded.model_validate(outcome.outputs[RUN_NODE])
    output = found.result
    if output_type not in (None, str, Any):
        output = TypeAdapter(output_type).validate_json(wire.json_text(output))
    return RunOutcome(
        output, found.note.get("last_agent", ""), found.note.get("new_items", []), found.note.get("usage", {})
    )


def _json(what: str, value: Any, *, exactly: bool) -> Any:
    """Raises DurableCallError for what JSON cannot carry or, `exactly`, would not bring back as it is."""
    try:
        plain = value if exactly else to_jsonable_python(value)
        back = wire.parse_json(wire.json_text(plain))
    except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise DurableCallError(f"The {what} of a run that a worker executes must be JSON: {error}.") from None
    if exactly and back != value:
        raise DurableCallError(
            f"The {what} of a run that a worker executes must come back from JSON as it is: no tuples, texts as keys."
        )
    return back
