"""An agent that makes twenty tool calls in twenty turns of its model: plain, on Nexum cold, and run again.

The model answers at once and the tool does nothing, so what a run takes is what its machinery costs; and once more with
a tool that takes its time.
"""

import secrets
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agents import Agent, ModelProvider, RunConfig, RunHooks, Runner, function_tool, set_tracing_disabled

from bench.comparisons import CALL_AND_TURN, TOOL_CALL
from bench.context import Context
from bench.counting import MAX_TURNS, QUESTION, CountingModels
from bench.measure import Kind, Results, Samples, shown, timed
from bench.tools_worker import look_up
from nexum_agents import durable_session, durable_tool
from nexum_agents.clients import nexum_client
from nexum_agents.workflows import MODEL_TURN
from nexum_agents.workflows import TOOL_CALL as WORKFLOW


class Counted(RunHooks[Any]):
    """Counts a run's turns, and its calls."""

    def __init__(self) -> None:
        self.turns = self.calls = 0

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.turns += 1

    async def on_tool_end(self, *_: Any, **__: Any) -> None:
        self.calls += 1


@dataclass(frozen=True)
class Run:
    """What one run took, and what it did anew."""

    ms: float
    tools_executed: int
    turns_asked: int


@dataclass
class Runs:
    """Runs of one agent, with its tools as usual and with durable ones. A replay is one of the latest cold run."""

    plain: Agent[Any]
    durable: Agent[Any]
    models: ModelProvider
    question: str = QUESTION
    session_id: str = ""
    executed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # by key: tools and turns, of each round

    def kinds(self, prefix: str, what: str = "") -> list[Kind]:
        def kind(key: str, name: str, run: Callable[[], Awaitable[Run]]) -> Kind:
            async def measure() -> Samples:
                ran = await run()
                self.executed.setdefault(f"{prefix}.{key}", []).append((ran.tools_executed, ran.turns_asked))
                return [ran.ms]

            return Kind(f"{prefix}.{key}", what + name, "ms", measure)

        return [
            kind("plain", "plain", self.run_plain),
            kind("cold_tools", "cold, tools alone", self.run_cold_tools),
            kind("cold", "cold, turns too", self.run_cold),
            kind("tools", "tools replayed ⚡", lambda: self._run_durable(self.session_id, turns=False)),
            kind("all", "all replayed ⚡", lambda: self._run_durable(self.session_id, turns=True)),
        ]

    async def run_plain(self) -> Run:
        counted, ms = await self._run(self.plain)
        return Run(ms, counted.calls, counted.turns)

    async def run_cold_tools(self) -> Run:
        return await self._run_durable(new_session(), turns=False)

    async def run_cold(self) -> Run:
        self.session_id = new_session()
        return await self._run_durable(self.session_id, turns=True)

    async def _run_durable(self, session_id: str, *, turns: bool) -> Run:
        before = await begun(session_id)
        with durable_session(session_id, turns=turns):
            counted, ms = await self._run(self.durable)
        now = await begun(session_id) - before
        return Run(ms, now[WORKFLOW.workflow_id], now[MODEL_TURN.workflow_id] if turns else counted.turns)

    async def _run(self, agent: Agent[Any]) -> tuple[Counted, float]:
        counted = Counted()
        run_config = RunConfig(model_provider=self.models)
        running = Runner.run(agent, self.question, max_turns=MAX_TURNS, run_config=run_config, hooks=counted)
        return counted, await timed(running)


def new_session() -> str:
    return f"agent-{secrets.token_hex(4)}"


async def begun(session_id: str) -> Counter[str]:
    """How many attempts at each workflow have begun in this session, by Nexum's events."""
    counts = Counter[str]()
    async for history in nexum_client().history(f"{session_id}/"):
        counts[history["workflow_id"]] += sum(event["type"] == "AttemptStarted" for event in history["events"])
    return counts


async def kinds(context: Context) -> list[Kind]:
    await context.nexum()
    set_tracing_disabled(True)  # traces would go to OpenAI
    made: list[Kind] = []
    for prefix, delay_ms, what in (("agent", 0, ""), ("agent_slow", context.tool_ms, f"{context.tool_ms} ms a tool: ")):
        agent: Agent[Any] = Agent(name="Counter", tools=[durable_tool(look_up, effect="read")], model="counting")
        plain = agent.clone(tools=[function_tool(look_up)])
        runs = Runs(plain, agent, CountingModels(delay_ms))
        context.executed.append(runs.executed)
        made += runs.kinds(prefix, what)
    return made


def sentence(results: Results) -> str:
    call, both = (statistics.median(each.values(results)) for each in (TOOL_CALL, CALL_AND_TURN))
    tools, turns = results.executed["agent.all"]
    return (
        f"Nexum adds {shown(call)} ms to a tool call, {shown(both)} ms with the turn that asks for it. "
        f"Run again it executed {tools} tools and asked {turns} turns."
    )
