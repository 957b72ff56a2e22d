"""Questions to a person, whose answers are recorded."""

import time
from collections.abc import Sequence
from typing import Any

from nexum_agents.calls import ended_as, not_recorded
from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError, NoAnswer, NotRecorded
from nexum_agents.events import CallEvent
from nexum_agents.parking import waiting
from nexum_agents.sessions import WAIT_SECONDS, Place, current_scope
from nexum_agents.workflows import ANSWER_NODE, QUESTION
from nexum_runtime import NexumError, Outcome
from nexum_runtime.wire import CHOICES_LIMIT, DEADLINE_MS_LIMIT, DEFAULT_CHARS_LIMIT

NAME = "ask_person"  # in events


async def ask_person(
    question: str, *, choices: Sequence[str] = (), timeout: float | None = None, default: str | None = None
) -> str:
    """Ask a person a question, and wait for the answer: `nexum answer ID TEXT`.

        account = await ask_person("Which account?", choices=["main", "savings"], timeout=3600, default="main")

    Use it inside `with durable_session(...)`: in a tool, a step or a hook, or beside the agent. The answer is recorded.
    The next run, in any process, gets it from the store, or goes on waiting, and asks nothing twice. A question is
    known by its words and choices, its place, and its number among the same ones there.

    `choices` are up to 100 texts; when there are any, the answer is one of them. `timeout` is how many seconds the
    question stays open, from when it was first asked; the server keeps that time, whatever else has died. Then the
    answer is `default`, if there is one. A change of `timeout` or `default` does not change what is asked already.

    Raises NoAnswer when nobody answered in time and there is no `default`, or when a person rejected the question
    (`nexum reject`), with the reason; a replay does the same, until `nexum retry` has it asked again. ValueError or
    TypeError for what cannot be asked. DurableCallError outside of a session, and when Nexum cannot carry it; in a
    session that is cached-only NotRecorded for a question that nobody has answered yet.
    """
    asked = _checked(question, choices, timeout, default)
    scope = current_scope()
    if scope is None:
        raise DurableCallError(
            "ask_person was called outside of a session: put it inside `with durable_session(session_id):`. "
            "A tool that a worker executes is outside of any."
        )
    scope.check()
    place = scope.place("question", "question", asked)
    try:
        return await _answer(place, asked, timeout, default)
    except NoAnswer:
        raise
    except BaseException:
        scope.give_back(place)  # whoever asks it again asks the same
        raise


async def _answer(place: Place, asked: dict[str, Any], timeout: float | None, default: str | None) -> str:
    scope, session = place.scope, place.scope.session
    started = time.monotonic()

    def tell(kind: Any, detail: str = "", *, by_default: bool = False) -> None:
        elapsed_ms = round((time.monotonic() - started) * 1000)
        session.tell(CallEvent(kind, place.execution_id, NAME, asked, elapsed_ms, detail=detail, by_default=by_default))

    async def ask(**how: Any) -> Outcome:
        with waiting(place.execution_id):
            return await nexum_client().execute(
                QUESTION,
                asked,
                execution_id=place.execution_id,
                asks=True,
                deadline=timeout,
                default=default,
                timeout=WAIT_SECONDS,
                labels=place.labels({"question": asked["question"]}),
                on_wait=lambda waiting: tell("waiting", "answer" if waiting == "approval" else waiting),
                **how,
            )

    try:
        if (outputs := await session.recorded(place.execution_id)) is not None:
            tell("cached")
            return str(outputs[ANSWER_NODE]["comment"])
        if session.is_cached_only:
            ended = await ended_as(place)
            if ended is None or ended.status == "CANCELLED":  # a run would ask
                raise scope.stop(not_recorded(scope, NAME, asked))
            outcome = ended
        else:
            outcome = await ask()
            if outcome.status == outcome.before == "CANCELLED":  # in an earlier run
                outcome = await ask(restart="failed")
    except NotRecorded as error:
        tell("failed", str(error))
        raise
    except NexumError as error:
        tell("failed", str(error))
        raise scope.stop(error) from None
    if outcome.status == "COMPLETED":
        recorded = outcome.outputs[ANSWER_NODE]
        tell("answered", str(recorded["comment"]), by_default=bool(recorded.get("by_default")))
        return str(recorded["comment"])
    why = outcome.error or f"The question was {outcome.status.lower()}."
    tell("rejected" if outcome.error_code == "REJECTED" else "failed", why)
    raise NoAnswer(why)


def _checked(question: Any, choices: Any, timeout: Any, default: Any) -> dict[str, Any]:
    """What is asked, as its input. Raises ValueError or TypeError."""
    if not isinstance(question, str):
        raise TypeError(f"The question is {question!r}; it must be a text.")
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError(f"The choices are {choices!r}; they must be a list of texts.")
    if not question.strip():
        raise ValueError("The question is empty.")
    choices = list(choices)
    if not all(choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise ValueError(f"The choices are {choices!r}; each must be a text of its own.")
    if len(choices) > CHOICES_LIMIT:
        raise ValueError(f"There are {len(choices)} choices; there can be {CHOICES_LIMIT}.")
    if timeout is not None and not 0.001 <= timeout <= DEADLINE_MS_LIMIT / 1000:
        raise ValueError(f"The timeout is {timeout:g} s; it can be 1 ms to 10 years.")
    if default is None:
        return {"question": question, "choices": choices}
    if not isinstance(default, str):
        raise TypeError(f"The default is {default!r}; it must be a text.")
    if timeout is None:
        raise ValueError("A default needs a timeout: without one the question stays open.")
    if choices and default not in choices:
        raise ValueError(f"The default is {default!r}; it must be one of {', '.join(choices)}.")
    if not default.strip() or len(default) > DEFAULT_CHARS_LIMIT:
        raise ValueError(f"The default is {len(default)} characters; it can be 1 to {DEFAULT_CHARS_LIMIT}.")
    return {"question": question, "choices": choices}
