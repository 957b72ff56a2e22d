"""Asks one question of an agent with a memory: python memory_process.py SESSION_ID QUESTION. Prints the answer."""

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import Agent, Model, ModelResponse, Runner, SQLiteSession, Usage, function_tool, set_tracing_disabled
from agents.testing import assistant_message, function_call

from durable_agent import durable_agent
from durable_memory import durable_memory


@function_tool
def count_words(text: str) -> int:
    """How many words there are in `text`."""
    return len(text.split())


class Counter(Model):
    """Has the words of the latest question counted, and then says how many questions it has heard."""

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        with Path("asked").open("a") as asked:
            asked.write("turn\n")
        number = f"{len(input)}"
        questions = [item["content"] for item in input if item.get("role") == "user"]
        if input[-1].get("role") == "user":
            output: Any = function_call("count_words", {"text": questions[-1]}, call_id=f"call_{number}")
        else:
            output = assistant_message(f"Heard: {', '.join(questions)}.", item_id=f"message_{number}")
        return ModelResponse(output=[output], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def main(session_id: str, question: str) -> None:
    set_tracing_disabled(True)
    agent = durable_agent(Agent(name="Counter", model=Counter(), tools=[count_words]), session_id)
    memory = durable_memory(SQLiteSession("chat", "memory.db"), session_id)
    print((await Runner.run(agent, question, session=memory)).final_output)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
