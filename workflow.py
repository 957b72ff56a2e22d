"""One tool call of an agent as a Nexum workflow: a single EFFECT node, executed by worker.py.

input    {"tool_name": "web_search", "tool_args": {"query": "durable execution", "max_results": 5}}
output   {"result": "1. Durable execution …", "duration_ms": 412}
"""

from collections.abc import Awaitable, Callable
from typing import Any

from nexum import WorkflowDef, workflow
from nexum.context import ContextView
from pydantic import BaseModel, model_validator

from nexum_runtime import TaskError

NODE = "tool_call"


class ToolCall(BaseModel):
    """What an execution is started with."""

    tool_name: str
    tool_args: dict[str, Any]


class ToolResult(BaseModel):
    """What is recorded: the text the model gets, and how long the tool took, in milliseconds."""

    result: str
    duration_ms: int

    @model_validator(mode="before")
    @classmethod
    def _a_persons_word(cls, recorded: Any) -> Any:
        """What `nexum resolve --result TEXT` records is the text alone."""
        return {"result": recorded, "duration_ms": 0} if isinstance(recorded, str) else recorded


class ToolError(TaskError):
    """Raised by a tool to say in its own words what went wrong, to the model.

    `retryable=False` says that it will go wrong again; `unknown=True` that it may have had its effect all the same.
    """


async def _runs_in_the_worker(context: ContextView) -> ToolResult:
    raise NotImplementedError("tool calls are executed by worker.py")


def tool_call_workflow(handler: Callable[[ContextView], Awaitable[ToolResult]] = _runs_in_the_worker) -> WorkflowDef:
    """The workflow. Who submits calls needs its shape only; the worker passes the handler that runs them."""
    return workflow("openai-agents-tool-call").effect(NODE, ToolResult, handler).build()
