"""The agent's model: it makes twenty calls in twenty turns, or as many as it is told, and answers at once."""

from typing import Any

from agents import ModelProvider, ModelResponse, Usage
from agents.models.interface import Model
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

QUESTION = "What are the numbers?"
CALLS = 20
MAX_TURNS = CALLS + 1


class Counting(Model):
    """Looks up two numbers in its first turn, one in each further one, and answers in the last."""

    def __init__(self, delay_ms: int, calls: int = CALLS) -> None:
        self._delay_ms, self._calls = delay_ms, calls

    async def get_response(self, system_instructions: str | None, input: Any, *_: Any, **__: Any) -> ModelResponse:
        made = 0 if isinstance(input, str) else sum(item.get("type") == "function_call" for item in input)
        numbers = range(made, min(made + (1 if made else 2), self._calls))
        calls = [
            ResponseFunctionToolCall(
                type="function_call",
                call_id=f"call_{number}",
                name="look_up",
                arguments=f'{{"number": {number}, "delay_ms": {self._delay_ms}}}',
            )
            for number in numbers
        ]
        text = ResponseOutputText(type="output_text", text=f"There are {made}.", annotations=[])
        answer = ResponseOutputMessage(id="msg_0", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=list(calls) or [answer], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the benchmark does not stream")


class CountingModels(ModelProvider):
    def __init__(self, delay_ms: int) -> None:
        self._delay_ms = delay_ms

    def get_model(self, model_name: str | None) -> Model:
        return Counting(self._delay_ms)
