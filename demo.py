"""An OpenAI Agents SDK agent that survives a crash: the turns of its model, and its tool calls.

    nexum dev                                                    # terminal 1
    python worker.py                                             # terminal 2
    SESSION_ID=s1 python demo.py "What is durable execution?"    # terminal 3: kill it anywhere, run it again

With OPENAI_API_KEY the agent asks OpenAI, with GEMINI_API_KEY or GOOGLE_API_KEY Gemini, with neither it is the
offline agent, which reads the pages in offline/. You will see each turn and each call `stored ✓`, and `cached ⚡` the
second time, when nobody is asked.
"""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
from agents import Agent, ModelProvider, MultiProvider, RunConfig, set_tracing_disabled
from agents.exceptions import AgentsException
from agents.models import get_default_model

from dev import local_nexum
from durable_approval import run_with_approvals
from durable_model import durable_models
from durable_session import DurableCallError, DurableEvent, check_session_id, durable_session, nexum_client
from nexum_runtime import NexumError
from nexum_runtime.signals import stop_requested
from nexum_runtime.wire import DEFAULT_ADDRESS
from submit_task import durable_tool
from terminal import RunView, command_line
from tools import save_report, visit_webpage, web_search

QUESTION = "What is durable execution for AI agents?"
GEMINI_MODEL = "litellm/gemini/gemini-3.8-flash"
MAX_TURNS = 20


def build_agent(model: str, saves_report: bool = False) -> Agent[Any]:
    agent = Agent[Any](
        name="Researcher",
        instructions=(
            "You are a research assistant. Search the web for what the question needs, read the most promising pages, "
            "and answer from what you read: clearly, in Markdown, with the URL of every source."
        ),
        # As usual, and gone with the process:  tools=[function_tool(web_search), function_tool(visit_webpage)]
        tools=[durable_tool(web_search, effect="read"), durable_tool(visit_webpage, effect="read")],
        model=model,
    )
    if saves_report:
        agent.instructions = f"{agent.instructions} Then save your answer with save_report, and tell it."
        agent.tools.append(durable_tool(save_report, needs_approval=True))  # not before you say `nexum approve`
    return agent


def choose_model(offline: bool) -> tuple[str, ModelProvider, str]:
    """The model's name, where it comes from and, in words, which mode that is."""
    openai_key = os.environ.get("OPENAI_API_KEY")
    google_key = os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
    named = os.environ.get("MODEL") or (get_default_model() if openai_key else GEMINI_MODEL if google_key else None)
    if not openai_key or os.environ.get("OPENAI_BASE_URL"):
        set_tracing_disabled(True)  # traces go to OpenAI, with OpenAI's key
    if offline or not named:
        from offline.model import OfflineModels

        why = "" if offline else ", as neither OPENAI_API_KEY nor GEMINI_API_KEY is set"
        return "offline agent", OfflineModels(), f"offline{why}"
    if named.startswith("litellm/"):
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a price list when imported
        import litellm

        litellm.suppress_debug_info = True  # its errors are said in a sentence, without advertisement
    return named, MultiProvider(), "live"


class Interrupted(Exception):
    """Ctrl-C, or SIGTERM."""


async def ask(agent: Agent[Any], question: str, models: ModelProvider) -> str:
    """The agent's answer. Raises Interrupted when a signal comes first."""
    run_config = RunConfig(model_provider=models)
    asking = asyncio.create_task(run_with_approvals(agent, question, max_turns=MAX_TURNS, run_config=run_config))
    stopping = asyncio.create_task(stop_requested())
    await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if asking.done():
        stopping.cancel()
        return str(asking.result().final_output)
    while not asking.done():  # the SDK may take a cancellation for a tool's failure, tell the model, and go on
        asking.cancel()
        await asyncio.wait({asking}, timeout=0.1)
    await asyncio.gather(asking, return_exceptions=True)
    raise Interrupted


async def run(arguments: argparse.Namespace, session_id: str, view: RunView, again: str) -> str:
    """One run of the session. Returns the agent's answer."""
    address = os.environ.get("NEXUM_ADDRESS", DEFAULT_ADDRESS)
    model, models, mode = choose_model(arguments.offline)
    view.header(Question=arguments.question, Session=session_id, Model=model, Mode=mode, Nexum=address)

    def on_event(event: DurableEvent) -> None:
        view.on_event(event)
        if event.kind in ("stored", "cached") and view.calls == arguments.crash_after:
            view.stopped("💥 Killed by --crash-after, in the middle of everything.", again)
            os.kill(os.getpid(), signal.SIGKILL)

    async with AsyncExitStack() as stack:
        if arguments.dev:
            flags = ("--offline",) if arguments.offline else ()
            if not await stack.enter_async_context(local_nexum(address, Path(".nexum"), flags)):
                view.note("--dev uses the Nexum server that was running already")
        await nexum_client().check()
        view.saved = stack.enter_context(durable_session(session_id, on_event)).saved
        if arguments.durable_model:
            models = durable_models(session_id, models)
        return await ask(build_agent(model, arguments.save_report), arguments.question, models)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask an agent that survives a crash.")
    parser.add_argument("question", nargs="*", help=f"default: {QUESTION}")
    parser.add_argument("--offline", action="store_true", help="no network, no key: the offline agent and web")
    parser.add_argument("--dev", action="store_true", help="bring a server and a worker (logs in .nexum/)")
    parser.add_argument(
        "--crash-after", type=int, metavar="N", help="die by SIGKILL right after the Nth completed call"
    )
    parser.add_argument(
        "--save-report", action="store_true", help="let the agent save its answer in reports/, if you approve"
    )
    parser.add_argument(
        "--no-durable-model",
        dest="durable_model",
        action="store_false",
        help="ask the model anew in every run: only the tool calls are recorded",
    )
    arguments = parser.parse_args()
    if arguments.crash_after is not None and arguments.crash_after < 1:
        parser.error("--crash-after must be at least 1")
    arguments.question = " ".join(arguments.question).strip() or QUESTION
    return arguments


def main() -> int:
    arguments = parse_arguments()
    logging.getLogger("openai.agents").setLevel(logging.CRITICAL)  # what goes wrong is said below, once
    session_id = os.environ.get("SESSION_ID") or f"demo-{secrets.token_hex(3)}"
    try:
        check_session_id(session_id)
    except DurableCallError as error:
        sys.exit(str(error))
    flags = [flag for flag in ("--offline", "--dev", "--save-report") if vars(arguments)[flag[2:].replace("-", "_")]]
    flags += [] if arguments.durable_model else ["--no-durable-model"]
    view, again = RunView(), command_line(session_id, arguments.question, flags)
    try:
        answer = asyncio.run(run(arguments, session_id, view, again))
    except (KeyboardInterrupt, Interrupted):
        view.stopped("Interrupted.", again)
        return 130
    except (DurableCallError, NexumError) as error:
        view.stopped(str(error), again)
        return 1
    except AgentsException as error:
        view.stopped(f"The agent stopped: {error}", again)
        return 1
    except openai.OpenAIError as error:  # litellm's errors are among them
        view.stopped(f"The model could not be asked: {error}", again)
        return 1
    view.answer(answer)
    view.footer(again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
