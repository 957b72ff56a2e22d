"""The SDK's other tools, recorded at the one function that does the work: executors, editors, computers.

What such a function raises the SDK tells the model, and so that is recorded as well. Not of a local shell or a
computer: what these raise ends the run, and the next run tries again.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields, replace
from typing import Any

from agents.editor import ApplyPatchResult
from pydantic_core import to_jsonable_python

from nexum_agents import seams
from nexum_agents.calls import recorded
from nexum_agents.sessions import Scope, current_scope
from nexum_agents.standin import StandIn

Do = Callable[..., Any]

_instead: ContextVar[dict[tuple[int, str], Any] | None] = ContextVar("nexum_instead", default=None)


class Replaceable:
    """A field of the SDK's tools that holds something else for a call that is under way.

    The tool itself stays the object that it is: hooks, and whoever else is given it, may ask which one it is.
    """

    def __init__(self, tool_class: type, name: str) -> None:
        self._name = name
        self._default = next(field.default for field in fields(tool_class) if field.name == name)

    def __get__(self, tool: Any, owner: type | None = None) -> Any:
        if tool is None:
            if self._default is MISSING:
                raise AttributeError(self._name)
            return self._default
        instead = (_instead.get() or {}).get((id(tool), self._name))
        return self.own(tool) if instead is None else instead

    def __set__(self, tool: Any, value: Any) -> None:
        vars(tool)[self._name] = value

    def own(self, tool: Any) -> Any:
        """What the tool's owner put there."""
        try:
            return vars(tool)[self._name]
        except KeyError:
            raise AttributeError(self._name) from None


def make_replaceable(tool_class: type, name: str) -> None:
    setattr(tool_class, name, Replaceable(tool_class, name))


def _own(tool: Any, name: str) -> Any:
    found = inspect.getattr_static(type(tool), name, None)
    return found.own(tool) if isinstance(found, Replaceable) else getattr(tool, name)


@contextmanager
def _with_instead(call: Any, field: str, name: str, instead: Any) -> Iterator[Any]:
    """The call to make, of a tool that has `instead` as its `name`."""
    tool = getattr(call, field)
    if not isinstance(inspect.getattr_static(type(tool), name, None), Replaceable):  # a class of the user's has its own
        durable = copy.copy(tool)
        setattr(durable, name, instead)
        yield replace(call, **{field: durable})
        return
    token = _instead.set((_instead.get() or {}) | {(id(tool), name): instead})
    try:
        yield call
    finally:
        _instead.reset(token)


def executed(field: str, does: str, content: Callable[..., Any], *, tells_errors: bool = True) -> Callable[[Any], Any]:
    """A seam at which `call.<field>`, a tool, is executed by its function `<does>`.

    `content(call, *arguments)` is what the call is known by. With `tells_errors` the SDK tells the model what that
    function raises.
    """

    def seam(plain: Any) -> Any:
        async def execute(cls: Any, *, call: Any, **options: Any) -> Any:
            scope, tool = current_scope(), getattr(call, field)
            if scope is None or (function := _own(tool, does)) is None:
                return await plain(cls, call=call, **options)
            durably = _recorded_function(scope, tool, function, call, content, tells_errors)
            with _with_instead(call, field, does, durably) as durable_call:
                return await plain(cls, call=durable_call, **options)

        return execute

    return seam


def _recorded_function(
    scope: Scope, tool: Any, function: Do, call: Any, content: Callable[..., Any], tells_errors: bool
) -> Do:
    async def recorded_function(*arguments: Any) -> Any:
        async def do() -> Any:
            return await _awaited(function(*arguments))

        return await _recorded(scope, tool.name, content(call, *arguments), do, tells_errors=tells_errors)

    return recorded_function


def apply_patch(plain: Any) -> Any:
    """The seam at which files are edited."""

    async def execute(cls: Any, *, call: Any, **options: Any) -> Any:
        scope, tool = current_scope(), call.apply_patch_tool
        if scope is None:
            return await plain(cls, call=call, **options)
        editor = _Editor(_own(tool, "editor"), scope, tool.name)
        with _with_instead(call, "apply_patch_tool", "editor", editor) as durable_call:
            return await plain(cls, call=durable_call, **options)

    return execute


class _Editor(StandIn):
    def __init__(self, editor: Any, scope: Scope, name: str) -> None:
        super().__init__(editor)
        self._scope, self._name = scope, name

    async def create_file(self, operation: Any) -> Any:
        return await self._do(self._stands_for.create_file, operation)

    async def update_file(self, operation: Any) -> Any:
        return await self._do(self._stands_for.update_file, operation)

    async def delete_file(self, operation: Any) -> Any:
        return await self._do(self._stands_for.delete_file, operation)

    async def _do(self, edit: Do, operation: Any) -> Any:
        async def do() -> Any:
            return await _awaited(edit(operation))

        content = {"operation": operation.type, "path": operation.path, "diff": operation.diff}
        return await _recorded(self._scope, self._name, content, do, returns=ApplyPatchResult | str | None)


def computer(plain: Any) -> Any:
    """The seam at which a computer is used: its actions, and the picture that follows."""

    async def execute(cls: Any, computer: Any, tool_call: Any) -> Any:
        scope = current_scope()
        if scope is None:
            return await plain(cls, computer, tool_call)
        content = {"actions": [_plain(action) for action in seams.actions_of(tool_call)]}

        async def do() -> Any:
            return await plain(cls, computer, tool_call)

        return await _recorded(scope, "computer", content, do, tells_errors=False)

    return execute


async def _recorded(
    scope: Scope, name: str, content: Any, do: Any, *, returns: Any = None, tells_errors: bool = True
) -> Any:
    scope.check()
    scope.session.meet_tools([name])
    effect = scope.session.effect_of(name)
    place = scope.place("call", name, content)
    if effect == "replay":
        with scope.inside(place):
            return await do()
    return await recorded(
        place,
        name,
        content,
        do,
        effect,
        returns=returns,
        keep_error=lambda error: tells_errors and isinstance(error, Exception),
        refusable=True,
    )


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=lambda other: type(other).__name__)


def shell_content(call: Any, request: Any) -> dict[str, Any]:
    """What a shell call is known by: its commands, and how they are to be run."""
    return {"action": _without_id(_plain(request.data.action))}


def custom_content(call: Any, context: Any, input: str) -> dict[str, Any]:
    """What a call of a custom tool is known by."""
    return {"input": input}


def _without_id(action: Any) -> Any:
    return {name: value for name, value in action.items() if value is not None} if isinstance(action, dict) else action
