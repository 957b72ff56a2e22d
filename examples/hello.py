"""The smallest durable agent.

    python examples/hello.py    # kill it anywhere, run it again

You will see the turns of the model and the call of the tool `stored ✓`, and `cached ⚡` the second time, when neither
the model nor the weather service is asked.
"""

import stand_in
from agents import Agent, Runner, function_tool

from nexum_agents import durable_session, print_events


@function_tool
def weather(city: str) -> str:
    print(f"  asking the weather service about {city}")
    return f"It is sunny in {city}."


agent = Agent(name="Guide", instructions="Tell the weather there.", tools=[weather], model=stand_in.model())

with durable_session("hello", on_event=print_events):
    print(Runner.run_sync(agent, "Rome").final_output)
