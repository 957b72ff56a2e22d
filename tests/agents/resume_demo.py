"""demo.py run again and again out of one process that has all in memory that a run needs: each run is a fork of it.

Reads a line `API SESSION KILL_AFTER LOG` for each run, and answers with two lines: its process id, and how it ended.
API is responses, streamed, chat or gemini. The run kills itself, by SIGKILL, right after it has printed the line of its
step number KILL_AFTER; 0 is never.
"""

import asyncio
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from agents import Agent, ModelProvider, RunConfig, Runner, set_default_openai_api
from agents.exceptions import ModelBehaviorError

import demo
import terminal
from durable_approval import run_with_approvals
from durable_session import DurableEvent

APIS = ("responses", "streamed", "chat", "gemini")


async def ask_streamed(agent: Agent[Any], question: str, models: ModelProvider) -> str:
    result = Runner.run_streamed(agent, question, run_config=RunConfig(model_provider=models))
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


ask_whole = demo.ask


def choose(api: str) -> None:
    """Let the demo talk to this API from now on."""
    vars(demo)["ask"] = ask_streamed if api == "streamed" else ask_whole
    set_default_openai_api("chat_completions" if api == "chat" else "responses")
    os.environ["MODEL"] = demo.GEMINI_MODEL if api == "gemini" else ""


async def warm_up() -> None:
    """Let the clients import and build what they do when they are first used. Nothing of Nexum, which cannot fork."""
    vars(demo)["run_with_approvals"] = Runner.run
    for api in APIS:
        choose(api)
        model, models, _ = demo.choose_model(offline=False)
        agent = demo.build_agent(model)
        agent.tools = []
        with suppress(ModelBehaviorError):  # it calls a tool
            await demo.ask(agent, "Warm up", models)
    vars(demo)["run_with_approvals"] = run_with_approvals


def run(session: str, kill_after: int, log: str) -> None:
    """One run, in a process of its own. Never returns."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    steps = 0

    class View(terminal.RunView):
        def on_event(self, event: DurableEvent) -> None:
            nonlocal steps
            super().on_event(event)
            steps += event.kind != "waiting"
            if steps == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    vars(demo)["RunView"] = View
    os.environ["SESSION_ID"] = session
    sys.argv = ["demo.py", f"What is asked in {session}?"]
    code = 70  # an error of this script
    try:
        code = demo.main()
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
            choose(api)
            run(session, int(kill_after), log)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
