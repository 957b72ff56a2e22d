"""An agent that searches and saves two reports in one turn, and then tells what came of them.

With SDK set, it is the SDK that holds the reports back for an approval, and not their durable tool. Its tools are a
worker's.
"""

import asyncio
import json
import os
from typing import Any

from agents import Agent
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

from nexum_agents import durable_session, durable_tool, print_events, run_with_approvals

CALLS = {
    "search": ("web_search", {"query": "durable execution"}),
    "a": ("save_report", {"name": "a.md", "text": "the first"}),
    "b": ("save_report", {"name": "b.md", "text": "the second"}),
}


async def web_search(query: str) -> str:
    """Search the web."""
    raise AssertionError("a worker executes it")


async def save_report(name: str, text: str) -> str:
    """Save a report."""
    raise AssertionError("a worker executes it")


async def turn(call: ModelCall) -> Any:
    items = [] if isinstance(call.input, str) else call.input
    told = {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
    calls = [function_call(name, arguments, call_id=key) for key, (name, arguments) in CALLS.items()]
    return [assistant_message(json.dumps(told))] if told else calls


async def main() -> None:
    by_sdk = "SDK" in os.environ
    save = durable_tool(save_report, needs_approval=not by_sdk)
    save.needs_approval = by_sdk
    model = ScriptedModel([ModelStep.respond(turn)] * 4)
    agent = Agent[Any](name="Saver", tools=[durable_tool(web_search, effect="read"), save], model=model)
    async with durable_session("s1", on_event=print_events):
        print("answer:", (await run_with_approvals(agent, "go")).final_output)


if __name__ == "__main__":
    asyncio.run(main())
