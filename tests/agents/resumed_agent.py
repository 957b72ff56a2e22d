"""An agent that is run again and again out of one process, which has imported what it needs: each run is a fork of it.

Reads a line `API SESSION KILL_AFTER LOG` for each run, and answers with two lines: its process id, and how it ended.
API is responses, streamed, chat or gemini. The log has a line for each event, then the answer. The run kills itself, by
SIGKILL, right after it has written the line of its step number KILL_AFTER; 0 is never.
"""

import asyncio
import gc
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from agents import Agent, OpenAIProvider, RunConfig, Runner, set_default_openai_api
from agents.exceptions import ModelBehaviorError

from nexum_agents import DurableEvent, TurnEvent, durable_session, durable_tool

APIS = ("responses", "streamed", "chat", "gemini")


async def web_search(query: str, max_results: int = 5) -> str:
    """Search the web."""
    raise AssertionError("a worker executes it")


async def visit_webpage(url: str) -> str:
    """Read a page."""
    raise AssertionError("a worker executes it")


def build_agent(api: str, *tools: Any) -> Agent[Any]:
    """An agent that is asked over this API."""
    set_default_openai_api("chat_completions" if api == "chat" else "responses")
    model: Any = "gpt-stand-in"
    if api == "gemini":
        from agents.extensions.models.litellm_model import LitellmModel

        model = LitellmModel("gemini/gemini-3.8-flash")
    return Agent(name="Researcher", instructions="Research.", tools=list(tools), model=model)


async def ask(api: str, agent: Agent[Any], question: str) -> str:
    config = RunConfig(model_provider=OpenAIProvider())
    if api != "streamed":
        return str((await Runner.run(agent, question, run_config=config)).final_output)
    streamed = Runner.run_streamed(agent, question, run_config=config)
    async for _ in streamed.stream_events():
        pass
    return str(streamed.final_output)


async def warm_up() -> None:
    """Let the clients import and build what they do when they are first used. Nothing of Nexum, which cannot fork."""
    for api in APIS:
        with suppress(ModelBehaviorError):  # it calls a tool that there is not
            await ask(api, build_agent(api), "Warm up")


async def research(api: str, session: str, kill_after: int) -> None:
    steps = 0

    def on_event(event: DurableEvent) -> None:
        nonlocal steps
        if event.kind == "waiting":
            return
        what = f"turn {event.number}" if isinstance(event, TurnEvent) else event.tool_name
        print(what, event.kind, event.detail, flush=True)
        steps += 1
        if steps == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    agent = build_agent(api, durable_tool(web_search, effect="read"), durable_tool(visit_webpage, effect="read"))
    async with durable_session(session, on_event=on_event):
        print("answer:", await ask(api, agent, f"What is asked in {session}?"))


def run(api: str, session: str, kill_after: int, log: str) -> None:
    """One run, in a process of its own. Never returns."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 70  # an error of this script
    try:
        asyncio.run(research(api, session, kill_after))
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    asyncio.run(warm_up())
    gc.freeze()  # what is in memory is the same in all of them
    for line in sys.stdin:
        api, session, kill_after, log = line.split()
        pid = os.fork()
        if not pid:
            run(api, session, int(kill_after), log)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
