"""A client of chaos.py: makes the calls of its session all at once and notes what it is told, as it is told.

The calls of some tools it executes itself: durable steps.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_tools import HERE, LEASE_MS, QUESTIONS

from nexum_agents import (
    CallEvent,
    DurableCallError,
    DurableEvent,
    NoAnswer,
    OutcomeUnknown,
    SessionStopped,
    ToolError,
    ToolFailed,
    ask_person,
    durable_session,
    durable_step,
    submit_tool_call,
)
from nexum_agents.sessions import Effect
from nexum_runtime import crash
from nexum_runtime.client import local

CALL_SECONDS = 60.0
STOPPED, AWAY = (
    7,
    8,
)  # exit codes: a person stopped the session; server or database was away when it began


@dataclass(frozen=True)
class Call:
    label: str  # no other call has it
    tool: str
    effect: Effect
    pause_ms: int


@dataclass(frozen=True)
class Order:
    """What one run of a client is to do."""

    session: str
    calls: list[Call]
    told: Path  # a line for every answer; all runs of one client share the file
    log: Path
    environment: dict[str, str]
    dies_when_told: int = 0  # the how manieth answer is the last one, and is not written down; 0: none


def run(order: Order, job: Callable[[Order], Coroutine[Any, Any, None]]) -> None:
    """In a process of its own."""
    os.environ.clear()
    os.environ.update(order.environment)
    output = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    importlib.reload(crash)
    local.LEASE_MS = LEASE_MS
    try:
        asyncio.run(job(order))
    except* SessionStopped:
        sys.exit(STOPPED)
    except* DurableCallError as errors:
        if not any(words in repr(errors) for words in ("No Nexum server answers", "Cannot use the database")):
            raise
        sys.exit(AWAY)


async def make_calls(order: Order) -> None:
    ids: dict[str, str] = {}  # by label
    answers = 0

    def note_id(event: DurableEvent) -> None:
        if isinstance(event, CallEvent):
            ids[event.tool_args.get("label") or event.tool_args["question"]] = event.execution_id

    async def make(call: Call) -> None:
        nonlocal answers
        try:
            arguments = {"label": call.label, "pause_ms": call.pause_ms}
            if call.tool in QUESTIONS:
                value = await ask_person(call.label, **QUESTIONS[call.tool])
            elif call.tool in HERE:
                value = await durable_step(call.tool, HERE[call.tool], **arguments, effect=call.effect)
            else:
                value = await submit_tool_call(
                    call.tool, arguments, order.session, timeout=CALL_SECONDS, effect=call.effect
                )
            kind = "result"
        except OutcomeUnknown as error:
            kind, value = "unknown", str(error)
        except (ToolFailed, ToolError, NoAnswer) as error:
            kind, value = "failed", str(error)
        answers += 1
        if answers == order.dies_when_told:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = {"label": call.label, "execution_id": ids[call.label], "kind": kind, "value": value}
        with order.told.open("ab", buffering=0) as told:
            told.write(json.dumps(answer).encode() + b"\n")
            os.fsync(told)

    with durable_session(order.session, on_event=note_id):
        async with asyncio.TaskGroup() as calls:
            for call in order.calls:
                calls.create_task(make(call))
