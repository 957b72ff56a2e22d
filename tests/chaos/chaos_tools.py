"""Tools for chaos.py: each real effect is a line in the file LEDGER.

A line holds what no other execution of a tool has: a nonce, which is also what the tool returns. Those whose names end
in "here" are local effects, which the clients execute themselves; the others are for the workers.
"""

import asyncio
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from nexum_agents import ToolError, idempotency_key
from nexum_runtime.crash import crash_point

LEASE_MS = 1_000
DEADLINE_SECONDS = 1.5  # of a question


def ledger() -> Path:
    return Path(os.environ["LEDGER"])


def have_an_effect(label: str) -> str:
    nonce = uuid.uuid4().hex
    line = json.dumps({"label": label, "key": idempotency_key(), "nonce": nonce, "pid": os.getpid()})
    crash_point("before-effect")
    with ledger().open("ab", buffering=0) as lines:  # one write, whole or not at all
        lines.write(line.encode() + b"\n")
    crash_point("after-effect")
    return nonce


async def on_the_loop(label: str, pause_ms: int) -> str:
    await asyncio.sleep(pause_ms / 1000 / 4)
    nonce = have_an_effect(label)
    await asyncio.sleep(pause_ms / 1000 * 3 / 4)
    return nonce


def in_a_thread(label: str, pause_ms: int) -> str:
    time.sleep(pause_ms / 1000 / 4)
    nonce = have_an_effect(label)
    time.sleep(pause_ms / 1000 * 3 / 4)
    return nonce


async def decline(label: str, pause_ms: int) -> str:
    raise ToolError(f"Declined, {await on_the_loop(label, pause_ms)}.")


def stumble(label: str, pause_ms: int) -> str:
    nonce = in_a_thread(label, pause_ms)
    if ledger().read_text().count(json.dumps(label)) == 1:
        raise RuntimeError("the first attempt stumbles")
    return nonce


IN_THE_WORKER = {
    "read": on_the_loop,
    "read_in_a_thread": in_a_thread,
    "put": on_the_loop,
    "put_in_a_thread": in_a_thread,
    "stumble": stumble,
    "send": on_the_loop,
    "send_in_a_thread": in_a_thread,
    "decline": decline,
}
HERE = {"put_here": on_the_loop, "send_here": on_the_loop, "decline_here": decline}

# What a person is asked, by what becomes of it.
QUESTIONS: dict[str, dict[str, Any]] = {
    "answered": {},
    "refused": {},
    "by_default": {"timeout": DEADLINE_SECONDS, "default": "as usual"},
    "in_vain": {"timeout": DEADLINE_SECONDS},
}
