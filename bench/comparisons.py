"""What is compared with what, in the same round, and how it should come out."""

from bench.counting import CALLS
from bench.measure import Comparison

TOOL_CALL = Comparison("agent, a tool call above plain", "agent.cold_tools", "agent.plain", per=CALLS, goal=4)
CALL_AND_TURN = Comparison("… and its turn", "agent.cold", "agent.plain", per=CALLS, goal=7)

COMPARISONS = [
    Comparison("cold call ÷ the least", "calls.idempotent", "floor.call", goal=1),
    Comparison("… ÷ the least, tuned gRPC", "calls.idempotent", "floor.call_tuned"),
    Comparison("… its p99 ÷ p50", "calls.idempotent", tail=True, goal=4),
    Comparison("… p99 ÷ p50 of the least", "floor.call", tail=True),
    Comparison("cold call, once ÷ the least", "calls.once", "floor.call", goal=1.2),
    Comparison("… once ÷ the least, tuned gRPC", "calls.once", "floor.call_tuned"),
    Comparison("50 calls at a time ÷ the least", "calls.at_50", "floor.at_50", goal=0.8, at_least=True),
    Comparison("cached call of a tool", "calls.tool_cached", goal=0.05),
    Comparison("server's memory", "calls.memory", goal=80),
    TOOL_CALL,
    CALL_AND_TURN,
    Comparison("slow tool: a call above plain", "agent_slow.cold_tools", "agent_slow.plain", per=CALLS, goal=4),
    Comparison("… and its turn", "agent_slow.cold", "agent_slow.plain", per=CALLS, goal=7),
    Comparison("agent, all replayed ÷ plain", "agent.all", "agent.plain", goal=1.3),
    Comparison("300 turns, replayed ÷ plain", "long.replayed", "long.plain", goal=1.15),
    Comparison("cold call ÷ DBOS", "calls.idempotent", "dbos.step", goal=1),
    Comparison("50 calls at a time ÷ DBOS", "calls.at_50", "dbos.at_50", goal=1, at_least=True),
    Comparison("cached call of a tool ÷ DBOS", "calls.tool_cached", "dbos.step_again", goal=1),
    Comparison("agent, cold, tools alone ÷ DBOS", "agent.cold_tools", "dbos.cold_tools", goal=1),
    Comparison("agent, cold, turns too ÷ DBOS", "agent.cold", "dbos.cold", goal=1),
    Comparison("agent, all replayed ÷ DBOS", "agent.all", "dbos.all", goal=1),
    Comparison("PostgreSQL: cold call ÷ DBOS", "postgres.cold", "postgres.dbos_step", goal=0.8),
    Comparison("… cold, local effect ÷ DBOS", "postgres.local", "postgres.dbos_step", goal=0.8),
    Comparison("… cached call ÷ DBOS", "postgres.cached", "postgres.dbos_again", goal=1),
    Comparison("… 50 at a time ÷ DBOS", "postgres.at_50", "postgres.dbos_at_50", goal=4, at_least=True),
    Comparison("… two servers ÷ one", "postgres.two_at_50", "postgres.at_50", goal=0.9, at_least=True),
    Comparison("embedded: step ÷ DBOS", "embedded.step", "dbos.step", goal=0.4),
    Comparison("… ÷ one synced commit", "embedded.step", "embedded.commit"),
    Comparison("… 50 at a time ÷ DBOS", "embedded.at_50", "dbos.at_50", goal=10, at_least=True),
    Comparison("… replayed ÷ DBOS", "embedded.step_again", "dbos.step_again", goal=1),
    Comparison(
        "… agent's turn and call, above plain ÷ DBOS",
        "embedded.cold",
        "dbos.cold",
        above=("embedded.plain", "dbos.plain"),
        goal=0.6,
    ),
    Comparison("… first import to first step", "embedded.first", goal=600),
    Comparison("… memory above a plain agent's", "embedded.memory", goal=25),
    *(
        Comparison(
            f"{what}, {stored:,} stored ÷ {few or 'none'}",
            f"growth.{key}_{stored}",
            f"growth.{key}_{few}",
            goal=goal,
        )
        for stored in (10_000, 1_000_000)
        for what, key, few, goal in (
            ("cold call", "cold", 100, 1.2),
            ("cached call", "cached", 100, 1.2),
            ("start-up", "start", 0, 2),
        )
    ),
    Comparison("start-up, nothing stored", "growth.start_0", goal=1000),
    Comparison("an item of a MAP of 10,000 ÷ of 1,000", "growth.map_10000", "growth.map_1000", goal=1.5),
    Comparison("long session, its first call", "growth.session_first", goal=1000),
    Comparison("long session, forked", "growth.session_fork", goal=200),
    Comparison("sessions listed, 1,000,000 stored", "growth.sessions_1000000", goal=100),
]
