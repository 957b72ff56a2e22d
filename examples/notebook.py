"""Durable sessions in a notebook: cells that are run twice, that fail, and a kernel that dies.

    # open this file in an editor or notebook that runs cells (`# %%`), and run them from top to bottom

You will see the second run of a cell answered from the store, and a cell that failed in the middle go on there once it
can. Restart the kernel and run all of it again: no model is asked, and no shop.
"""
# ruff: noqa: F704
# mypy: disable-error-code="top-level-await"

# %% What is needed
import stand_in
from agents import Agent, Runner, function_tool

from nexum_agents import durable_session, print_events

has_network = False


@function_tool
async def price(thing: str) -> str:
    """What a thing costs."""
    print(f"  asking the shop for the price of {thing}")
    return f"One {thing} is {len(thing)} coins."


agent = Agent(name="Buyer", instructions="Tell the price.", tools=[price], model=stand_in.model())

# %% Run this cell twice: the second time, all is `cached ⚡`
with durable_session("notebook-tea", on_event=print_events):
    tea = await Runner.run(agent, "tea")
print(tea.final_output)

# %% This cell fails in the middle. Run the next one, and then this one again: the first run is not made again
with durable_session("notebook-more", on_event=print_events):
    coffee = await Runner.run(agent, "coffee")
    if not has_network:
        raise ConnectionError("The network is away: run the next cell.")
    cocoa = await Runner.run(agent, "cocoa")
print(coffee.final_output, cocoa.final_output)

# %% What went wrong is put right here
has_network = True
