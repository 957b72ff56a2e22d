"""Calls: how long one takes that is executed, and one that is recorded already, and how many are done in a second."""

import secrets
from functools import partial
from itertools import count
from typing import Any

from bench.context import SLICES, Context
from bench.effect_worker import EFFECT
from bench.floor import CALLERS
from bench.measure import BenchmarkError, Kind, Results, Samples, one_by_one, per_second, shown
from nexum_agents import CallEvent, durable_session, submit_tool_call
from nexum_agents.workflows import LOCAL_CALL
from nexum_runtime import Client

INPUT = {"chars": 100}


class Caller:
    """Calls of one server's effect; `ended` are the ids of those that are recorded."""

    def __init__(self, client: Client, session_id: str = "") -> None:
        self._client = client
        self._run, self._numbers = session_id or f"calls-{secrets.token_hex(4)}", count()
        self.ended: list[str] = []

    async def cold(self, effect: str = "idempotent", input: dict[str, int] = INPUT) -> None:
        execution_id = f"{self._run}/{next(self._numbers)}"
        outcome = await self._client.execute(
            EFFECT, input, execution_id=execution_id, effect=effect, max_attempts=1 if effect == "once" else None
        )
        check(outcome.before == "NEW" and outcome.status == "COMPLETED", f"{execution_id} was not executed: {outcome}")
        if effect != "once":
            self.ended.append(execution_id)

    async def cached(self, execution_id: str, input: dict[str, int] = INPUT) -> None:
        outcome = await self._client.execute(EFFECT, input, execution_id=execution_id)
        check(outcome.before == "COMPLETED", f"{execution_id} was not recorded: {outcome}")

    async def local(self) -> None:
        execution_id = f"{self._run}/local/{next(self._numbers)}"
        outcome = await self._client.run_local(LOCAL_CALL, INPUT, _nothing, execution_id=execution_id)
        check(outcome.before == "NEW", f"{execution_id} was not executed: {outcome}")


async def _nothing() -> dict[str, Any]:
    return {"result": "done", "duration_ms": 0}


def check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise BenchmarkError(otherwise)


async def tool_calls(session_id: str, calls: int, expected: str) -> Samples:
    """The same calls of a tool in each run of the session; `expected` is what becomes of each: stored or cached."""
    told: list[str] = []

    def on_event(event: Any) -> None:
        if isinstance(event, CallEvent) and event.kind != "started":
            told.append(event.kind)

    with durable_session(session_id, on_event=on_event):
        samples = await one_by_one(
            submit_tool_call("look_up", {"number": number, "delay_ms": 0}, session_id) for number in range(calls)
        )
    check(told == [expected] * calls, f"The calls of {session_id} were not all {expected}: {told}")
    return samples


async def kinds(context: Context) -> list[Kind]:
    nexum = await context.nexum()
    caller, calls, slice_calls = Caller(nexum.client), context.calls, context.slice_calls
    sessions: list[str] = []

    async def cold(effect: str) -> Samples:
        return await one_by_one(caller.cold(effect) for _ in range(slice_calls))

    async def cached() -> Samples:
        return await one_by_one(caller.cached(execution_id) for execution_id in caller.ended[-slice_calls:])

    async def local() -> Samples:
        return await one_by_one(caller.local() for _ in range(slice_calls))

    async def tool() -> Samples:
        sessions.append(f"calls-{secrets.token_hex(4)}")
        return await tool_calls(sessions[-1], calls, "stored")

    async def tool_again() -> Samples:
        return await tool_calls(sessions[-1], calls, "cached")

    async def memory() -> Samples:
        return [nexum.server.memory_mb()]

    return [
        Kind("calls.idempotent", "cold", "ms", partial(cold, "idempotent"), SLICES),
        Kind("calls.once", "cold, effect once", "ms", partial(cold, "once"), SLICES),
        Kind("calls.local", "cold, local effect", "ms", local, SLICES),
        Kind("calls.tool", "cold, submit_tool_call", "ms", tool),
        Kind("calls.cached", "cached", "ms", cached, SLICES),
        Kind("calls.tool_cached", "cached, submit_tool_call", "ms", tool_again),
        *(
            Kind(
                f"calls.at_{n}", f"cold, {n} at a time", "/s", partial(per_second, caller.cold, context.calls_by(n), n)
            )
            for n in CALLERS
        ),
        Kind("calls.memory", "server's memory", "MB", memory),
    ]


def sentence(results: Results) -> str:
    cold, cached = results.median("calls.idempotent"), results.median("calls.tool_cached")
    return (
        f"Cold: a call that is executed and recorded takes {shown(cold)} ms more than its tool. "
        f"Cached: from then on it takes {shown(cached)} ms, whatever the tool does."
    )
