"""What durability costs, and what it saves: a plain agent, the same agent on Nexum cold, and again cached.

    python benchmark.py [--rounds 5] [--live]

Offline by default, with a server and a worker of its own in a temporary folder; --live needs a key and the network.
You will see a table of medians, the overhead per tool call, and what a run again saves.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from agents import Agent, Model, Runner, ToolCallItem, function_tool
from agents.exceptions import AgentsException
from rich.console import Console
from rich.table import Table

from demo import QUESTION, build_agent, choose_model
from dev import local_nexum
from nexum_runtime import NexumError
from nexum_runtime.text import error_line
from offline.web import DEFAULT_DELAY_MS
from submit_task import durable_session, nexum_client
from tools import visit_webpage, web_search

KINDS = {"plain": "plain", "cold": "on Nexum, cold", "cached": "on Nexum, cached ⚡"}


async def run_agent(agent: Agent[Any]) -> tuple[float, int]:
    """One run: its seconds and how many tool calls it made."""
    started = time.perf_counter()
    result = await Runner.run(agent, QUESTION)
    seconds = time.perf_counter() - started
    return seconds, sum(isinstance(item, ToolCallItem) for item in result.new_items)


async def executions_of_tools(session_id: str) -> int:
    """How often a worker began to execute a tool for this session, by the server's own events."""
    histories = [history async for history in nexum_client().history(f"{session_id}/")]
    return sum(event["type"] == "AttemptStarted" for history in histories for event in history["events"])


@dataclass(frozen=True)
class Round:
    """One run of each kind, one after the other."""

    seconds: dict[str, float]  # of each of KINDS
    calls: int  # tool calls of the cold run
    executed_again: int  # tools that the cached run executed all the same


async def run_round(model: str | Model) -> Round:
    seconds = {}
    durable = build_agent(model)
    plain = durable.clone(tools=[function_tool(web_search), function_tool(visit_webpage)])
    session_id = f"bench-{secrets.token_hex(4)}"  # a new one, so that cold is cold
    seconds["plain"], _ = await run_agent(plain)
    with durable_session(session_id):
        seconds["cold"], calls = await run_agent(durable)
    executed = await executions_of_tools(session_id)
    with durable_session(session_id):
        seconds["cached"], _ = await run_agent(durable)
    return Round(seconds, calls, await executions_of_tools(session_id) - executed)


async def measure(model: str | Model, rounds: int, console: Console) -> list[Round]:
    await run_round(model)  # warm-up: imports, connections
    results = []
    with console.status("") as status:
        for number in range(1, rounds + 1):
            status.update(f"round {number} of {rounds}")
            results.append(await run_round(model))
    return results


def report(console: Console, rounds: list[Round], mode: str) -> None:
    median = {kind: statistics.median(each.seconds[kind] for each in rounds) for kind in KINDS}
    calls = statistics.median(each.calls for each in rounds)
    title = f"median of {len(rounds)} × {calls:g} tool calls, {mode}"
    table = Table(title=title, title_justify="left")
    table.add_column("agent")
    for name in ("median", "least – most", "× plain", "more per call"):
        table.add_column(name, justify="right")
    for kind, name in KINDS.items():
        all_seconds = [each.seconds[kind] for each in rounds]
        ratio = statistics.median(each.seconds[kind] / each.seconds["plain"] for each in rounds)
        above_ms = (median[kind] - median["plain"]) / calls * 1000 if calls else 0.0
        table.add_row(
            name,
            f"{median[kind] * 1000:.0f} ms",
            f"{min(all_seconds) * 1000:.0f} – {max(all_seconds) * 1000:.0f} ms",
            f"{ratio:.2f}",
            f"{above_ms:+.1f} ms" if kind == "cold" else "",
        )
    console.print(table)
    saved_ms = (median["cold"] - median["cached"]) * 1000
    again = sum(each.executed_again for each in rounds)
    tools = f"executes {again} tools anew: the model asked something else" if again else "executes no tool"
    console.print(f"A run again saves {saved_ms:.0f} ms of {median['cold'] * 1000:.0f} ms, and {tools}.")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Time a plain agent against the same agent on Nexum.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (default 5)")
    parser.add_argument("--live", action="store_true", help="a real model and the real web; needs a key")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    model, mode = choose_model(offline=not arguments.live)
    if arguments.live and mode != "live":
        parser.error("--live needs OPENAI_API_KEY or GEMINI_API_KEY")
    if not arguments.live:
        mode = f"offline, {os.environ.get('OFFLINE_WEB_DELAY_MS', DEFAULT_DELAY_MS)} ms a page"
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nexum-benchmark-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        os.environ["NEXUM_ADDRESS"] = address
        os.environ.pop("NEXUM_TLS_CA", None)  # the server of its own, on loopback, speaks no TLS
        try:
            async with local_nexum(address, Path(folder)):
                rounds = await measure(model, arguments.rounds, console)
        except (NexumError, AgentsException, openai.OpenAIError) as error:
            sys.exit(f"The benchmark could not be run: {error_line(error)}")
    report(console, rounds, mode)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
