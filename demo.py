"""An OpenAI Agents SDK agent that survives a crash: the turns of its model, and its tool calls.

    nexum dev                                                    # terminal 1
    python worker.py                                             # terminal 2
    SESSION_ID=s1 python demo.py "What is durable execution?"    # terminal 3: kill it anywhere, run it again

With OPENAI_API_KEY the agent asks OpenAI, with GEMINI_API_KEY or GOOGLE_API_KEY Gemini, with neither it is the
offline agent, which reads the pages in offline/. You will see each turn and each call `stored ✓`, and `cached ⚡` the
second time, when nobody is asked.
"""

from offline import ctrl_c

if __name__ == "__main__":
    ctrl_c.listen()  # from the first moment on

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from offline import screen  # and all that takes a second to import comes after the header

QUESTION = "What is durable execution for AI agents?"
GEMINI_MODEL = "litellm/gemini/gemini-3.8-flash"
MAX_TURNS = 20


def build_agent(model: str | None, saves_report: bool = False) -> Any:
    """The agent. Its tools are executed by worker.py, and so are not gone with this process."""
    from agents import Agent

    from nexum_agents import durable_tool
    from tools import save_report, visit_webpage, web_search

    # As usual:  tools=[function_tool(web_search), function_tool(visit_webpage)]
    tools: list[Any] = [durable_tool(web_search, effect="read"), durable_tool(visit_webpage, effect="read")]
    instructions = (
        "You are a research assistant. Search the web for what the question needs, read the most promising pages, "
        "and answer from what you read: clearly, in Markdown, with the URL of every source."
    )
    if saves_report:
        instructions += " Then save your answer with save_report, and tell it."
        tools.append(durable_tool(save_report, needs_approval=True))  # not before you say `nexum approve`
    return Agent(name="Researcher", instructions=instructions, tools=tools, model=model)


def choose_model(offline: bool) -> tuple[str | None, str]:
    """The model's name, None for the SDK's default, and in words which mode that is."""
    openai = os.environ.get("OPENAI_API_KEY")
    google = os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
    named = os.environ.get("MODEL") or (None if openai else GEMINI_MODEL)
    if offline:
        return "offline agent", "offline"
    if not (openai or google or os.environ.get("MODEL")):
        return "offline agent", "offline, as neither OPENAI_API_KEY nor GEMINI_API_KEY is set"
    return named, "live"


def model_provider(model: str | None, mode: str) -> Any:
    """Where the model comes from."""
    from agents import MultiProvider, set_tracing_disabled

    if not os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        set_tracing_disabled(True)  # traces go to OpenAI, with OpenAI's key
    if mode != "live":
        from offline.model import OfflineModels

        return OfflineModels()
    if model and model.startswith("litellm/"):
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a price list when imported
        import litellm

        litellm.suppress_debug_info = True  # its errors are said in a sentence, without advertisement
    return MultiProvider()


async def run(arguments: argparse.Namespace, session_id: str, view: Any, model: str | None, mode: str) -> str:
    """One run of the session. Returns the agent's answer."""
    from agents import RunConfig

    from nexum_agents import durable_session, run_with_approvals
    from offline.beside import worker_beside

    def on_event(event: Any) -> None:
        view.on_event(event)
        if event.kind in ("stored", "cached") and view.calls == arguments.crash_after:
            view.stopped("💥 Killed by --crash-after, in the middle of everything.")
            os.kill(os.getpid(), signal.SIGKILL)

    async with AsyncExitStack() as stack:
        if arguments.worker:
            flags = ["--offline"] if arguments.offline else []
            view.has_own_worker = stack.enter_context(worker_beside(Path(".nexum"), *flags))
        turns, tools = arguments.durable_model, arguments.tools
        session = durable_session(session_id, turns=turns, tools=tools, on_event=on_event)
        view.saved = (await stack.enter_async_context(session)).saved
        view.session = session
        agent, config = build_agent(model, arguments.save_report), RunConfig(model_provider=model_provider(model, mode))
        running = run_with_approvals(agent, arguments.question, max_turns=MAX_TURNS, run_config=config)
        return str((await screen.interruptible(running)).final_output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask an agent that survives a crash.")
    add = parser.add_argument
    add("question", nargs="*", help=f"default: {QUESTION}")
    add("--offline", action="store_true", help="no network, no key: the offline agent and web")
    add("--worker", action="store_true", help="bring a worker (its log is in .nexum/); no server is needed")
    add("--crash-after", type=int, metavar="N", help="die by SIGKILL right after the Nth completed call")
    add("--save-report", action="store_true", help="let the agent save its answer in reports/, if you approve")
    add("--no-durable-model", dest="durable_model", action="store_false", help="record the tool calls alone")
    add("--tools", choices=["run", "cached-only"], default="run", help="cached-only: end rather than call a tool anew")
    arguments = parser.parse_args()
    if arguments.crash_after is not None and arguments.crash_after < 1:
        parser.error("--crash-after must be at least 1")
    arguments.question = " ".join(arguments.question).strip() or QUESTION
    return arguments


def main() -> int:
    arguments = parse_arguments()
    session_id = screen.session_id()
    model, mode = choose_model(arguments.offline)
    again = screen.command_line(session_id, arguments)
    ctrl_c.says(f"Interrupted. Go on with: {again}")
    screen.header(arguments.question, session_id, model or "the SDK's default", mode)
    from offline.view import EngineNotes, RunView, what_went_wrong

    logging.getLogger("openai.agents").setLevel(logging.CRITICAL)  # what goes wrong is said once, below
    view = RunView(again)
    EngineNotes(view)
    try:
        with what_went_wrong(view):
            view.answer(asyncio.run(run(arguments, session_id, view, model, mode)))
            view.footer()
    except KeyboardInterrupt:
        print(f"\n{view.interrupted}", file=sys.stderr)
        return ctrl_c.EXIT_CODE
    return view.code


if __name__ == "__main__":
    sys.exit(main())
