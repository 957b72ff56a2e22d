"""demo.py as it is, but for its page reader, which here has an effect that must happen once."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import demo


def build_agent(model: Any, saves_report: bool = False) -> Any:
    from nexum_agents import durable_tool
    from tools import visit_webpage, web_search

    agent = original(model, saves_report)
    agent.tools = [durable_tool(web_search, effect="read"), durable_tool(visit_webpage, effect="once")]
    return agent


if __name__ == "__main__":
    original = demo.build_agent
    demo.build_agent = build_agent
    sys.exit(demo.main())
