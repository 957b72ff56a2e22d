"""A run that workers execute, as events of the Agents SDK: `StartedRun.stream_events`.

words of a turn under way  ─→ RawResponsesStreamEvent of a response.output_text.delta
a turn that is recorded    ─→ the model's own events, less the words that were told, and its items
a call that is recorded    ─→ RunItemStreamEvent("tool_output")
"""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Any

from agents import Agent, Handoff, ItemHelpers, ModelResponse
from agents.items import (
    HandoffCallItem,
    HandoffOutputItem,
    MCPApprovalRequestItem,
    MCPListToolsItem,
    MessageOutputItem,
    ReasoningItem,
    ToolCallItem,
    ToolCallOutputItem,
)
from agents.stream_events import AgentUpdatedStreamEvent, RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent
from openai.types.responses import ResponseFunctionToolCall, ResponseTextDeltaEvent
from pydantic import ValidationError

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments
from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, ending
from nexum_agents.recording import Unrecordable, from_recorded
from nexum_agents.saying import DELTA
from nexum_agents.sessions import WAIT_SECONDS, shown
from nexum_agents.turns import kind_of, output_of, text_of
from nexum_runtime import Client, NexumError, wire
from nexum_runtime.wire import LABEL_CHARS

HANDOFF = re.compile("transfer_to_(.+)")  # how the SDK calls the tool of a handoff, if nobody gives it another name
ITEMS: dict[str, tuple[Any, Any]] = {  # types of what a model answers: the SDK's item and its event. Others are calls
    "message": (MessageOutputItem, "message_output_created"),
    "reasoning": (ReasoningItem, "reasoning_item_created"),
    "mcp_list_tools": (MCPListToolsItem, "mcp_list_tools"),
    "mcp_approval_request": (MCPApprovalRequestItem, "mcp_approval_requested"),
}
ENDS = ("ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled")


class Streamed:
    """What a run's consumer was told so far."""

    def __init__(self, agent: Agent[Any]) -> None:
        self._agent = agent
        self._said: dict[str, str] = {}  # of turns under way: the words that were told
        self._heard: dict[str, str | None] = {}  # … and those that were said; None: some were left out
        self._open: dict[str, tuple[ResponseFunctionToolCall, Agent[Any]]] = {}  # calls without an output yet
        self._executions: dict[str, str] = {}  # execution id → call id

    def hear(self, told: dict[str, Any]) -> Iterator[StreamEvent]:
        """Words of a turn of the run. Those wait for its end that differ from what was told of it, as when it is asked
        again, and those after which others were left out."""
        id = told["execution_id"]
        heard = "" if told["anew"] else self._heard.get(id, "")
        if heard is None or told["skipped"]:
            self._heard[id] = None
            return
        self._heard[id] = heard = heard + told["words"]
        said = self._said.get(id, "")
        if heard.startswith(said) and heard != said:
            self._said[id] = heard
            yield _delta(id, heard[len(said) :])

    def answered(self, id: str, recorded: Any) -> Iterator[StreamEvent]:
        """A turn of the run that is recorded: whatever of it was not told."""
        said, _ = self._said.pop(id, ""), self._heard.pop(id, None)
        text, events = text_of(recorded), [] if isinstance(recorded, ModelResponse) else recorded
        if said and text.startswith(said):
            if text != said:
                yield _delta(id, text[len(said) :])
            events = [each for each in events if kind_of(each) != DELTA]
        elif not events and text:
            yield _delta(id, text)
        for each in events:
            yield RawResponsesStreamEvent(data=each)
        for each in output_of(recorded):
            yield from self._item(each)

    def _item(self, raw: Any) -> Iterator[StreamEvent]:
        kind, name = ITEMS.get(kind_of(raw), (ToolCallItem, "tool_called"))
        if not isinstance(raw, ResponseFunctionToolCall):
            yield RunItemStreamEvent(name=name, item=kind(agent=self._agent, raw_item=raw))
        elif (agent := _handed_to(self._agent, raw.name)) is not None:
            before, self._agent = self._agent, agent
            yield RunItemStreamEvent(name="handoff_requested", item=HandoffCallItem(agent=before, raw_item=raw))
            message: Any = ItemHelpers.tool_call_output_item(raw, wire.json_text({"assistant": agent.name}))
            item = HandoffOutputItem(agent=before, raw_item=message, source_agent=before, target_agent=agent)
            yield RunItemStreamEvent(name="handoff_occured", item=item)
            yield AgentUpdatedStreamEvent(new_agent=agent)
        else:
            self._open[raw.call_id] = raw, self._agent
            yield RunItemStreamEvent(name=name, item=ToolCallItem(agent=self._agent, raw_item=raw))

    def call_begun(self, id: str, labels: dict[str, Any]) -> None:
        if id not in self._executions:
            taken = set(self._executions.values())
            alike = (each for each, (call, _) in self._open.items() if each not in taken and _is_of(call, labels))
            if (call_id := next(alike, None)) is not None:
                self._executions[id] = call_id

    def call_ended(self, id: str, output: Any) -> Iterator[StreamEvent]:
        call_id = self._executions.pop(id, None)
        if call_id in self._open and output is not None:
            with suppress(Unrecordable):
                output = from_recorded(output)
            yield self._output(call_id, output)

    def ended(self, items: list[dict[str, Any]]) -> Iterator[StreamEvent]:
        """The run. `items` are all that came of it: the outputs of calls that are not recorded are told from them."""
        outputs = {each.get("call_id"): each.get("output") for each in items if "output" in each}
        for call_id in [each for each in self._open if each in outputs]:
            yield self._output(call_id, outputs[call_id])

    def _output(self, call_id: str, output: Any) -> StreamEvent:
        call, agent = self._open.pop(call_id)
        raw = ItemHelpers.tool_call_output_item(call, output)
        return RunItemStreamEvent(name="tool_output", item=ToolCallOutputItem(agent=agent, raw_item=raw, output=output))


async def streamed(run_id: str, told: Streamed) -> AsyncGenerator[StreamEvent, None]:
    """What a run is telling, until it has ended. Raises DurableCallError."""
    client, session_id = nexum_client(), run_id.partition("/")[0]
    has_begun, others, outputs = False, set[str](), dict[str, Any]()
    runs, is_own = dict[str, str](), dict[str, bool]()  # of turns: of which run, and whether of that itself
    try:
        async with aclosing(client.follow(session_id, patience=WAIT_SECONDS)) as following:
            async for each in following:
                id, type, labels = each.get("execution_id", ""), each.get("type"), each.get("labels", {})
                if id == run_id:
                    has_begun = has_begun or type == "AttemptStarted"
                    if type in ENDS and (await client.status(id)).status != "RUNNING":
                        return
                elif labels.get("kind") == "run of a worker" and type in ENDS:
                    others.discard(id)
                elif labels.get("kind") == "run of a worker" and type == "AttemptStarted":
                    others.add(id)
                if not has_begun or id == run_id:
                    continue
                if others:
                    raise DurableCallError(
                        f"Two runs are under way in session {session_id}, and the words of one cannot be told from the "
                        f"other's: follow({session_id!r}) tells both."
                    )
                if "words" in each:
                    if id not in is_own:  # an agent that is a tool speaks to the model, not to the consumer
                        is_own[id] = (await _scope_of(client, id)) == runs.get(id)
                    for event in told.hear(each) if is_own[id] else ():
                        yield event
                elif type == "AttemptStarted" and labels.get("kind") == "turn":
                    runs[id] = labels.get("run", "")
                elif type == "AttemptStarted" and labels.get("kind") == "call":
                    told.call_begun(id, labels)
                elif type == "TaskCompleted":
                    outputs[id] = each.get("output")
                elif type in ENDS:
                    recorded = outputs.pop(id, None)
                    if type == "ExecutionCompleted" and recorded is None:  # it is large
                        recorded = next(iter((await client.status(id)).outputs.values()), None)
                    record = recorded if isinstance(recorded, dict) else {"result": recorded}
                    if labels.get("kind") == "call":
                        for event in told.call_ended(id, record.get("result")):
                            yield event
                    elif labels.get("kind") == "turn" and record.get("scope") == labels.get("run"):
                        with suppress(Unrecordable, ValidationError):  # of another version: it is not known here
                            for event in told.answered(id, from_recorded(record["result"])):
                                yield event
    except NexumError as error:
        raise ending(error) from None


async def _scope_of(client: Client, turn_id: str) -> Any:
    async for found in client.history(turn_id):
        return found["input"].get("scope")
    return None


def _delta(id: str, text: str) -> StreamEvent:
    return RawResponsesStreamEvent(
        data=ResponseTextDeltaEvent(
            type="response.output_text.delta",
            delta=text,
            content_index=0,
            output_index=0,
            item_id=id,
            sequence_number=0,
            logprobs=[],
        )
    )


def _is_of(call: ResponseFunctionToolCall, labels: dict[str, Any]) -> bool:
    text = shown(parsed_arguments(call.arguments))[:LABEL_CHARS]
    return labels.get("name") == call.name and labels.get("text", "") == text


def _handed_to(agent: Agent[Any], tool: str) -> Agent[Any] | None:
    """The agent that a call of this tool hands over to; None if it is another tool."""
    for each in agent.handoffs:
        name = each.tool_name if isinstance(each, Handoff) else Handoff.default_tool_name(each)
        if name == tool:
            target = seams.agent_of_handoff(each) if isinstance(each, Handoff) else each
            return target if isinstance(target, Agent) else Agent(name=tool)
    match = HANDOFF.fullmatch(tool)
    return Agent(name=match[1]) if match and not agent.handoffs and not agent.tools else None
