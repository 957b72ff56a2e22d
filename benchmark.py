"""What durability costs, and what it saves: a plain agent, the same agent on Nexum cold, and run again.

    python benchmark.py [--rounds 5] [--live]

Offline by default, with a server and a worker of its own in a temporary folder: an agent that makes twenty tool calls
in twenty turns of its model. --live asks a real model what the demo asks it, and needs a key and the network. You will
see, a minute later, a table of medians with what a call and a turn take, and what a run again saves.
"""

import argparse
import asyncio
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from agents import Agent, ModelProvider, RunConfig, RunHooks, Runner, function_tool
from agents.exceptions import AgentsException
from rich import box
from rich.console import Console
from rich.table import Table

from demo import MAX_TURNS, QUESTION, build_agent, choose_model
from dev import local_nexum
from durable_model import durable_models
from durable_session import durable_session, nexum_client
from nexum_runtime import NexumError
from nexum_runtime.text import error_line
from offline.model import OfflineModels, SearchAfterSearch
from offline.web import DEFAULT_DELAY_MS
from submit_task import WORKFLOW
from tools import visit_webpage, web_search
from workflow import MODEL_TURN

KINDS = {"plain": "plain", "cold": "on Nexum, cold", "tools": "tools replayed ⚡", "all": "all replayed ⚡"}


class Run(RunHooks[Any]):
    """One run of an agent, timed as the agent sees it: all of it, each of its calls, and each of its turns."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls: list[float] = []  # in seconds, like the turns
        self.turns: list[float] = []
        self.tools_executed = self.turns_asked = 0  # for this run, and not replayed
        self._since: dict[str, float] = {}  # by the call's id; "" is the turn

    async def on_llm_start(self, *_: Any, **__: Any) -> None:
        self._since[""] = time.perf_counter()

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.turns.append(time.perf_counter() - self._since[""])

    async def on_tool_start(self, context: Any, *_: Any, **__: Any) -> None:
        self._since[context.tool_call_id] = time.perf_counter()

    async def on_tool_end(self, context: Any, *_: Any, **__: Any) -> None:
        self.calls.append(time.perf_counter() - self._since[context.tool_call_id])


Round = dict[str, Run]  # one of each of KINDS, one after the other


async def begun(session_id: str) -> Counter[str]:
    """How many attempts at each workflow have begun in this session, by Nexum's events."""
    counts = Counter[str]()
    async for history in nexum_client().history(f"{session_id}/"):
        counts[history["workflow_id"]] += sum(event["type"] == "AttemptStarted" for event in history["events"])
    return counts


async def run_agent(agent: Agent[Any], models: ModelProvider, session_id: str, *, durable_turns: bool) -> Run:
    before, run = await begun(session_id), Run()
    with durable_session(session_id):
        run_config = RunConfig(model_provider=durable_models(session_id, models) if durable_turns else models)
        started = time.perf_counter()
        await Runner.run(agent, QUESTION, max_turns=MAX_TURNS, run_config=run_config, hooks=run)
        run.seconds = time.perf_counter() - started
    now = await begun(session_id) - before
    run.tools_executed = now[WORKFLOW.workflow_id]
    run.turns_asked = now[MODEL_TURN.workflow_id] if durable_turns else len(run.turns)
    return run


async def run_round(model: str, models: ModelProvider) -> Round:
    durable = build_agent(model)
    plain = durable.clone(tools=[function_tool(web_search), function_tool(visit_webpage)])
    session_id = f"bench-{secrets.token_hex(4)}"  # a new one, so that cold is cold
    return {
        "plain": await run_agent(plain, models, session_id, durable_turns=False),
        "cold": await run_agent(durable, models, session_id, durable_turns=True),
        "tools": await run_agent(durable, models, session_id, durable_turns=False),
        "all": await run_agent(durable, models, session_id, durable_turns=True),
    }


async def measure(model: str, models: ModelProvider, rounds: int, console: Console) -> list[Round]:
    await run_round(model, models)  # warm-up: imports, connections
    results = []
    with console.status("") as status:
        for number in range(1, rounds + 1):
            status.update(f"round {number} of {rounds}")
            results.append(await run_round(model, models))
    return results


def mean(seconds: list[float]) -> float:
    return statistics.fmean(seconds) if seconds else 0.0


def report(console: Console, rounds: list[Round], mode: str) -> None:
    def median(measured: Callable[[Round], float]) -> float:
        return statistics.median(map(measured, rounds))

    def anew(kind: str) -> tuple[int, int]:
        runs = [each[kind] for each in rounds]
        return sum(run.tools_executed for run in runs), sum(run.turns_asked for run in runs)

    of_calls, of_turns = median(lambda each: len(each["cold"].calls)), median(lambda each: len(each["cold"].turns))
    title = f"median of {len(rounds)} × {of_calls:g} calls in {of_turns:g} turns, {mode}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("agent")
    for name in ("a run", "least – most", "× plain", "a call", "a turn"):
        table.add_column(name, justify="right")
    for kind, name in KINDS.items():
        seconds = sorted(each[kind].seconds for each in rounds)
        table.add_row(
            name,
            f"{statistics.median(seconds):.2f} s",
            f"{seconds[0]:.2f} – {seconds[-1]:.2f} s",
            f"{statistics.median(each[kind].seconds / each['plain'].seconds for each in rounds):.2f}",
            f"{statistics.median(mean(each[kind].calls) for each in rounds) * 1000:.1f} ms",
            f"{statistics.median(mean(each[kind].turns) for each in rounds) * 1000:.1f} ms",
        )
    console.print(table)
    call_ms = median(lambda each: mean(each["cold"].calls) - mean(each["plain"].calls)) * 1000
    turn_ms = median(lambda each: mean(each["cold"].turns) - mean(each["plain"].turns)) * 1000
    step_ms = median(lambda each: mean(each["all"].calls + each["all"].turns)) * 1000
    console.print(f"Cold, Nexum adds {call_ms:.1f} ms to a call and {turn_ms:.1f} ms to a turn.")
    console.print(f"A call or turn that is replayed takes {step_ms:.1f} ms.")
    cold = median(lambda each: each["cold"].seconds)
    saved = median(lambda each: each["cold"].seconds - each["all"].seconds)
    (tools, turns), (other_tools, other_turns) = anew("all"), anew("tools")
    console.print(
        f"A run again saves {saved:.2f} s of {cold:.2f} s. It executes {tools} tools and asks {turns} turns anew; "
        f"with its tools replayed alone, {other_tools} and {other_turns}."
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description="Time a plain agent against the same agent on Nexum.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (default 5)")
    parser.add_argument("--live", action="store_true", help="a real model and the real web; needs a key")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    model, models, mode = choose_model(offline=not arguments.live)
    if arguments.live and mode != "live":
        parser.error("--live needs OPENAI_API_KEY or GEMINI_API_KEY")
    if not arguments.live:
        models = OfflineModels(SearchAfterSearch)
        mode = f"offline, {os.environ.get('OFFLINE_WEB_DELAY_MS', DEFAULT_DELAY_MS)} ms a search"
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nexum-benchmark-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        os.environ["NEXUM_ADDRESS"] = address
        os.environ.pop("NEXUM_TLS_CA", None)  # the server of its own, on loopback, speaks no TLS
        try:
            async with local_nexum(address, Path(folder)):
                rounds = await measure(model, models, arguments.rounds, console)
        except (NexumError, AgentsException, openai.OpenAIError) as error:
            sys.exit(f"The benchmark could not be run: {error_line(error)}")
    report(console, rounds, mode)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
