"""The SDK's other tools, recorded at the one function that does the work: executors, editors, computers.

What such a function raises the SDK tells the model, and so that is recorded as well. Not of a local shell or a
computer: what these raise ends the run, and the next run tries again.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agents.editor import ApplyPatchResult
from pydantic_core import to_jsonable_python

from nexum_agents import seams
from nexum_agents.calls import recorded
from nexum_agents.sessions import Scope, current_scope
from nexum_agents.standin import StandIn

Do = Callable[..., Any]


def executed(field: str, does: str, content: Callable[..., Any], *, tells_errors: bool = True) -> Callable[[Any], Any]:
    """A seam at which `call.<field>`, a tool, is executed by its function `<does>`.

    `content(call, *arguments)` is what the call is known by. With `tells_errors` the SDK tells the model what that
    function raises.
    """

    def seam(plain: Any) -> Any:
        async def execute(cls: Any, *, call: Any, **options: Any) -> Any:
            scope, tool = current_scope(), getattr(call, field)
            if scope is not None and getattr(tool, does) is not None:
                durable = copy.copy(tool)
                setattr(
                    durable, does, _recorded_function(scope, tool, getattr(tool, does), call, content, tells_errors)
                )
                call = replace(call, **{field: durable})
            return await plain(cls, call=call, **options)

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
        if scope is not None:
            durable = copy.copy(tool)
            durable.editor = _Editor(tool.editor, scope, tool.name)
            call = replace(call, apply_patch_tool=durable)
        return await plain(cls, call=call, **options)

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
