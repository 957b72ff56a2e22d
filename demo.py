"""An OpenAI Agents SDK agent that survives a crash: the turns of its model, and its tool calls.

    nexum dev                                                    # terminal 1
    python worker.py                                             # terminal 2
    SESSION_ID=s1 python demo.py "What is durable execution?"    # terminal 3: kill it anywhere, run it again

With OPENAI_API_KEY the agent asks OpenAI, with GEMINI_API_KEY or GOOGLE_API_KEY Gemini, with neither it is the
offline agent, which reads the pages in offline/. You will see each turn and each call `stored ✓`, and `cached ⚡` the
second time, when nobody is asked. With --detach the workers run the agent as well, and nobody has to run it again.
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

from offline import choosing, screen  # and all that takes a second to import comes after the header

QUESTION = "What is durable execution for AI agents?"
MAX_TURNS = 20


def build_agent(model: Any, saves_report: bool = False) -> Any:
    """The agent. Its tools are executed by worker.py, and so are not gone with this process.

    `model` is one, or its name, or None for the SDK's default.
    """
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


async def run(arguments: argparse.Namespace, session_id: str, view: Any, model: str | None, mode: str) -> str:
    """One run of the session. Returns the agent's answer."""
    if arguments.detach:
        from offline.detached import hand_over

        return str(await screen.interruptible(hand_over("Researcher", arguments.question, session_id, MAX_TURNS, view)))
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
        agent = build_agent(choosing.model_of(model, mode), arguments.save_report)
        running = run_with_approvals(agent, arguments.question, max_turns=MAX_TURNS)
        return str((await screen.interruptible(running)).final_output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask an agent that survives a crash.")
    add = parser.add_argument
    add("question", nargs="*", help=f"default: {QUESTION}")
    add("--offline", action="store_true", help="no network, no key: the offline agent and web")
    add("--worker", action="store_true", help="bring a worker (its log is in .nexum/); no server is needed")
    add("--detach", action="store_true", help="let the workers run the agent, and follow it: Ctrl-C leaves it running")
    add("--crash-after", type=int, metavar="N", help="die by SIGKILL right after the Nth completed call")
    add("--save-report", action="store_true", help="let the agent save its answer in reports/, if you approve")
    add("--no-durable-model", dest="durable_model", action="store_false", help="record the tool calls alone")
    add("--tools", choices=["run", "cached-only"], default="run", help="cached-only: end rather than call a tool anew")
    arguments = parser.parse_args()
    if arguments.crash_after is not None and arguments.crash_after < 1:
        parser.error("--crash-after must be at least 1")
    others = [arguments.offline, arguments.worker, arguments.crash_after, arguments.save_report]
    if arguments.detach and (any(others) or not arguments.durable_model or arguments.tools != "run"):
        parser.error("--detach takes no other option, as the workers run the agent")
    arguments.question = " ".join(arguments.question).strip() or QUESTION
    return arguments


def main() -> int:
    arguments = parse_arguments()
    session_id = screen.session_id()
    model, mode = choosing.choose_model(arguments.offline)
    again = screen.command_line(session_id, arguments)
    ctrl_c.says(f"Interrupted. Go on with: {again}")
    if arguments.detach:
        model, mode = "the workers'", "detached"
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
