"""What a tool, a step or a guardrail returns, as JSON and back: in every run the same kind of thing.

A value is recorded in the first of these forms that brings it back equal:

    form ""      as recording.py writes it: JSON, and the SDK's own objects (images, files, …)
    form "typed" by the return annotation of the function: what pydantic makes of it, and validates again on the way
                 back. The type is the annotation's, never a name in the record
    form "tuple" a tuple of texts, images and files, which the SDK tells as those
    form "text"  `str(value)`, which is what the SDK tells the model. Then the first run sees that text as well
    form "error" what was raised, as text: for an error that the SDK tells the model, and goes on
"""

import inspect
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from nexum_agents import seams
from nexum_agents.errors import ToolError
from nexum_agents.recording import Unrecordable, from_recorded, to_recorded
from nexum_runtime.wire import is_nested_too_deeply

TYPED, TUPLE, TEXT, ERROR = "typed", "tuple", "text", "error"


class Value(NamedTuple):
    """A value, and how it is recorded."""

    value: Any  # what this run and every replay see
    recorded: Any  # JSON
    form: str


def to_value(value: Any, returns: Any = None) -> Value:
    """How `value` is recorded; `returns` is the annotation of the function that returned it.

    Raises ToolError for a coroutine: its text would be no result, and stay for ever.
    """
    if inspect.iscoroutine(value):
        value.close()
        raise ToolError(f"It returned a coroutine. Write `await` before {value.__qualname__}(…).", retryable=False)
    if isinstance(value, tuple) and seams.is_structured_output(value):
        with suppress(Unrecordable):
            return Value(value, to_recorded(list(value)), TUPLE)
    try:
        recorded = to_recorded(value)
        if not is_nested_too_deeply(recorded):
            return Value(value, recorded, "")
    except Unrecordable:
        pass
    if (adapter := _adapter(returns)) is not None:
        try:
            dumped = adapter.dump_python(value, mode="json")
            back = adapter.validate_python(dumped)
            if type(back) is type(value) and bool(back == value):
                return Value(value, to_recorded(dumped), TYPED)
        except Exception:  # whatever a user's own class raises, its text is recorded instead
            pass
    # The two halves of a character that stand beside each other are that character, as JSON would make them.
    text = str(value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return Value(text, to_recorded(text), TEXT)


def from_value(recorded: Any, form: str, returns: Any = None) -> Any:
    """The value that `to_value` was given. Raises Unrecordable when it cannot be made here."""
    if form == TUPLE:
        return tuple(from_recorded(recorded))
    if form != TYPED:
        return from_recorded(recorded)
    adapter = _adapter(returns)
    if adapter is None:
        raise Unrecordable("the record needs the type that its function returned, and the function names none now")
    try:
        return adapter.validate_python(from_recorded(recorded))
    except ValueError as error:
        raise Unrecordable(f"the record does not fit the type that its function returns now: {error}") from None


def returns_of(function: Any) -> Any:
    """The return annotation of a function, a method, a partial or a callable object; None if it has none."""
    if function is None:
        return None
    while hasattr(function, "func") and callable(function.func):  # a functools.partial
        function = function.func
    if not inspect.isroutine(function):  # a callable object
        function = inspect.getattr_static(type(function), "__call__", None)
    return _returns_of(getattr(function, "__func__", function))


@lru_cache(1_000)
def _returns_of(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(function, include_extras=True).get("return")
    except Exception:  # a name in an annotation that is not there at run time, say
        return None


def _adapter(returns: Any) -> TypeAdapter[Any] | None:
    if returns in (None, str, Any):
        return None
    try:
        return _made_adapter(returns)
    except TypeError:  # an annotation that cannot be hashed
        return None


@lru_cache(1_000)
def _made_adapter(returns: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(returns)
    except Exception:  # a class that pydantic knows nothing of
        return None
