"""A client of chaos.py: makes the calls of its session all at once and notes what it is told, as it is told.

The calls of some tools it executes itself: local effects.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from chaos_tools import HERE, LEASE_MS

from durable_session import DurableEvent, nexum_client
from nexum_runtime import crash
from nexum_runtime.client import local
from submit_task import Effect, OutcomeUnknown, ToolFailed, durable_session, submit_tool_call
from workflow import LOCAL_CALL, Local, ToolCall, ToolError

CALL_SECONDS = 60.0


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


def run(order: Order) -> None:
    """In a process of its own."""
    os.environ.clear()
    os.environ.update(order.environment)
    output = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    importlib.reload(crash)
    local.LEASE_MS = LEASE_MS
    asyncio.run(_make_calls(order))


async def _execute(call: Call, arguments: dict[str, Any], execution_id: str) -> str:
    """The result of a local effect. Raises as submit_tool_call does, and what the tool itself raises."""

    async def execute() -> dict[str, Any]:
        return {"result": await HERE[call.tool](**arguments), "duration_ms": 0}

    outcome = await nexum_client().run_local(
        LOCAL_CALL,
        ToolCall(tool_name=call.tool, tool_args=arguments).model_dump(),
        execute,
        execution_id=execution_id,
        effect=call.effect,
        restart="failed",
        timeout=CALL_SECONDS,
    )
    if outcome.error_code == "OUTCOME_UNKNOWN":
        raise OutcomeUnknown(outcome.error)
    if outcome.status != "COMPLETED":
        raise ToolFailed(outcome.error)
    return str(Local.model_validate(outcome.outputs[LOCAL_CALL.nodes[0].id]).result)


async def _make_calls(order: Order) -> None:
    ids: dict[asyncio.Task[Any] | None, str] = {}
    answers = 0

    def note_id(event: DurableEvent) -> None:
        ids[asyncio.current_task()] = event.execution_id

    async def make(call: Call) -> None:
        nonlocal answers
        try:
            arguments = {"label": call.label, "pause_ms": call.pause_ms}
            if call.tool in HERE:
                ids[asyncio.current_task()] = execution_id = session.next_execution_id(call.tool, arguments)
                value = await _execute(call, arguments, execution_id)
            else:
                value = await submit_tool_call(
                    call.tool, arguments, order.session, timeout=CALL_SECONDS, effect=call.effect
                )
            kind = "result"
        except OutcomeUnknown as error:
            kind, value = "unknown", str(error)
        except (ToolFailed, ToolError) as error:
            kind, value = "failed", str(error)
        answers += 1
        if answers == order.dies_when_told:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = {"label": call.label, "execution_id": ids[asyncio.current_task()], "kind": kind, "value": value}
        with order.told.open("ab", buffering=0) as told:
            told.write(json.dumps(answer).encode() + b"\n")
            os.fsync(told)

    with durable_session(order.session, note_id) as session:
        async with asyncio.TaskGroup() as calls:
            for call in order.calls:
                calls.create_task(make(call))
