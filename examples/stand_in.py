"""A small stand-in for a language model, so that the examples run with no key and no network.

    agent = Agent(name="Guide", tools=[weather], model=stand_in.model())

With OPENAI_API_KEY that is None, and the SDK asks its default model. Without, it is a model that calls each tool of the
agent once, one after the other, with the user's words for every text, and then answers with what they returned. An
output type is filled with the user's words, too. It thinks for half a second (STAND_IN_SECONDS), so that there is time
to kill it. LEDGER may name a file: each time that the model is asked is a line in it, which the tests count.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import ModelResponse, set_tracing_disabled
from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.models.interface import Model
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseTextDeltaEvent

THINKING_SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.5"))
WORD_SECONDS = THINKING_SECONDS / 10
ASPECTS = ("its history", "its use", "its limits")  # what makes three texts of the same words


def model() -> Model | None:
    if os.environ.get("OPENAI_API_KEY"):
        return None
    set_tracing_disabled(True)  # traces go to OpenAI, with its key
    return _StandIn()


class _StandIn(Model):
    async def get_response(self, *args: Any, **named: Any) -> ModelResponse:
        return await ScriptedModel([ModelStep.respond(_answer)]).get_response(*args, **named)

    async def stream_response(self, *args: Any, **named: Any) -> AsyncIterator[TResponseStreamEvent]:
        async for event in ScriptedModel([ModelStep.respond(_answer)]).stream_response(*args, **named):
            if not isinstance(event, ResponseTextDeltaEvent):
                yield event
                continue
            for word in re.findall(r"\S+\s*", event.delta):
                await asyncio.sleep(WORD_SECONDS)
                yield event.model_copy(update={"delta": word})


async def _answer(asked: ModelCall) -> list[TResponseOutputItem]:
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    questions = [place for place, item in enumerate(items) if item.get("role") == "user"]
    words, since = str(items[questions[-1]]["content"]), items[questions[-1] :]
    results = [str(item["output"]) for item in since if item.get("type") == "function_call_output"]
    if ledger := os.environ.get("LEDGER"):
        with Path(ledger).open("a") as lines:
            lines.write(json.dumps(["asked", words, *results]) + "\n")
    await asyncio.sleep(THINKING_SECONDS)
    if len(results) < len(asked.tools):
        tool: Any = asked.tools[len(results)]
        return [function_call(tool.name, _filled(tool.params_json_schema, words), call_id=f"call-{len(items)}")]
    if asked.output_schema is not None and not asked.output_schema.is_plain_text():
        return [assistant_message(json.dumps(_filled(asked.output_schema.json_schema(), words)))]
    remembers = [f"(You have asked {len(questions)} questions.)"] if len(questions) > 1 else []
    return [assistant_message("\n".join([*(results or [words]), *remembers]))]


def _filled(schema: dict[str, Any], words: str) -> Any:
    """What fits a JSON schema, with the words for every text."""
    if schema.get("type") == "object":
        return {name: _filled(part, words) for name, part in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_filled(schema["items"], f"{words}, {aspect}") for aspect in ASPECTS]
    return words
