"""demo.py with a model that searches and saves two reports in one turn, and then tells what came of them.

With SDK set, it is the SDK that holds the reports back for an approval, and not their durable tool.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from agents import Agent, Tool
from agents.items import TResponseOutputItem
from agents.testing import assistant_message, function_call

import demo
from offline.model import OfflineModel, OfflineModels
from submit_task import durable_tool
from tools import save_report, web_search

CALLS = {
    "search": ("web_search", {"query": "durable execution"}),
    "a": ("save_report", {"name": "a.md", "text": "the first"}),
    "b": ("save_report", {"name": "b.md", "text": "the second"}),
}


class Saves(OfflineModel):
    def _turn(self, input: Any, tools: list[Tool]) -> list[TResponseOutputItem]:
        items = [] if isinstance(input, str) else input
        told = {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
        calls = [function_call(name, arguments, call_id=key) for key, (name, arguments) in CALLS.items()]
        return [assistant_message(json.dumps(told))] if told else calls


def build_agent(model: str, saves_report: bool = False) -> Agent[Any]:
    by_sdk = "SDK" in os.environ
    save = durable_tool(save_report, needs_approval=not by_sdk)
    save.needs_approval = by_sdk
    return Agent(name="Saver", tools=[durable_tool(web_search, effect="read"), save], model=model)


if __name__ == "__main__":
    vars(demo)["build_agent"] = build_agent
    vars(demo)["choose_model"] = lambda _: ("saves", OfflineModels(Saves), "scripted")
    sys.exit(demo.main())
