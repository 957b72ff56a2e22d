"""Turns of a model: recorded when the model has answered, and given back when the same turn comes again.

A turn is a local effect: this process asks the model, as always, and records the answer before the agent sees it. It is
the same turn when everything that the model is asked is the same.
"""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from agents import (
    CodeInterpreterTool,
    FunctionTool,
    HostedMCPTool,
    ModelResponse,
    ModelRetryAdvice,
    ModelRetryAdviceRequest,
    ModelRetryNormalizedError,
    ModelSettings,
    ShellTool,
    Tool,
)
from agents.agent_output import AgentOutputSchemaBase
from agents.models import get_default_model
from agents.models.interface import Model
from openai.types.responses import ResponseCompletedEvent
from pydantic import ValidationError

from nexum_agents.calls import parsed_arguments
from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError
from nexum_agents.events import TurnEvent
from nexum_agents.limits import Making
from nexum_agents.parking import busy
from nexum_agents.recording import Unrecordable, from_recorded, to_recorded
from nexum_agents.saying import DELTA, Saying
from nexum_agents.sessions import TURN, WAIT_SECONDS, Place, Scope, current_scope, digest
from nexum_agents.standin import StandIn
from nexum_agents.workflows import MODEL_TURN, TURN_NODE, Recorded
from nexum_runtime import ExecutionCancelled, LimitExceeded, LocalEffect, NexumError, Outcome
from nexum_runtime.text import error_text, shorten
from nexum_runtime.wire import NEW

SAYS_CHARS = 60
ITEM_DONE = "response.output_item.done"
ENDS_BADLY = ("response.failed", "response.incomplete", "response.error", "error")  # types of events
GENERATED = "agents-sdk:"  # what the SDK's own prompt cache keys begin with
ASKED = ("system_instructions", "input", "model_settings", "tools", "output_schema", "handoffs", "tracing")

# Settings that have no part in what a model answers.
BESIDE_THE_POINT = {
    "extra_headers",
    "include_usage",
    "metadata",
    "preserve_raw_usage",
    "prompt_cache_options",
    "prompt_cache_retention",
    "retry",
    "store",
    "timeout",
}
SECRETS = {"authorization", "headers", "domain_secrets"}  # in a hosted tool's settings: often a new one each time


class MissingModel(Model):
    """A model that could not be made here. A replay does not need it; whoever asks it is told why it is missing."""

    def __init__(self, why: Exception) -> None:
        self._why = why

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        raise self._why

    async def stream_response(self, *_: Any, **__: Any) -> Any:
        raise self._why
        yield


def model_of(plain: Any) -> Any:
    """The seam at which a turn's model is chosen: inside a session, one whose turns are recorded."""

    def get_model(agent: Any, run_config: Any) -> Any:
        scope = current_scope()
        if scope is None or not scope.session.turns:
            return plain(agent, run_config)
        named = (run_config.model if run_config.model is not None else agent.model) or get_default_model()
        try:
            model = plain(agent, run_config)
        except Exception as error:
            model = MissingModel(error)
        name = named if isinstance(named, str) else name_of(model)
        return scope.models.setdefault((id(model), name), RecordedModel(model, name))

    return get_model


class RecordedModel(StandIn):
    """A model whose turns are recorded, in the scope of whoever asks it."""

    def __init__(self, model: Model, name: str) -> None:
        super().__init__(model)
        self._name = name

    async def get_response(self, *args: Any, **named: Any) -> ModelResponse:
        async with _turn(self._name, args, named, streamed=False) as turn:
            if turn.recorded is None:
                async with turn.until_stopped():
                    response = await self._stands_for.get_response(*args, **named)
                await turn.record(response, response.output, response.usage.total_tokens or 0)
            answer: ModelResponse = turn.recorded
            return answer

    async def stream_response(self, *args: Any, **named: Any) -> AsyncIterator[Any]:
        async with _turn(self._name, args, named, streamed=True) as turn:
            if turn.recorded is not None:
                for event in turn.recorded:
                    yield event
                return
            events: list[Any] = []
            stream = self._stands_for.stream_response(*args, **named)
            told = aiter(stream)
            try:
                while True:
                    async with turn.until_stopped():
                        event = await anext(told, _OVER)
                    if event is _OVER:
                        break
                    events.append(event)
                    if kind_of(event) == DELTA:
                        turn.say(event.delta)
                    if isinstance(event, ResponseCompletedEvent):  # recorded before anything follows from it
                        usage = event.response.usage
                        output = event.response.output or [e.item for e in events if kind_of(e) == ITEM_DONE]
                        await turn.record(events, output, (usage and usage.total_tokens) or 0)
                        event = _completed(turn.recorded)
                    elif kind_of(event) in ENDS_BADLY:
                        await turn.fail(f"The model's answer ended in {kind_of(event)}{_why(event)}")
                    yield event
            finally:
                if close := getattr(stream, "aclose", None):
                    await close()
            await turn.fail("The model's answer broke off.")

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        if isinstance(request.error, DurableCallError):  # it ends the run, whatever the policy of its retries
            return ModelRetryAdvice(normalized=ModelRetryNormalizedError(is_abort=True))
        advice: ModelRetryAdvice | None = self._stands_for.get_retry_advice(request)
        return advice


_OVER = object()  # after the last event of a stream


@asynccontextmanager
async def _turn(model: str, args: tuple[Any, ...], named: dict[str, Any], *, streamed: bool) -> AsyncIterator["_Turn"]:
    scope = current_scope()
    assert scope is not None, "a model is recorded inside of a session only"
    scope.check()
    asked = dict(zip(ASKED, args, strict=False)) | named
    scope.session.meet_tools(tool.name for tool in asked["tools"])
    turn = _Turn(scope, model, asked, streamed=streamed)
    try:
        outputs = await scope.session.recorded(turn.place.execution_id)
        if outputs is not None and turn.replay(outputs):
            yield turn
            return
        if reached := await scope.limit_reached("turns", "tokens"):
            raise reached
        content = turn.content()
        with scope.making(turn.place) as making:
            async with nexum_client().local_effect(
                MODEL_TURN,
                content,
                execution_id=turn.place.execution_id,
                restart="unknown",  # a turn that failed is asked anew, as the SDK would
                timeout=WAIT_SECONDS,
                labels=turn.labels(),
                on_wait=lambda waiting: turn.tell("waiting", detail=waiting),
            ) as effect:
                ended = effect.outcome
                if ended is None or outputs is not None or not turn.replay(turn.outputs_of(ended)):
                    await turn.begin(effect, making, content)
                yield turn
    except (NexumError, DurableCallError) as error:
        turn.tell("failed", detail=str(error))
        raise scope.stop(error) from None
    except Exception as error:
        turn.tell("failed", detail=error_text(error))
        raise
    finally:
        turn.be_silent()
        if not turn.is_over:  # when it is asked again, by the SDK say, it is the same turn
            scope.give_back(turn.place)


class _Turn:
    """One turn: `recorded` is what the model answered to it before, None when it has to be asked."""

    def __init__(self, scope: Scope, model: str, asked: dict[str, Any], *, streamed: bool) -> None:
        self._scope, self._session, self._model, self._asked = scope, scope.session, model, asked
        self._brief = _brief(model, asked, streamed=streamed)
        self.place: Place = scope.place("turn", TURN, self._brief)
        self.recorded: Any = None  # None, a ModelResponse, or the list of a stream's events
        self.is_over = self._has_failed = False
        numbers = self._session.turn_numbers
        self._number = numbers.setdefault(self.place.execution_id, len(numbers) + 1)
        self._effect: LocalEffect | None = None
        self._making: Making | None = None
        self._saying: Saying | None = None
        self._started = time.monotonic()

    def content(self) -> dict[str, Any]:
        """What makes it this turn, part by part, for who wants to know later what was changed."""
        input = self._asked["input"]
        items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
        return self._brief | {
            "scope": self._scope.key,
            "nth": self._scope.turns + 1,
            "input": [[_kind(item), digest(item)] for item in items],
        }

    def labels(self, tokens: int = 0) -> dict[str, Any]:
        labels = self.place.labels(self._model)
        return labels | {"numbers": {"tokens": tokens}} if tokens else labels

    @asynccontextmanager
    async def until_stopped(self) -> AsyncIterator[None]:
        """A block in which the model is waited for; it is cut short when the session is stopped."""
        if self._effect is None:
            yield
            return
        try:
            with busy():
                async with self._effect.until_stopped():
                    yield
        except ExecutionCancelled:
            raise DurableCallError(f"Turn {self._number} of the model was cancelled.") from None

    def tell(self, kind: Any, **more: Any) -> None:
        elapsed_ms = round((time.monotonic() - self._started) * 1000)
        self._session.tell(TurnEvent(kind, self.place.execution_id, self._number, self._model, elapsed_ms, **more))

    def replay(self, outputs: dict[str, Any]) -> bool:
        """Give back what is recorded. Returns whether it could be."""
        try:
            found = _recorded(outputs)
            recorded = from_recorded(found.result)
            output = output_of(recorded)
        except (Unrecordable, ValidationError) as error:
            self.tell("unrecorded", detail=f"its record cannot be read here, so the model is asked again: {error}")
            return False
        self._is_answered(recorded, output)
        self.tell("cached", saved_ms=found.duration_ms, tokens=found.tokens, says=_says(output))
        return True

    async def begin(self, effect: LocalEffect, making: Making, content: dict[str, Any]) -> None:
        """Say that the model is asked, and why, unless what is recorded could not be read."""
        first, self._scope.is_replaying = self._scope.is_replaying, False
        if effect.outcome is not None:
            return
        self._effect, self._making = effect, making
        why = self.place.why_anew
        if not why and first and effect.before == NEW and self._session.recorded_turns:
            why = await self._difference(content)
        self.tell("started", detail=why)
        self._started = time.monotonic()

    def say(self, text: Any) -> None:
        """It is heard by who follows the session."""
        if self._saying is None and self._effect is not None:
            self._saying = Saying(self.place.execution_id, self._effect.attempt)
        if self._saying is not None and isinstance(text, str):
            self._saying.say(text)

    def be_silent(self) -> None:
        if self._saying is not None:
            self._saying.end()

    async def record(self, answer: Any, output: list[Any], tokens: int) -> None:
        """Record the model's answer. One that would not come back as it is, passes unrecorded."""
        if self._effect is None:
            self._is_answered(answer, output)
            return
        record: dict[str, Any] = {"duration_ms": round((time.monotonic() - self._started) * 1000), "tokens": tokens}
        try:
            record |= {"result": to_recorded(answer), "scope": self._scope.key, "nth": self._scope.turns + 1}
            outcome = await self._effect.record(record, self.labels(tokens))
        except (Unrecordable, LimitExceeded) as error:
            self._is_answered(answer, output)
            await self._effect.give_up(str(error), retryable=False)
            self.tell("unrecorded", detail=f"it cannot be recorded, and is asked again by the next run: {error}")
            return
        if self.outputs_of(outcome)[TURN_NODE] is not record:  # another process was first: that counts
            answer = from_recorded(_recorded(outcome.outputs).result)
            output = output_of(answer)
        assert self._making is not None, "it was begun"
        self._session.limits.use(self._making, tokens)
        self._is_answered(answer, output)
        self.tell("stored", tokens=tokens, says=_says(output))

    async def fail(self, why: str) -> None:
        """There is nothing to record: the next run asks again. Nothing changes for one that has an answer."""
        if self.is_over or self._has_failed:
            return
        self._has_failed = True
        if self._effect is not None:
            await self._effect.give_up(why, retryable=False)
        self.tell("failed", detail=why)

    def outputs_of(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.status != "COMPLETED":
            raise DurableCallError(f"Turn {self._number} of the model was {outcome.status.lower()}.")
        return outcome.outputs

    def _is_answered(self, answer: Any, output: list[Any]) -> None:
        self.is_over, self.recorded = True, answer
        self._scope.turns += 1
        self._scope.last_turn = self.place.id, self.place.times
        self._scope.expect(
            (str(item.call_id), item.name, parsed_arguments(item.arguments))
            for item in output
            if getattr(item, "type", "") == "function_call"
        )

    async def _difference(self, content: dict[str, Any]) -> str:
        """What is not as in the recorded turn that was to come next in this run, in words; "" if none was.

        In a run that has no recorded turn, it is the first turn of one that was not met again.
        """
        prefix = f"{self._session.session_id}/{TURN}/"
        met = self._session.turn_numbers.keys() - {self.place.execution_id}
        following: dict[str, Any] | None = None
        first: dict[str, Any] | None = None
        async for turn in nexum_client().history(prefix):
            before, is_met = turn["input"], turn["execution_id"] in met
            is_here = before["scope"] == self._scope.key
            if is_met and is_here:
                following = None  # what was recorded before it was of this run before an edit
            elif turn["status"] == "COMPLETED" and not is_met:
                if is_here:
                    following = following or before
                elif before["nth"] == content["nth"] == 1:
                    first = first or before
        changed = following or first
        return ", ".join(_changes(changed, content)) if changed else ""


def _recorded(outputs: dict[str, Any]) -> Recorded:
    return Recorded.model_validate(outputs[TURN_NODE])


def _brief(name: str, asked: dict[str, Any], *, streamed: bool) -> dict[str, Any]:
    """All that the model is asked, each part of it as a digest."""
    instructions, schema = asked["system_instructions"], asked["output_schema"]
    return {
        "model": name,
        "streamed": streamed,
        "instructions": instructions and digest(instructions),
        "input": digest(asked["input"]),
        "settings": _settings(asked["model_settings"]),
        "tools": _digests((tool.name, _tool_content(tool)) for tool in asked["tools"]),
        "handoffs": _digests((h.tool_name, [h.tool_description, h.input_json_schema]) for h in asked["handoffs"]),
        "output_schema": _schema_digest(schema),
        "prompt": asked.get("prompt") and digest(asked["prompt"]),
        "previous_response": asked.get("previous_response_id"),
        "conversation": asked.get("conversation_id"),
    }


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two turns' contents, in words."""
    whole = ("model", "streamed", "instructions", "output_schema", "prompt", "previous_response", "conversation")
    changes = [f"{part.replace('_', ' ')} changed" for part in whole if before.get(part) != now[part]]
    for part in ("settings", "tools", "handoffs"):
        was, is_now = before.get(part, {}), now[part]
        changed = sorted(name for name in was.keys() | is_now.keys() if was.get(name) != is_now.get(name))
        if changed:
            changes.append(f"{part} changed ({shorten(', '.join(changed), SAYS_CHARS)})")
    was, is_now = before.get("input", []), now["input"]
    if was != is_now:
        same = next((n for n, (one, other) in enumerate(zip(was, is_now, strict=False)) if one != other), None)
        where = f"item {same + 1}, {is_now[same][0]}" if same is not None else f"{len(is_now)} items, not {len(was)}"
        changes.append(f"input changed ({where})")
    return changes


def _digests(named: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By name; several of one name, as hosted MCP servers have it, are told apart by their order."""
    digests: dict[str, str] = {}
    for name, value in named:
        number = sum(known.partition("#")[0] == name for known in digests)
        digests[f"{name}#{number + 1}" if number else name] = digest(value)
    return digests


def _kind(item: Any) -> str:
    """ "user", "assistant", or such as "function_call_output"."""
    plain = item if isinstance(item, dict) else vars(item)
    return str(plain.get("role") or plain.get("type") or "item")


def _settings(settings: ModelSettings) -> dict[str, str]:
    found = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in BESIDE_THE_POINT}
    if extra := found["extra_args"]:  # without the prompt cache key that the SDK makes up for each run
        key = str(extra.get("prompt_cache_key", ""))
        found["extra_args"] = {
            k: v for k, v in extra.items() if k != "prompt_cache_key" or not key.startswith(GENERATED)
        }
    return {name: digest(value) for name, value in found.items() if value not in (None, {})}


def _tool_content(tool: Tool) -> Any:
    if isinstance(tool, FunctionTool):
        return [tool.description, tool.params_json_schema, tool.strict_json_schema]
    if not is_dataclass(tool):
        return type(tool).__name__
    values = {each.name: getattr(tool, each.name) for each in fields(tool)}
    if isinstance(tool, HostedMCPTool | ShellTool | CodeInterpreterTool):
        values = _without_secrets(values)
    return {name: value for name, value in values.items() if not callable(value) and not name.startswith("_")}


def _without_secrets(value: Any) -> Any:
    """A hosted tool's settings without what opens a door: that is often a new one each time."""
    if isinstance(value, dict):
        kept = {name: _without_secrets(part) for name, part in value.items() if name not in SECRETS}
        if isinstance(url := kept.get("server_url"), str):
            parts = urlsplit(url)
            kept["server_url"] = [parts.scheme, parts.hostname, parts.port, parts.path]
        return kept
    return [_without_secrets(part) for part in value] if isinstance(value, list) else value


def _schema_digest(schema: AgentOutputSchemaBase | None) -> str | None:
    if schema is None or schema.is_plain_text():
        return None
    return digest([schema.name(), schema.json_schema(), schema.is_strict_json_schema()])


def output_of(recorded: Any) -> list[Any]:
    """The output items of a recorded turn, whole or streamed. Raises Unrecordable if it is none."""
    output: list[Any] = recorded.output if isinstance(recorded, ModelResponse) else _completed(recorded).response.output
    return output


def text_of(recorded: Any) -> str:
    """All words of a recorded turn, as they were said. Raises Unrecordable if it is none."""
    messages = [item for item in output_of(recorded) if getattr(item, "type", "") == "message"]
    return "".join(getattr(part, "text", "") for message in messages for part in message.content)


def _completed(events: Any) -> ResponseCompletedEvent:
    for event in events if isinstance(events, list) else []:
        if isinstance(event, ResponseCompletedEvent):
            return event
    raise Unrecordable("it is no turn of a model")


def kind_of(event: Any) -> str:
    """An event's type. A provider's stream may have anything in it."""
    return str(getattr(event, "type", ""))


def _why(event: Any) -> str:
    """What an event that ends an answer badly says of the reason, as `: …`."""
    response = getattr(event, "response", None)
    said = [
        getattr(event, "message", None),
        getattr(getattr(response, "error", None), "message", None),
        getattr(getattr(response, "incomplete_details", None), "reason", None),
    ]
    return "".join(f": {one}" for one in said if one) or "."


def _says(output: list[Any]) -> str:
    """What the model does, such as `calls web_search, web_search` or `answers`."""
    calls = [item.name for item in output if getattr(item, "type", "") == "function_call"]
    if calls:
        return f"calls {shorten(', '.join(calls), SAYS_CHARS)}"
    return "answers" if any(getattr(item, "type", "") == "message" for item in output) else ""


def name_of(model: Any) -> str:
    """The model's name, or what kind it is."""
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__
