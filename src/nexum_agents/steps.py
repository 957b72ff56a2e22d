"""Durable steps: a user's own code, recorded."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakKeyDictionary

from pydantic_core import to_jsonable_python

from nexum_agents.calls import recorded
from nexum_agents.sessions import Effect, current_scope
from nexum_agents.values import returns_of
from nexum_runtime.wire import EFFECTS
from nexum_runtime.worker.attempt import run_in_thread

P = ParamSpec("P")
T = TypeVar("T")

_signatures: WeakKeyDictionary[FunctionType, inspect.Signature] = WeakKeyDictionary()


@overload
def durable_step(name: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]: ...
@overload
def durable_step(name: Callable[P, T], /) -> Callable[P, Awaitable[T]]: ...
@overload
def durable_step(name: str, /, *, effect: Effect = "idempotent") -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@overload
def durable_step(
    name: str, function: Callable[..., Awaitable[T]], /, *args: Any, effect: Effect = "idempotent", **named: Any
) -> Awaitable[T]: ...
@overload
def durable_step(
    name: str, function: Callable[..., T], /, *args: Any, effect: Effect = "idempotent", **named: Any
) -> Awaitable[T]: ...


def durable_step(
    name: str | Callable[..., Any],
    function: Callable[..., Any] | None = None,
    /,
    *args: Any,
    effect: Effect = "idempotent",
    **named: Any,
) -> Any:
    """Run a piece of your own code, and record its result. A replay gets the result, and does not run the code.

        room = await durable_step("book hotel", book, city, effect="once")     # book(city), sync or async

        @durable_step                                 # or @durable_step("book hotel", effect="once")
        async def book(city: str) -> str: ...

    For what a replay must find as it was, in a tool, in a hook or beside the agent: a booking, a clock, a random
    number, what dynamic instructions read. A step is known by its name, its arguments, where it is made, and its number
    among those alike there. Sync functions run in threads. Of a result, what comes back in a replay is what
    `durable_tool` says. `effect` is as in `durable_tool`: a "once" step that was cut short is not run again. Outside of
    a session the function just runs.

    Raises what the function raises, which is not recorded: the next run tries again. A "once" step raises ToolFailed
    when it had failed in an earlier run, and OutcomeUnknown when it may or may not have run. DurableCallError when
    Nexum cannot carry it, ValueError for an `effect` that is none.
    """
    if effect not in EFFECTS:
        raise ValueError(f"The effect of the step is {effect!r}; it can be {', '.join(EFFECTS)}.")
    if callable(name):
        if function is not None or args or named:
            raise TypeError("A step has a name before its function: durable_step('book hotel', book, city).")
        return _decorated(getattr(name, "__name__", "step"), name, effect)
    if function is None:
        return lambda function: _decorated(name, function, effect)
    if not callable(function):
        if inspect.iscoroutine(function):
            function.close()
        raise TypeError(f"Give durable_step the function and its arguments: durable_step({name!r}, book, city).")
    return _step(name, function, args, named, effect)


def _decorated(name: str, function: Callable[..., Any], effect: Effect) -> Callable[..., Any]:
    @functools.wraps(function)
    async def step(*args: Any, **named: Any) -> Any:
        return await _step(name, function, args, named, effect)

    return step


async def _step(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any], effect: Effect
) -> Any:
    scope = current_scope()

    async def call() -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **named)
        result = await run_in_thread(lambda: function(*args, **named))
        return await result if inspect.isawaitable(result) else result

    if scope is None:
        return await call()
    scope.check()
    arguments = {**_by_name(function, args, named)}
    place = scope.place("step", name, arguments)
    return await recorded(place, name, arguments, call, effect, returns=returns_of(function), refusable=True)


_step.__qualname__ = durable_step.__qualname__  # Python names it when somebody forgets to await it


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments as JSON, by their names as far as they have any; what JSON has no form for by its type."""
    try:
        bound: dict[str, Any] = dict(_signature(function).bind(*args, **named).arguments)
    except (TypeError, ValueError):  # a built-in function that does not tell, or arguments that do not fit
        bound = {**{str(n): value for n, value in enumerate(args)}, **named}
    plain: dict[str, Any] = to_jsonable_python(
        bound, fallback=lambda other: type(other).__name__, inf_nan_mode="strings"
    )
    return plain


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """To find it out takes as long as much of the rest of a step."""
    if not isinstance(function, FunctionType):  # a method is made anew each time
        return inspect.signature(function)
    if (signature := _signatures.get(function)) is None:
        signature = _signatures[function] = inspect.signature(function)
    return signature
