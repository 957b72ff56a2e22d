"""Guardrails: what one found is recorded, as a check may well ask a model."""

from dataclasses import replace
from typing import Any

from agents import InputGuardrailResult, OutputGuardrailResult
from pydantic_core import to_jsonable_python

from nexum_agents.calls import recorded, replayed
from nexum_agents.recording import Unrecordable, to_recorded
from nexum_agents.sessions import current_scope


def check_input(plain: Any) -> Any:
    """The seam at which an agent's or a run's input is checked."""

    async def run(self: Any, agent: Any, input: Any, context: Any) -> Any:
        if current_scope() is None:
            return await plain(self, agent, input, context)

        async def check() -> Any:
            return (await plain(self, agent, input, context)).output

        content = {"agent": getattr(agent, "name", ""), "checked": _plain(input)}
        return InputGuardrailResult(
            guardrail=self, output=await _found(self, content, check, waits=not self.run_in_parallel)
        )

    return run


def check_output(plain: Any) -> Any:
    """The seam at which an agent's or a run's final output is checked."""

    async def run(self: Any, context: Any, agent: Any, agent_output: Any) -> Any:
        if current_scope() is None:
            return await plain(self, context, agent, agent_output)

        async def check() -> Any:
            return (await plain(self, context, agent, agent_output)).output

        content = {"agent": getattr(agent, "name", ""), "checked": _plain(agent_output)}
        output = await _found(self, content, check, waits=False)
        return OutputGuardrailResult(guardrail=self, agent=agent, agent_output=agent_output, output=output)

    return run


def check_tool(plain: Any) -> Any:
    """The seams at which a tool's arguments, or what it returned, are checked."""

    async def run(self: Any, data: Any) -> Any:
        if current_scope() is None:
            return await plain(self, data)

        async def check() -> Any:
            return await plain(self, data)

        content = {"tool": data.context.tool_name, "arguments": data.context.tool_arguments}
        content |= {"output": _plain(data.output)} if hasattr(data, "output") else {}
        return await _found(self, content, check, waits=True)

    return run


async def _found(guardrail: Any, content: dict[str, Any], check: Any, *, waits: bool) -> Any:
    scope = current_scope()
    assert scope is not None
    scope.check()
    if not callable(guardrail.guardrail_function):  # the SDK says so
        return await check()

    function = guardrail.guardrail_function
    name = f"guardrail:{guardrail.name or getattr(function, '__name__', type(function).__name__)}"
    place = scope.place("guardrail", name, content)
    if (found := await replayed(place, name, content)) is not None:
        return found
    # A check may run beside the turn and other checks, and stops them at once when it trips. So it waits for nothing
    # before, nor afterwards: its record is there when the run ends. What tripped is not recorded, but checked anew.
    with scope.inside(place):
        checked = await check()
    if _has_tripped(checked):
        scope.tripped.append((place.id, place.times))
        return checked
    try:
        to_recorded(checked)
    except Unrecordable:  # objects of other classes become plain JSON, in this run as in every replay
        checked = replace(checked, output_info=_plain(checked.output_info))

    async def found_now() -> Any:
        return checked

    recording = recorded(place, name, content, found_now, "read")
    if not waits:
        scope.add_job(recording)
        return checked
    return await recording


def _has_tripped(found: Any) -> bool:
    behavior = getattr(found, "behavior", None) or {}
    return bool(getattr(found, "tripwire_triggered", False)) or behavior.get("type") == "raise_exception"


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=lambda other: type(other).__name__, inf_nan_mode="strings")
