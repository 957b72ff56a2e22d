"""Run the agent of the web chat. Start as many as you like, kill them when you like: another one goes on.

    python examples/web_chat/chat_worker.py

You will see each run as it begins, and as it ends.
"""

import sys
from pathlib import Path

from agents import Agent, function_tool

from nexum_agents import serve

sys.path.append(str(Path(__file__).parents[1]))  # where the stand-in for a model is

import stand_in


@function_tool
async def track_parcel(question: str) -> str:
    """Where a parcel is."""
    print("  tracking the parcel")
    return "The parcel is on a ship, and comes on Monday."


desk = Agent(name="Desk", instructions="Track parcels.", tools=[track_parcel], model=stand_in.model())

if __name__ == "__main__":
    serve(agents=[desk])
