"""What a run came to, as plain data, and where two of them differ.

`plain` makes JSON of whatever the Agents SDK has: its items, responses, usage, events and errors. What is random by
nature (ids, times, addresses, temporary folders) becomes a mark, so that two runs of one test are equal.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from agents import AgentBase, ItemHelpers
from agents.result import RunResultBase
from pydantic import BaseModel

DEPTH = 40  # levels of nesting that are looked at
EPOCH_SECONDS = range(1_600_000_000, 2_200_000_000)  # a number in here is a time
SHOWN_CHARS = 160  # of each of two values that differ

RANDOM = [
    (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{16,}(?![0-9a-zA-Z])"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"/[^\s'\"]*/pytest-of-[^/]+/pytest-\d+/(popen-\w+/)?[^/\s'\"]+"), "<folder>"),
    (re.compile(r"/tmp/tmp[a-z0-9_]{8}"), "<folder>"),
]


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON that tells kinds apart; what has no parts to look at is told by its type."""
    if depth > DEPTH:
        return "<too deep>"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return f"<{name_of(type(value))}.{value.name}>"
    if isinstance(value, str):
        return _without_chance(value)
    if isinstance(value, int | float):
        return "<time>" if int_or_zero(value) in EPOCH_SECONDS else value
    if isinstance(value, bytes):
        return f"<bytes {value!r}>"
    if isinstance(value, AgentBase):
        return f"<agent {value.name}>"
    if isinstance(value, BaseException):
        return {"<error>": name_of(type(value)), "text": _without_chance(str(value))}
    if isinstance(value, type):
        return f"<class {name_of(value)}>"
    if isinstance(value, BaseModel):
        # A field of None may be set or not; it is the same to a user, and what the SDK makes of it is in `next_input`.
        parts = {key: part for key, part in {**vars(value), **(value.model_extra or {})}.items() if part is not None}
        return {"<class>": name_of(type(value))} | _plain_items(parts, depth)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        return {"<class>": name_of(type(value))} | _plain_items(
            {name: getattr(value, name, None) for name in names}, depth
        )
    if isinstance(value, Mapping):
        return _plain_items(value, depth)
    if isinstance(value, list | tuple):
        return [plain(part, depth + 1) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(part, depth + 1) for part in value), key=_text)
    return f"<{name_of(type(value))}>"


def result_of(result: Any) -> dict[str, Any]:
    """What a user sees of a RunResult or a RunResultStreaming."""
    if not isinstance(result, RunResultBase):  # a test's own runner
        return {"value": plain(result)}
    names = (
        "input new_items raw_responses final_output input_guardrail_results output_guardrail_results "
        "tool_input_guardrail_results tool_output_guardrail_results interruptions last_response_id"
    )
    seen = {name: plain(getattr(result, name)) for name in names.split()}
    seen["last_agent"] = plain(result.last_agent)
    seen["usage"] = plain(result.context_wrapper.usage)
    seen["next_input"] = plain(result.to_input_list())
    seen["text"] = plain(ItemHelpers.text_message_outputs(result.new_items))
    return seen


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Where the first of two plain values differs from the second, in a line; None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in (*one, *(key for key in other if key not in one)):
            here = f"{path}.{key}" if path else str(key)
            if key not in one or key not in other:
                return f"{here} {'only in the second' if key not in one else 'only in the first'}"
            if found := difference(one[key], other[key], here):
                return found
        return None
    if isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip(one, other, strict=False)):
            if found := difference(left, right, f"{path}[{number}]"):
                return found
        if len(one) != len(other):
            left_over = (one if len(one) > len(other) else other)[min(len(one), len(other))]
            return f"{path} has {len(one)} and {len(other)} parts; the first that is left over: {_short(left_over)}"
        return None
    if one == other and type(one) is type(other):
        return None
    return f"{path}: {_short(one)} and {_short(other)}"


def unordered(parts: Iterable[Any]) -> list[Any]:
    """Parts of which the order does not matter, as hooks of tools side by side, in an order that is always the same."""
    return sorted(parts, key=_text)


def name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def int_or_zero(value: float) -> int:
    try:
        return int(value)
    except (OverflowError, ValueError):  # NaN and infinity
        return 0


def _plain_items(items: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {str(plain(key, depth + 1)): plain(part, depth + 1) for key, part in items.items()}


def _without_chance(text: str) -> str:
    for pattern, mark in RANDOM:
        text = pattern.sub(mark, text)
    return text


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
