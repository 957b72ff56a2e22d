"""An agent with a tool that asks a person which account to pay from, and tells the model what came of it.

HOW is the question's `timeout` and `default`, as JSON. With BESIDE set it is asked without an agent, and not in a call
that a lease would have to end of when everything is killed. Each payment is a line in the file LEDGER.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from agents import Agent, Runner, function_tool
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

from nexum_agents import NoAnswer, ask_person, durable_session, print_events


async def pay(amount: int) -> str:
    how = json.loads(os.environ.get("HOW", "{}"))
    account = await ask_person("Which account?", choices=["main", "savings"], **how)
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        ledger.write(f"{amount} from {account}\n")
    return f"{amount} from {account}"


async def turn(call: ModelCall) -> Any:
    items = [] if isinstance(call.input, str) else call.input
    told = [item["output"] for item in items if item.get("type") == "function_call_output"]
    return [assistant_message(told[0])] if told else [function_call("pay", {"amount": 5}, call_id="1")]


async def main() -> None:
    tool = function_tool(pay, failure_error_function=lambda _, error: str(error))
    agent = Agent[Any](name="Payer", tools=[tool], model=ScriptedModel([ModelStep.respond(turn)] * 2))
    async with durable_session("s1", on_event=print_events):
        if "BESIDE" in os.environ:
            try:
                answer = await pay(5)
            except NoAnswer as error:
                answer = str(error)
        else:
            answer = (await Runner.run(agent, "go")).final_output
        print("answer:", answer)


if __name__ == "__main__":
    asyncio.run(main())
