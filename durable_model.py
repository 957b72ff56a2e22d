"""Turns of the model that survive a crash: recorded by Nexum, and given back when the same turn comes again.

    run_config = RunConfig(model_provider=durable_models("my-session"))
    result = await Runner.run(agent, question, run_config=run_config)

Run the same session again, and it replays to the point where it broke without one request to the model. A turn is a
local effect: this process asks the model, as always, and records the answer before the agent sees it. It is the same
turn when everything the model is asked is the same; so after an edit the turns before it replay, and those after it
are asked anew.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

from agents import (
    FunctionTool,
    Handoff,
    HostedMCPTool,
    ModelProvider,
    ModelResponse,
    ModelRetryAdvice,
    ModelRetryAdviceRequest,
    ModelRetryNormalizedError,
    ModelSettings,
    MultiProvider,
    Tool,
)
from agents.agent_output import AgentOutputSchemaBase
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models import get_default_model
from agents.models.interface import Model
from openai.types.responses import ResponseCompletedEvent
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from durable_session import TURN, DurableCallError, DurableSession, TurnEvent, nexum_client, run_of
from nexum_runtime import LimitExceeded, LocalEffect, NexumError, Outcome
from nexum_runtime.text import shorten
from nexum_runtime.wire import NEW, canonical_json
from recording import Unrecordable, from_recorded, to_recorded
from workflow import MODEL_TURN, Local

WAIT_SECONDS = 600.0  # for another process that has this very turn under way, or for a server that is away
SAYS_CHARS = 60
ENDS_BADLY = ("response.failed", "response.incomplete", "response.error", "error")  # types of events
GENERATED = "agents-sdk:"  # what the SDK's own prompt cache keys begin with
NOT_OF_THE_MODEL = ("user", "system", "developer", "_output")  # what the kinds of input items end with

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


def durable_models(session_id: str, provider: ModelProvider | None = None) -> ModelProvider:
    """A provider whose models record every turn under `session_id`, or give back what is recorded.

    Make one for each run. Models come from `provider`, by default the SDK's own. Raises DurableCallError for an id that
    is none.
    """
    return _DurableProvider(run_of(session_id), provider or MultiProvider())


def durable_model(model: Model, session_id: str) -> Model:
    """The same for a model that an agent holds itself, which no provider is asked for."""
    return DurableModel(run_of(session_id), lambda: model, name_of(model))


class _DurableProvider(ModelProvider):
    def __init__(self, session: DurableSession, provider: ModelProvider) -> None:
        self._session, self._provider = session, provider
        self._models: dict[str | None, DurableModel] = {}

    def get_model(self, model_name: str | None) -> Model:
        if model_name not in self._models:
            self._models[model_name] = DurableModel(
                self._session, lambda: self._provider.get_model(model_name), model_name or get_default_model()
            )
        return self._models[model_name]

    async def aclose(self) -> None:
        await self._provider.aclose()


class DurableModel(Model):
    """A model whose turns are recorded. The model itself is made by `make` when a turn has to be asked for."""

    def __init__(self, session: DurableSession, make: Callable[[], Model], name: str) -> None:
        self._session, self._make, self._name = session, make, name
        self._made: Model | None = None

    @property
    def _model(self) -> Model:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        *more: Any,
        **named: Any,
    ) -> ModelResponse:
        asked = (system_instructions, input, model_settings, tools, output_schema, handoffs)
        async with self._turn(_content(self._name, *asked, named, streamed=False)) as turn:
            if turn.recorded is None:
                response = await self._model.get_response(*self._asks(*asked), *more, **named)
                await turn.record(response, response.output, response.usage.total_tokens)
            answer: ModelResponse = turn.recorded
            return answer

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        *more: Any,
        **named: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        asked = (system_instructions, input, model_settings, tools, output_schema, handoffs)
        async with self._turn(_content(self._name, *asked, named, streamed=True)) as turn:
            if turn.recorded is not None:
                for event in turn.recorded:
                    yield event
                return
            events: list[TResponseStreamEvent] = []
            async for event in self._model.stream_response(*self._asks(*asked), *more, **named):
                events.append(event)
                if isinstance(event, ResponseCompletedEvent):  # recorded before anything follows from it
                    usage = event.response.usage
                    await turn.record(events, event.response.output, usage.total_tokens if usage else 0)
                    event = _completed(turn.recorded)
                elif event.type in ENDS_BADLY:
                    await turn.fail(f"The model's answer ended in {event.type}{_why(event)}")
                    yield event
                    return
                yield event
            if not turn.is_over:
                await turn.fail("The model's answer broke off.")

    @asynccontextmanager
    async def _turn(self, content: dict[str, Any]) -> AsyncIterator["_Turn"]:
        session = self._session
        if session.stopped:
            raise DurableCallError(session.stopped)
        turn = _Turn(session, self._name, session.next_execution_id(TURN, content))
        try:
            if len(session.turns) == 1:  # a run ends at once if there is no server; one that goes away is waited for
                await nexum_client().check()
            outputs = await session.recorded(turn.execution_id)
            if outputs is not None and turn.replay(outputs):
                yield turn
                return
            async with nexum_client().local_effect(
                MODEL_TURN,
                content,
                execution_id=turn.execution_id,
                restart="unknown",  # a turn that failed is asked anew, as the SDK would
                timeout=WAIT_SECONDS,
                on_wait=lambda waiting: turn.tell("waiting", detail=waiting),
            ) as effect:
                ended = effect.outcome
                if ended is None or outputs is not None or not turn.replay(turn.outputs_of(ended)):
                    await turn.begin(effect, content)
                yield turn
        except (NexumError, DurableCallError) as error:
            turn.tell("failed", detail=str(error))
            raise session.stop(str(error)) from None
        except Exception as error:
            turn.tell("failed", detail=f"{type(error).__name__}: {error}")
            raise
        finally:
            if not turn.is_over:  # when it is asked again, by the SDK say, it is the same turn
                session.give_back(turn.execution_id)

    def _asks(self, instructions: Any, input: Any, settings: ModelSettings, *more: Any) -> tuple[Any, ...]:
        """What the model itself is asked: without the SDK's own prompt cache key, if it would not have got one."""
        supports = getattr(self._model, "_supports_default_prompt_cache_key", None)
        if not (supports and supports()):
            settings = _without_generated_key(settings)
        return (instructions, input, settings, *more)

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice | None:
        if isinstance(request.error, DurableCallError):  # it has to stop the run, whatever the policy of its retries
            return ModelRetryAdvice(normalized=ModelRetryNormalizedError(is_abort=True))
        return self._model.get_retry_advice(request) if self._made else None

    def _supports_default_prompt_cache_key(self) -> bool:
        """Asked by the SDK before every turn. Whether the model does is seen when it is asked: a replay makes none."""
        return True

    async def _cleanup_on_run_end(self, owner: object) -> None:
        if self._made is not None:
            await self._made._cleanup_on_run_end(owner)

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


class _Turn:
    """One turn: `recorded` is what the model has answered to it before, None when it has to be asked."""

    def __init__(self, session: DurableSession, model: str, execution_id: str) -> None:
        self.execution_id = execution_id
        self.recorded: Any = None  # None, a ModelResponse, or the list of a stream's events
        self.is_over = False
        self._session, self._model = session, model
        self._number = session.turns.setdefault(execution_id, len(session.turns) + 1)
        self._effect: LocalEffect | None = None
        self._started = time.monotonic()

    def tell(self, kind: Any, **more: Any) -> None:
        elapsed_ms = round((time.monotonic() - self._started) * 1000)
        self._session.tell(TurnEvent(kind, self.execution_id, self._number, self._model, elapsed_ms, **more))

    def replay(self, outputs: dict[str, Any]) -> bool:
        """Give back what is recorded. Returns whether it could be."""
        try:
            found = _local(outputs)
            recorded = from_recorded(found.result)
            says = _says(_output(recorded))
        except (Unrecordable, ValidationError) as error:
            self.tell("unrecorded", detail=f"its record cannot be read here, so the model is asked again: {error}")
            return False
        self.is_over, self.recorded = True, recorded
        self.tell("cached", saved_ms=found.duration_ms, tokens=found.tokens, says=says)
        return True

    async def begin(self, effect: LocalEffect, content: dict[str, Any]) -> None:
        """Say that the model is asked, and why, unless what is recorded could not be read."""
        first = not self._session.turns_asked
        self._session.turns_asked += 1
        if effect.outcome is not None:
            return
        self._effect = effect
        self.tell("started", detail=await self._difference(content) if first and effect.before == NEW else "")
        self._started = time.monotonic()

    async def record(self, answer: Any, output: list[Any], tokens: int) -> None:
        """Record the model's answer; one that would not come back as it is, is let pass unrecorded."""
        self.recorded = answer
        if self._effect is None:
            self.is_over = True
            return
        duration_ms = round((time.monotonic() - self._started) * 1000)
        try:
            result = to_recorded(answer)
            outcome = await self._effect.record({"result": result, "duration_ms": duration_ms, "tokens": tokens})
        except (Unrecordable, LimitExceeded) as error:
            self.is_over = True
            await self._effect.give_up(str(error), retryable=False)
            self.tell("unrecorded", detail=f"it cannot be recorded, and is asked again by the next run: {error}")
            return
        recorded = _local(self.outputs_of(outcome)).result
        if recorded is not result:  # another process was first: that counts
            self.recorded = from_recorded(recorded)
        self.is_over = True
        self.tell("stored", tokens=tokens, says=_says(output))

    async def fail(self, why: str) -> None:
        """There is nothing to record: the next run asks again."""
        if self._effect is not None:
            await self._effect.give_up(why, retryable=False)
        self.tell("failed", detail=why)

    def outputs_of(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.status != "COMPLETED":
            raise DurableCallError(f"Turn {self._number} of the model was {outcome.status.lower()}.")
        return outcome.outputs

    async def _difference(self, content: dict[str, Any]) -> str:
        """What is not as in the recorded turn that was to come next, in words; "" if none was."""
        prefix = f"{self._session.session_id}/{TURN}/"
        turns = [turn async for turn in nexum_client().history(prefix) if turn["status"] == "COMPLETED"]
        met = [turn for turn in turns if self._session.has_met(turn["execution_id"])]
        last_ms = met[-1]["created_at_ms"] if met else 0
        left = [turn["input"] for turn in turns if turn not in met and turn["created_at_ms"] >= last_ms]
        if met:  # those of other agents may well come yet
            left = [before for before in left if _leads_to(before) == _leads_to(content)]
        changes = sorted((_changes(before, content) for before in left), key=len)  # the one that is most like it
        return ", ".join(changes[0]) if changes else ""


def _leads_to(content: dict[str, Any]) -> list[Any]:
    """What tells a turn of one agent from those of others at the same time: the question, and the answers so far."""
    items: list[Any] = content.get("input", [])
    return items[:1] + [item for item in items if not item[0].endswith(NOT_OF_THE_MODEL)]


def _local(outputs: dict[str, Any]) -> Local:
    return Local.model_validate(outputs[MODEL_TURN.nodes[0].id])


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


def _content(
    name: str,
    instructions: str | None,
    input: str | list[TResponseInputItem],
    settings: ModelSettings,
    tools: list[Tool],
    output_schema: AgentOutputSchemaBase | None,
    handoffs: list[Handoff],
    named: dict[str, Any],
    *,
    streamed: bool,
) -> dict[str, Any]:
    """What makes a turn this turn: all that the model is asked, each part of it as a digest."""
    items: list[Any] = [{"role": "user", "content": input}] if isinstance(input, str) else input
    return {
        "model": name,
        "streamed": streamed,
        "instructions": instructions and _digest(instructions),
        "input": [[_kind(item), _digest(item)] for item in items],
        "settings": _settings(settings),
        "tools": _digests((tool.name, _tool_content(tool)) for tool in tools),
        "handoffs": _digests((h.tool_name, [h.tool_description, h.input_json_schema]) for h in handoffs),
        "output_schema": _schema_digest(output_schema),
        "prompt": named.get("prompt") and _digest(named["prompt"]),
        "previous_response": named.get("previous_response_id"),
        "conversation": named.get("conversation_id"),
    }


def _digest(value: Any) -> str:
    plain = to_jsonable_python(value, fallback=lambda other: type(other).__name__)
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()[:16]


def _digests(named: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By name; several of one name, as hosted MCP servers have it, are told apart by their order."""
    digests: dict[str, str] = {}
    for name, value in named:
        number = sum(known.partition("#")[0] == name for known in digests)
        digests[f"{name}#{number + 1}" if number else name] = _digest(value)
    return digests


def _kind(item: Any) -> str:
    """ "user", "assistant", or such as "function_call_output"."""
    plain = item if isinstance(item, dict) else vars(item)
    return str(plain.get("role") or plain.get("type") or "item")


def _settings(settings: ModelSettings) -> dict[str, str]:
    found = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in BESIDE_THE_POINT}
    found["extra_args"] = _without_generated_key(settings).extra_args
    return {name: _digest(value) for name, value in found.items() if value not in (None, {})}


def _without_generated_key(settings: ModelSettings) -> ModelSettings:
    """The settings without the prompt cache key that the SDK makes up for each run."""
    extra = settings.extra_args or {}
    if not str(extra.get("prompt_cache_key", "")).startswith(GENERATED):
        return settings
    rest = {name: value for name, value in extra.items() if name != "prompt_cache_key"}
    return replace(settings, extra_args=rest or None)


def _tool_content(tool: Tool) -> Any:
    if isinstance(tool, FunctionTool):
        return [tool.description, tool.params_json_schema, tool.strict_json_schema]
    if not is_dataclass(tool):
        return type(tool).__name__
    values = {each.name: getattr(tool, each.name) for each in fields(tool)}
    if isinstance(tool, HostedMCPTool):  # a token is often a new one
        values["tool_config"] = {k: v for k, v in tool.tool_config.items() if k not in ("authorization", "headers")}
    return {name: value for name, value in values.items() if not callable(value)}


def _schema_digest(schema: AgentOutputSchemaBase | None) -> str | None:
    if schema is None or schema.is_plain_text():
        return None
    return _digest([schema.name(), schema.json_schema(), schema.is_strict_json_schema()])


def _output(recorded: Any) -> list[Any]:
    """The output items of a recorded turn, whole or streamed. Raises Unrecordable if it is none."""
    return recorded.output if isinstance(recorded, ModelResponse) else _completed(recorded).response.output


def _completed(events: Any) -> ResponseCompletedEvent:
    for event in events if isinstance(events, list) else []:
        if isinstance(event, ResponseCompletedEvent):
            return event
    raise Unrecordable("it is no turn of a model")


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


def name_of(model: Model) -> str:
    name = getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__
