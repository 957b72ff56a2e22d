"""`demo.py --detach`: the workers run the agent, and this process only follows."""

import asyncio
from typing import Any

from nexum_agents import FollowEvent, follow, start_run
from nexum_runtime.text import duration_text, shorten
from offline.view import RunView

ASKED_CHARS = 48  # shown of what a call is asked
LAST_EVENTS_SECONDS = 5.0  # for those that come after the answer


async def hand_over(agent: str, question: str, session_id: str, max_turns: int, view: RunView) -> Any:
    """Start the run, or find it, and print what happens in it. Returns its final output."""
    run = await start_run(agent, question, session_id=session_id, max_turns=max_turns)
    view.is_handed_over = True
    following = asyncio.create_task(_print(session_id, view))
    try:
        outcome = await run.result(on_wait=lambda what: _hint(what, view))
        await asyncio.wait([following], timeout=LAST_EVENTS_SECONDS)
        return outcome.final_output
    finally:
        following.cancel()


def _hint(what: str, view: RunView) -> None:
    if what == "worker":
        view.note("no worker has taken the run yet: is python worker.py running?")


async def _print(session_id: str, view: RunView) -> None:
    begun: dict[str, int] = {}
    turns: list[str] = []
    async for event in follow(session_id):
        if event.what == "run":  # its end, which the answer tells
            continue
        if event.what == "turn" and event.execution_id not in turns:
            turns.append(event.execution_id)
        name = f"turn {turns.index(event.execution_id) + 1}" if event.what == "turn" else _call(event)
        if event.kind == "begun":
            begun[event.execution_id] = event.at_ms or 0
            view.note(f"{name} …")
        elif event.kind == "broken_off":
            view.note(f"{name} was cut short: {event.error}")
        elif event.kind == "ended":
            ms = (event.at_ms or 0) - begun.get(event.execution_id, event.at_ms or 0)
            view.note(
                f"{name} stored ✓ {duration_text(ms)}" if event.status == "COMPLETED" else f"{name} {event.status}"
            )


def _call(event: FollowEvent) -> str:
    if event.what == "run of a worker":
        return "the run"
    return f"{event.name}({shorten(event.text, ASKED_CHARS)})"
