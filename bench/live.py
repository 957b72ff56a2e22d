"""The demo's agent, with a real model on the real web: plain, on Nexum cold, and run again."""

from agents import MultiProvider, function_tool

from bench.agent import Runs
from bench.context import Context
from bench.measure import Kind, Results, shown
from demo import QUESTION, build_agent
from offline.choosing import choose_model, model_of
from tools import visit_webpage, web_search


async def kinds(context: Context) -> list[Kind]:
    await context.nexum()
    model, mode = choose_model(offline=False)
    agent = build_agent(model_of(model, mode))
    plain = agent.clone(tools=[function_tool(web_search), function_tool(visit_webpage)])
    runs = Runs(plain, agent, MultiProvider(), QUESTION)
    context.executed.append(runs.executed)
    return runs.kinds("live")


def sentence(results: Results) -> str:
    cold, again = results.median("live.cold") / 1000, results.median("live.all") / 1000
    tools, turns = results.executed["live.all"]
    return (
        f"A run again takes {shown(again)} s in place of {shown(cold)} s. "
        f"It executed {tools} tools and asked {turns} turns."
    )
