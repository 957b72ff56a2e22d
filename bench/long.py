"""A long run: three hundred turns, each with a call of the agent's own process, plain and replayed."""

import secrets

from agents import Agent, Runner, function_tool, set_tracing_disabled

from bench.context import Context
from bench.counting import QUESTION, Counting
from bench.measure import Kind, Results, Samples, shown, timed
from bench.tools_worker import look_up
from nexum_agents import durable_session

TURNS = 300


async def kinds(context: Context) -> list[Kind]:
    await context.nexum()
    set_tracing_disabled(True)  # traces would go to OpenAI
    agent = Agent(name="Counter", tools=[function_tool(look_up)], model=Counting(0, calls=TURNS))
    session_id = f"long-{secrets.token_hex(4)}"

    async def plain() -> Samples:
        return [await timed(Runner.run(agent, QUESTION, max_turns=TURNS + 1))]

    async def replayed() -> Samples:  # but for the first time, which warms up
        with durable_session(session_id):
            return await plain()

    return [
        Kind("long.plain", f"{TURNS} turns, plain", "ms", plain),
        Kind("long.replayed", f"{TURNS} turns, replayed ⚡", "ms", replayed),
    ]


def sentence(results: Results) -> str:
    return f"A replay of {TURNS} turns takes {shown(results.median('long.replayed') / 1000)} s."
