"""A worker of an agent whose payments need a person's yes: each payment, and each question to the model, is a line in
the LEDGER. A run that waits is parked after PARK_SECONDS."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, Usage, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

from nexum_agents import ask_person, durable_sleep, parking, serve

parking.PARK_SECONDS = float(os.environ.get("PARK_SECONDS", "0.1"))


def effect(*what: Any) -> None:
    with Path(os.environ["LEDGER"]).open("a") as lines:
        lines.write(json.dumps(what) + "\n")


def pay(amount: int) -> str:
    """Pay."""
    effect("pay", amount)
    return f"paid {amount}"


async def check(amount: int) -> str:
    """Ask which account it is, and wait a while."""
    account = await ask_person(f"Which account has {amount}?")
    await durable_sleep(float(os.environ.get("SLEEP_SECONDS", "0")))
    return account


class Payer(Model):
    """It asks as often as its input says, and pays once; nothing of what it was asked is kept."""

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **named: Any) -> ModelResponse:
        items = [] if isinstance(input, str) else input
        told = [item["output"] for item in items if item.get("type") == "function_call_output"]
        asked = input if isinstance(input, str) else items[0]["content"]
        effect("model", len(told))
        if not told:
            calls = [function_call("pay", json.dumps({"amount": n}), call_id=str(n)) for n in range(int(asked or 1))]
            output: list[Any] = calls or [function_call("check", '{"amount": 7}', call_id="0")]
        else:
            output = [assistant_message("; ".join(map(str, told)))]
        return ModelResponse(output=output, usage=Usage(requests=1), response_id=None)

    async def stream_response(self, *args: Any, **named: Any) -> AsyncIterator[Any]:
        said = await self.get_response(*args, **named)
        async for event in ScriptedModel([said.output]).stream_response(*args, **named):
            yield event


payer = Agent[Any](name="Payer", model=Payer(), tools=[function_tool(pay, needs_approval=True), function_tool(check)])

if __name__ == "__main__":
    serve(agents=[payer], concurrency=int(os.environ.get("CONCURRENCY", "2")))
