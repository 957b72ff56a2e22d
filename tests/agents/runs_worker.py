"""A worker that serves agents, to be killed: every effect, and every question to a model, is a line in the LEDGER.

With DIE_AT=n it is killed in the middle of what writes line n.
"""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from agents import Agent, function_tool
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

from nexum_agents import durable_step, durable_tool, serve, worker
from nexum_runtime import Worker
from nexum_runtime.client import local


def effect(*what: Any) -> None:
    ledger = Path(os.environ["LEDGER"])
    with ledger.open("a") as lines:
        lines.write(json.dumps(what) + "\n")
    if len(ledger.read_text().splitlines()) == int(os.environ.get("DIE_AT", 0)):
        os.kill(os.getpid(), signal.SIGKILL)


async def look_up(word: str) -> str:
    """Look a word up, where the agent is."""
    effect("look_up", word)
    await durable_step("note", effect, "note", word)
    return f"{word} means much"


async def fetch(word: str) -> str:
    """Fetch, by a worker."""
    effect("fetch", word)
    return f"{word} was fetched"


async def turn(call: ModelCall) -> Any:
    items = [] if isinstance(call.input, str) else call.input
    told = [item["output"] for item in items if item.get("type") == "function_call_output"]
    effect("model", len(told))
    if not told:
        return [function_call("look_up", '{"word": "durable"}', call_id="1")]
    if len(told) == 1:
        return [function_call("fetch", '{"word": "execution"}', call_id="2")]
    return [assistant_message("; ".join(told))]


model = ScriptedModel([ModelStep.respond(turn)] * 100)
tools: list[Any] = [function_tool(look_up), durable_tool(fetch, effect="read")]
researcher = Agent[Any](name="Researcher", instructions=os.environ.get("INSTRUCTIONS"), tools=tools, model=model)

if __name__ == "__main__":
    if "LEASE_MS" in os.environ:
        local.LEASE_MS = int(os.environ["LEASE_MS"])
        vars(worker)["RuntimeWorker"] = partial(Worker, lease_ms=local.LEASE_MS)
    concurrency, version = int(os.environ.get("CONCURRENCY", "1")), os.environ.get("VERSION", "")
    serve(tools=[fetch], agents=[researcher], version=version, concurrency=concurrency)
