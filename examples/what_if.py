"""Another prompt, or a cheaper model, on yesterday's session: the model is asked anew, and no tool is called twice.

    python examples/what_if.py                              # yesterday: the weather is looked up
    python examples/what_if.py "Answer in one word."        # the same question, with this prompt
    python examples/what_if.py "Answer in one word." Paris  # a question that nothing was looked up for
    nexum compare yesterday what-if-…                       # where they part, and what each has cost

You will see the turns of the second run `stored ✓`, as the model is asked, and its calls `cached ⚡`. The third run
ends with a sentence, and looks nothing up. Set MODEL for another model. Kill it anywhere, run it again.
"""

import asyncio
import os
import sys
import zlib

import stand_in
from agents import Agent, Runner, function_tool

from nexum_agents import NotRecorded, durable_session, fork_session, print_events

PROMPT = "Answer from what you look up."


@function_tool
async def weather(city: str) -> str:
    """Look the weather up, which costs money and takes long."""
    print(f"  looking up the weather in {city}")
    return f"It rains in {city}."


def guide(prompt: str) -> Agent[None]:
    model = stand_in.model() or os.environ.get("MODEL")
    return Agent(name="Guide", instructions=prompt, tools=[weather], model=model)


async def yesterday() -> str:
    async with durable_session("yesterday", on_event=print_events):
        return str((await Runner.run(guide(PROMPT), "Rome")).final_output)


async def what_if(prompt: str, question: str) -> str:
    tried = f"{prompt} {question} {os.environ.get('MODEL')}"
    trial = f"what-if-{zlib.crc32(tried.encode()):08x}"  # so that it is the same session when this runs again
    await fork_session("yesterday", trial, exist_ok=True)
    async with durable_session(trial, tools="cached-only", on_event=print_events):
        answer = str((await Runner.run(guide(prompt), question)).final_output)
    return f"{answer}\nCompare them with: nexum compare yesterday {trial}"


async def main(prompt: str = "", question: str = "Rome") -> None:
    print(await (what_if(prompt, question) if prompt else yesterday()))


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:3]))
    except NotRecorded as error:
        sys.exit(f"{error}\nWith this prompt or question it needs a call that was not made yesterday.")
