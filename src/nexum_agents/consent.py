"""What a person said with a yes to a call: other arguments to make it with, and words for the model."""

from contextvars import ContextVar
from typing import Any

from agents import ToolOutputText

from nexum_agents import seams
from nexum_agents.calls import parsed_arguments
from nexum_agents.sessions import canonical
from nexum_runtime.wire import canonical_json

Yes = dict[str, Any]  # the output of an approval: {"approved": true, "approver": …, "comment": …}, and perhaps "args"

APPROVED = "approved"  # in the note of a call: what the model is told of the yes to it

# What people said to the interruptions of a run: call id and arguments as the model wrote them → the yes.
Consents = dict[tuple[str, str], Yes]
consents: ContextVar[Consents] = ContextVar("nexum_consents")


def key_of(call_id: str | None, arguments: str | None) -> tuple[str, str]:
    """What a call is known by between its interruption and its execution."""
    return str(call_id), canonical(parsed_arguments(arguments or ""))


def given(context: Any, arguments: str) -> Yes:
    """The yes to this call of a function tool that the SDK held back; empty if there was none."""
    found = consents.get({})
    return found.get(key_of(context.tool_call_id, arguments), {}) if found else {}


def words_of(yes: Yes) -> str:
    """What the model is told of a yes, or "": `(Approved by alice: only this once)`.

    With other arguments it is told these as well, or it would take the result for that of its own.
    """
    who = f" by {yes['approver']}" if yes.get("approver") else ""
    changed = f" with the arguments {canonical_json(yes['args'])}" if "args" in yes else ""
    comment = (yes.get("comment") or "").strip()
    said = f": {comment}" if comment else ""
    return f"(Approved{who}{changed}{said})" if changed or said else ""


def with_words(output: Any, words: str) -> Any:
    """A result with a person's words after it: a text gets one more line, texts, images and files one more text.

    Whatever else it is, it stays what it is.
    """
    if not words:
        return output
    if isinstance(output, str):
        return f"{output}\n{words}"
    if not seams.is_structured_output(output):
        return output
    parts = output if isinstance(output, list | tuple) else [output]
    return [*parts, ToolOutputText(text=words)]
