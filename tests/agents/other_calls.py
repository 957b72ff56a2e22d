"""What a model says to call the SDK's other tools: shells, editors, computers, custom tools."""

import itertools
from typing import Any

from openai.types.responses import (
    ResponseApplyPatchToolCall,
    ResponseComputerToolCall,
    ResponseCustomToolCall,
    ResponseFunctionShellToolCall,
)
from openai.types.responses.response_output_item import LocalShellCall

_ids = itertools.count()


def _call(kind: Any, type: str, **parts: Any) -> Any:
    """A call whose ids are never the same twice."""
    number = next(_ids)
    return kind(**{"type": type, "id": f"{type}_{number}", "call_id": f"call_{type}_{number}", **parts})


def custom_call(name: str, input: str) -> Any:
    return _call(ResponseCustomToolCall, "custom_tool_call", name=name, input=input)


def shell_call(*commands: str) -> Any:
    action = {"commands": list(commands)}
    return _call(ResponseFunctionShellToolCall, "shell_call", action=action, status="completed")


def local_shell_call(*command: str) -> Any:
    action = {"type": "exec", "command": list(command), "env": {}}
    return _call(LocalShellCall, "local_shell_call", action=action, status="completed")


def patch_call(type: str, path: str, diff: str = "") -> Any:
    operation = {"type": type, "path": path} | ({"diff": diff} if diff else {})
    return _call(ResponseApplyPatchToolCall, "apply_patch_call", operation=operation, status="completed")


def computer_call(*actions: dict[str, Any]) -> Any:
    parts = {"actions": list(actions), "pending_safety_checks": [], "status": "completed"}
    return _call(ResponseComputerToolCall, "computer_call", **parts)
