"""Calls that the agent's own process executes, as it always did, and Nexum records: local effects.

Function and MCP tools, the SDK's other tools, guardrails, what the SDK's sessions are asked for, and durable steps.
"""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, LimitReached, NotRecorded, OutcomeUnknown, ToolError, ToolFailed
from nexum_agents.events import CallEvent
from nexum_agents.recording import Unrecordable
from nexum_agents.sessions import WAIT_SECONDS, Effect, Place, Scope
from nexum_agents.values import ERROR, TEXT, Value, from_value, to_value
from nexum_agents.workflows import LOCAL_CALL, LOCAL_NODE, Recorded, ToolCall
from nexum_runtime import LimitExceeded, NexumError, NotFound, Outcome, ServerUnavailable, TaskError
from nexum_runtime.text import error_text, shorten
from nexum_runtime.wire import canonical_json, is_nested_too_deeply

SHOWN_CHARS = 200  # of a record that cannot be read

Call = Callable[[], Awaitable[Any]]


class _CutShort(ToolError):
    """Something inside a call ended the run, so the call came to nothing: the next run makes it again.

    Not one that happens once: what it did before that may not be done twice.
    """


def parsed_arguments(arguments: str) -> dict[str, Any] | str:
    """The arguments of a call as the model wrote them: a JSON object, or the text where it is none.

    Providers format the same arguments in different ways. NaN, numbers too large and nesting too deep are no JSON that
    everybody reads alike; such a text is kept as it is, and the tool says to the model what is wrong with it.
    """
    try:
        parsed = json.loads(arguments or "{}")
        canonical_json(parsed)  # ValueError for NaN
    except (ValueError, RecursionError):
        return arguments
    return arguments if not isinstance(parsed, dict) or is_nested_too_deeply(parsed) else parsed


def record_of(scope: Scope, name: str, outputs: dict[str, Any], node_id: str) -> Recorded:
    """What is recorded of a call. Raises DurableCallError for what is no record: it is nothing to tell a model."""
    try:
        return Recorded.model_validate(outputs[node_id])
    except (KeyError, ValueError):  # pydantic's errors are ValueErrors
        recorded = shorten(canonical_json(outputs.get(node_id)), SHOWN_CHARS)
        raise scope.stop(f"What is recorded of {name} is no result of a call: {recorded}") from None


def value_of(scope: Scope, name: str, found: Recorded, returns: Any = None) -> Any:
    """Raises DurableCallError when it cannot be made here."""
    try:
        return from_value(found.result, found.form, returns)
    except Unrecordable as error:
        raise scope.stop(f"What is recorded of {name} cannot be read here: {error}") from None


def shown_arguments(arguments: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments as an event tells them."""
    return arguments if isinstance(arguments, dict) else {"input": arguments}


async def recorded(
    place: Place,
    name: str,
    arguments: dict[str, Any] | str,
    call: Call,
    effect: Effect = "idempotent",
    *,
    returns: Any = None,
    keep_error: Callable[[BaseException], bool] = lambda error: False,
    again: Call | None = None,
    note: dict[str, Any] | None = None,
    exactly: bool = False,
    quietly: bool = False,
    refusable: bool = False,
) -> Any:
    """What `call()` returns, or has returned when it is recorded.

    `returns` is the annotation of what it returns. An error that `keep_error` is true of is recorded as well, and a
    replay raises a ToolFailed with its text. `again()` takes the place of `call()` when an earlier attempt may have had
    its effect. What `call()` puts into `note` is recorded as well, and is there after a replay. With `exactly`, a value
    that would not come back as it is stays unrecorded instead of becoming a text. `quietly` tells only of what went
    wrong. What is `refusable` is not called in a session that is cached-only.
    When something inside ended the run (a limit, a stop), that is raised, and nothing is recorded: what `call()` made
    of that error is no result.
    Raises what `call()` raises, OutcomeUnknown, ToolFailed for a call that is not made again, and DurableCallError.
    """
    scope, session = place.scope, place.scope.session
    started = time.monotonic()
    returned: list[Any] = []
    raised: list[BaseException] = []
    written: list[dict[str, Any]] = []

    def tell(kind: Any, **more: Any) -> None:
        if quietly and kind in ("started", "stored", "cached", "waiting"):
            return
        elapsed_ms = round((time.monotonic() - started) * 1000)
        session.tell(CallEvent(kind, place.execution_id, name, shown_arguments(arguments), elapsed_ms, **more))

    def replayed(outputs: dict[str, Any]) -> Any:
        found = record_of(scope, name, outputs, LOCAL_NODE)
        value = value_of(scope, name, found, returns)
        tell("cached", saved_ms=found.duration_ms)
        if note is not None:
            note.update(found.note)
        if found.form == ERROR:
            raise ToolFailed(value)
        return value

    async def run(call: Call) -> dict[str, Any]:
        tell("started")
        began = time.monotonic()
        try:
            with scope.inside(place) as inside:
                try:
                    result = await call()
                except Exception:
                    if not inside.is_cut_short:
                        raise
                if inside.is_cut_short:  # what it made of an error that ends the run is no result
                    raise _CutShort(f"It was cut short: {scope.run.stopped}", unknown=effect == "once") from None
                value = to_value(result, returns)
        except BaseException as error:
            raised.append(error)
            if isinstance(error, _CutShort) or not keep_error(error):
                raise
            value = Value(None, _words(error), ERROR)
        else:
            returned.append(result if exactly else value.value)
            if exactly and value.form == TEXT:
                raise Unrecordable(f"{name} returned what would not come back as it is")
        record = {"result": value.recorded, "duration_ms": round((time.monotonic() - began) * 1000)}
        written.append(record | {name: more for name, more in (("form", value.form), ("note", note)) if more})
        return written[0]

    try:
        if (outputs := await session.recorded(place.execution_id)) is not None:
            return replayed(outputs)
        refusal: DurableCallError | None = None
        if refusable and session.is_cached_only:
            refusal = not_recorded(scope, name, arguments)
        elif refusable and place.is_call:
            refusal = await scope.limit_reached("calls")
        if refusal is not None:
            ended = await ended_as(place)
            is_once = effect == "once" and (session.is_cached_only or (ended and ended.error_code == "OUTCOME_UNKNOWN"))
            if ended is None or (ended.status != "COMPLETED" and not is_once):  # a run would make it again
                raise scope.stop(refusal)
            outcome = ended
        else:
            with scope.making(place) as making:
                outcome = await nexum_client().run_local(
                    LOCAL_CALL,
                    ToolCall(tool_name=name, tool_args=arguments).model_dump(),
                    lambda: run(call),
                    again=lambda: run(again or call),
                    synced=again is not None,
                    execution_id=place.execution_id,
                    restart="failed" if effect == "once" else "unknown",
                    effect=effect,
                    timeout=WAIT_SECONDS,
                    labels=place.labels(arguments),
                    on_wait=lambda waiting: tell("waiting", detail=waiting),
                )
                if written and outcome.outputs.get(LOCAL_NODE) is written[0]:
                    session.limits.use(making)
    except BaseException as error:
        if raised and error is raised[0]:  # by the call itself
            scope.give_back(place)
            if isinstance(error, TaskError) and error.unknown:
                scope.unknown = OutcomeUnknown(_unknown(name, str(error)))
            if isinstance(error, Exception):
                tell("failed", detail=str(error) if isinstance(error, _CutShort) else error_text(error))
            if isinstance(error, _CutShort):
                scope.check()  # raises what ended the run
            raise
        if isinstance(error, LimitExceeded | Unrecordable) and (
            raised or returned
        ):  # it was executed, and cannot be recorded
            tell("unrecorded", detail=str(error))
            if raised:
                raise raised[0] from None
            return returned[0]
        if isinstance(error, NotRecorded | LimitReached):
            scope.give_back(place)
            tell("failed", detail=str(error))
        if isinstance(error, NexumError):
            tell("failed", detail=str(error))
            raise scope.stop(error) from None
        raise
    if outcome.error_code == "OUTCOME_UNKNOWN":
        tell("unknown", detail=outcome.error or "")
        scope.unknown = unknown_outcome(name, outcome)
        raise scope.unknown
    if outcome.status != "COMPLETED":
        tell("failed", detail=outcome.error or "")
        raise ToolFailed(outcome.error or f"The call was {outcome.status.lower()}.")
    if written and outcome.outputs[LOCAL_NODE] is written[0]:  # and not what another process was first to record
        tell("stored")
        if raised:
            raise raised[0]
        return returned[0]
    return replayed(outcome.outputs)


async def ended_as(place: Place) -> Outcome | None:
    """How a call has ended, however that was; None when it has not, or was never made."""
    client = nexum_client()
    while True:
        try:
            outcome = await client.status(place.execution_id)
        except NotFound:
            return None
        except ServerUnavailable:  # it was there a moment ago
            await client.check(WAIT_SECONDS)
        else:
            return None if outcome.status == "RUNNING" else outcome


def not_recorded(scope: Scope, name: str, arguments: dict[str, Any] | str) -> NotRecorded:
    """The error of a call that a session does not make which is cached-only; it ends the run."""
    what = f"{name}({shorten(canonical_json(arguments), SHOWN_CHARS)})"
    where = f"session {scope.session.session_id}"
    return NotRecorded(f'{what} is not recorded in {where}, and tools="cached-only" makes no call that is not.')


def _words(error: BaseException) -> str:
    """What the SDK tells the model of an error: one without words is told by its class."""
    return str(error) or (type(error).__name__ if isinstance(error, Exception) else "")


async def replayed(place: Place, name: str, arguments: dict[str, Any]) -> Any:
    """What is recorded of a call that never returns None, or None. Raises DurableCallError."""
    if (outputs := await place.scope.session.recorded(place.execution_id)) is None:
        return None
    found = record_of(place.scope, name, outputs, LOCAL_NODE)
    value = value_of(place.scope, name, found)
    event = CallEvent("cached", place.execution_id, name, arguments, saved_ms=found.duration_ms)
    place.scope.session.tell(event)
    return value


def unknown_outcome(tool_name: str, outcome: Outcome) -> OutcomeUnknown:
    """What the model is told of a call whose outcome is not known."""
    return OutcomeUnknown(_unknown(tool_name, why(outcome)))


def _unknown(tool_name: str, what_is_known: str) -> str:
    return (
        f"This call of {tool_name} may or may not have run. Assume neither, and do not make it again: a person has "
        f"to find out first. What is known: {what_is_known}"
    )


def why(outcome: Outcome) -> str:
    """Why a call did not complete, in words."""
    return outcome.error or f"The call was {outcome.status.lower()}."
