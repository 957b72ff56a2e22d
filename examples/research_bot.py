"""Several runs in one session: a planner, then searches side by side, then a writer.

    python examples/research_bot.py                    # kill it anywhere, run it again
    python examples/research_bot.py "cold fusion"      # another question is another session

You will see the plan, three searches at the same time, and the report. Run again, what had been answered is
`cached ⚡`, and the bot goes on from there: no model and no search engine is asked twice.
"""

import asyncio
import re
import sys

import stand_in
from agents import Agent, Runner, function_tool
from pydantic import BaseModel

from nexum_agents import durable_session, print_events


class Plan(BaseModel):
    searches: list[str]


@function_tool
async def web_search(query: str) -> str:
    """Search the web."""
    print(f"  searching the web for {query}")
    return f"The web knows a lot about {query}."


model = stand_in.model()
planner = Agent(name="Planner", instructions="Plan three searches.", output_type=Plan, model=model)
searcher = Agent(name="Searcher", instructions="Search, and sum up.", tools=[web_search], model=model)
writer = Agent(name="Writer", instructions="Write a report from these notes.", model=model)


async def research(question: str) -> str:
    # Each run is known by its agent and its input, so it does not matter which of the three is first.
    plan = (await Runner.run(planner, question)).final_output_as(Plan)
    found = await asyncio.gather(*(Runner.run(searcher, search) for search in plan.searches))
    notes = "\n".join(str(each.final_output) for each in found)
    return str((await Runner.run(writer, f"# {question}\n{notes}")).final_output)


async def main() -> None:
    question = " ".join(sys.argv[1:]) or "durable execution"
    session_id = "research-" + re.sub(r"\W+", "-", question.lower(), flags=re.ASCII)[:50]
    async with durable_session(session_id, on_event=print_events) as session:
        report = await research(question)
    print(f"\n{report}\n\n{session.saved}.")


if __name__ == "__main__":
    asyncio.run(main())
