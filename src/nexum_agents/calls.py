"""Calls that the agent's own process executes, as it always did, and Nexum records: local effects.

Function and MCP tools, the SDK's other tools, guardrails, what the SDK's sessions are asked for, and durable steps.
"""

import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, LimitReached, NotRecorded, OutcomeUnknown, ToolError, ToolFailed
from nexum_agents.events import CallEvent
from nexum_agents.parking import busy
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
    made = _Recorded(
        place,
        name,
        arguments,
        effect,
        returns=returns,
        keep_error=keep_error,
        note=note,
        exactly=exactly,
        quietly=quietly,
    )
    try:
        return await made.outcome(call, again, refusable)
    finally:
        made.raised = None  # its traceback refers to here


class _Recorded:
    """See `recorded`."""

    def __init__(
        self,
        place: Place,
        name: str,
        arguments: dict[str, Any] | str,
        effect: Effect,
        *,
        returns: Any,
        keep_error: Callable[[BaseException], bool],
        note: dict[str, Any] | None,
        exactly: bool,
        quietly: bool,
    ) -> None:
        self._place, self._name, self._arguments, self._effect = place, name, arguments, effect
        self._returns, self._keep_error, self._note = returns, keep_error, note
        self._exactly, self._quietly = exactly, quietly
        self._scope, self._session = place.scope, place.scope.session
        self._began = time.monotonic()
        self._has_returned, self._returned = False, None
        self.raised: BaseException | None = None
        self._written: dict[str, Any] | None = None

    async def outcome(self, call: Call, again: Call | None, refusable: bool) -> Any:
        try:
            if (outputs := await self._session.recorded(self._place.execution_id)) is not None:
                return self._replayed(outputs)
            outcome = await self._refused() if refusable else None
            if outcome is None:
                outcome = await self._made(call, again)
        except BaseException as error:
            return self._failed(error)
        if outcome.error_code == "OUTCOME_UNKNOWN":
            self._tell("unknown", detail=outcome.error or "")
            self._scope.unknown = unknown_outcome(self._name, outcome)
            raise self._scope.unknown
        if outcome.status != "COMPLETED":
            self._tell("failed", detail=outcome.error or "")
            raise ToolFailed(outcome.error or f"The call was {outcome.status.lower()}.")
        if not self._is_ours(outcome):  # another process was first to record
            return self._replayed(outcome.outputs)
        self._tell("stored")
        if self.raised is not None:
            raise self.raised
        return self._returned

    async def _refused(self) -> Outcome | None:
        """How it has ended, if this session makes no more calls; None if it does. Raises why, if it has not ended."""
        scope, place = self._scope, self._place
        refusal: DurableCallError | None = None
        if self._session.is_cached_only:
            refusal = not_recorded(scope, self._name, self._arguments)
        elif place.is_call:
            refusal = await scope.limit_reached("calls")
        if refusal is None:
            return None
        ended = await ended_as(place)
        is_unknown = ended is not None and ended.error_code == "OUTCOME_UNKNOWN"
        is_once = self._effect == "once" and (self._session.is_cached_only or is_unknown)
        if ended is None or (ended.status != "COMPLETED" and not is_once):  # a run would make it again
            raise scope.stop(refusal)
        return ended

    async def _made(self, call: Call, again: Call | None) -> Outcome:
        with self._scope.making(self._place) as making:
            outcome = await nexum_client().run_local(
                LOCAL_CALL,
                ToolCall(tool_name=self._name, tool_args=self._arguments).model_dump(),
                partial(self._run, call),
                again=partial(self._run, again or call),
                synced=again is not None,
                execution_id=self._place.execution_id,
                restart="failed" if self._effect == "once" else "unknown",
                effect=self._effect,
                timeout=WAIT_SECONDS,
                labels=self._place.labels(self._arguments),
                on_wait=self._waiting,
            )
            if self._is_ours(outcome):
                self._session.limits.use(making)
        return outcome

    def _is_ours(self, outcome: Outcome) -> bool:
        return self._written is not None and outcome.outputs.get(LOCAL_NODE) is self._written

    async def _run(self, call: Call) -> dict[str, Any]:
        self._tell("started")
        began = time.monotonic()
        try:
            with self._scope.inside(self._place) as inside, busy(may_be_cut=self._effect != "once"):
                try:
                    result = await call()
                except Exception:
                    if not inside.is_cut_short:
                        raise
                if inside.is_cut_short:  # what it made of an error that ends the run is no result
                    why = f"It was cut short: {self._scope.run.stopped}"
                    raise _CutShort(why, unknown=self._effect == "once") from None
                value = to_value(result, self._returns)
        except BaseException as error:
            self.raised = error
            if isinstance(error, _CutShort) or not self._keep_error(error):
                raise
            value = Value(None, _words(error), ERROR)
        else:
            self._has_returned, self._returned = True, result if self._exactly else value.value
            if self._exactly and value.form == TEXT:
                raise Unrecordable(f"{self._name} returned what would not come back as it is")
        record = {"result": value.recorded, "duration_ms": round((time.monotonic() - began) * 1000)}
        self._written = record | {what: more for what, more in (("form", value.form), ("note", self._note)) if more}
        return self._written

    def _failed(self, error: BaseException) -> Any:
        """Raises what comes of an error, or returns what was returned, and cannot be recorded."""
        scope = self._scope
        if error is self.raised:  # by the call itself
            scope.give_back(self._place)
            if isinstance(error, TaskError) and error.unknown:
                scope.unknown = OutcomeUnknown(_unknown(self._name, str(error)))
            if isinstance(error, Exception):
                self._tell("failed", detail=str(error) if isinstance(error, _CutShort) else error_text(error))
            if isinstance(error, _CutShort):
                scope.check()  # raises what ended the run
            raise error
        was_made = self.raised is not None or self._has_returned
        if isinstance(error, LimitExceeded | Unrecordable) and was_made:
            self._tell("unrecorded", detail=str(error))
            if self.raised is not None:
                raise self.raised from None
            return self._returned
        if isinstance(error, NotRecorded | LimitReached):
            scope.give_back(self._place)
            self._tell("failed", detail=str(error))
        if isinstance(error, NexumError):
            self._tell("failed", detail=str(error))
            raise scope.stop(error) from None
        raise error

    def _replayed(self, outputs: dict[str, Any]) -> Any:
        found = record_of(self._scope, self._name, outputs, LOCAL_NODE)
        value = value_of(self._scope, self._name, found, self._returns)
        self._tell("cached", saved_ms=found.duration_ms)
        if self._note is not None:
            self._note.update(found.note)
        if found.form == ERROR:
            raise ToolFailed(value)
        return value

    def _waiting(self, waiting: str) -> None:
        self._tell("waiting", detail=waiting)

    def _tell(self, kind: Any, **more: Any) -> None:
        if self._quietly and kind in ("started", "stored", "cached", "waiting"):
            return
        elapsed_ms = round((time.monotonic() - self._began) * 1000)
        arguments = shown_arguments(self._arguments)
        self._session.tell(CallEvent(kind, self._place.execution_id, self._name, arguments, elapsed_ms, **more))


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
