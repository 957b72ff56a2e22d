"""A run that is elsewhere as the SDK's own events: what `Runner.run_streamed(…).stream_events()` yields of one here."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from agents import (
    Agent,
    Handoff,
    HandoffCallItem,
    ItemHelpers,
    MessageOutputItem,
    ReasoningItem,
    ToolCallItem,
    ToolCallOutputItem,
)
from agents.stream_events import AgentUpdatedStreamEvent, RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import ValidationError

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments
from nexum_agents.clients import nexum_client
from nexum_agents.following import FollowEvent, follow
from nexum_agents.recording import Unrecordable, from_recorded
from nexum_agents.saying import DELTA
from nexum_agents.turns import output_of
from nexum_runtime.engines import Use


async def sdk_events(session_id: str, execution_id: str, agent: Agent[Any]) -> AsyncGenerator[StreamEvent, None]:
    """From the first attempt of that run to its end."""
    stream = _Stream(agent)
    has_begun = False
    async with aclosing(follow(session_id, keep_on=True)) as told:
        async for event in told:
            if event.execution_id == execution_id:
                if event.kind == "begun" and not has_begun:
                    has_begun = True
                    yield AgentUpdatedStreamEvent(new_agent=agent)
                elif event.kind == "ended":
                    return
            elif has_begun:
                for each in await stream.of(event):
                    yield each


class _Stream:
    def __init__(self, agent: Agent[Any]) -> None:
        self._agent = agent
        self._calls: list[Any] = []  # of the turns so far, that have no output yet
        self._said = 0

    async def of(self, event: FollowEvent) -> list[StreamEvent]:
        if event.kind == "words":
            self._said += 1
            delta = ResponseTextDeltaEvent(
                content_index=0,
                delta=event.text,
                item_id=event.execution_id,
                logprobs=[],
                output_index=0,
                sequence_number=self._said,
                type=DELTA,
            )
            return [RawResponsesStreamEvent(data=delta)]
        if event.kind == "ended" and event.what == "turn" and event.status == "COMPLETED":
            return list(self._of_turn(event.output))
        if event.kind == "ended" and event.what == "call":
            return await self._of_call(event)
        return []

    def _of_turn(self, recorded: Any) -> "list[StreamEvent]":
        try:
            turn = from_recorded(recorded)
            output = output_of(turn)
        except (Unrecordable, ValidationError):  # of another version, say
            return []
        told: list[StreamEvent] = [RawResponsesStreamEvent(data=turn[-1])] if isinstance(turn, list) else []
        for item in output:
            match getattr(item, "type", ""):
                case "message":
                    made = MessageOutputItem(agent=self._agent, raw_item=item)
                    told.append(RunItemStreamEvent(name="message_output_created", item=made))
                case "reasoning":
                    thought = ReasoningItem(agent=self._agent, raw_item=item)
                    told.append(RunItemStreamEvent(name="reasoning_item_created", item=thought))
                case "function_call" if (target := self._target(item.name)) is not None:
                    asked = HandoffCallItem(agent=self._agent, raw_item=item)
                    told.append(RunItemStreamEvent(name="handoff_requested", item=asked))
                    self._agent = target
                    told.append(AgentUpdatedStreamEvent(new_agent=target))
                case "function_call":
                    self._calls.append(item)
                    called = ToolCallItem(agent=self._agent, raw_item=item)
                    told.append(RunItemStreamEvent(name="tool_called", item=called))
        return told

    def _target(self, tool: str) -> Agent[Any] | None:
        """The agent that a call of this name hands off to; None for a call of a tool."""
        for each in self._agent.handoffs:
            found = seams.agent_of_handoff(each) if isinstance(each, Handoff) else each
            name = each.tool_name if isinstance(each, Handoff) else Handoff.default_tool_name(each)
            if name == tool:
                return found or Agent(name=getattr(each, "agent_name", tool))
        return None

    async def _of_call(self, event: FollowEvent) -> list[StreamEvent]:
        alike = [each for each in self._calls if each.name == event.name]
        if len(alike) > 1:
            async for told in nexum_client(Use.LOOK).history(event.execution_id):
                args = told["input"].get("tool_args") if isinstance(told["input"], dict) else None
                alike = [each for each in alike if parsed_arguments(each.arguments) == args] or alike
        if not alike:
            return []
        self._calls.remove(alike[0])
        output = event.error if event.status != "COMPLETED" else event.output
        raw = ItemHelpers.tool_call_output_item(alike[0], output if isinstance(output, str) else str(output))
        made = ToolCallOutputItem(agent=self._agent, raw_item=raw, output=output)
        return [RunItemStreamEvent(name="tool_output", item=made)]
